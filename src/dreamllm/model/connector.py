"""Condition projectors: from the dream queries' last hidden states (M, Q, D) to the decoder's conditions (M, R, Dc).

linear        a matrix, as in the paper
`Connector`   a small bidirectional transformer, for a language model that stays frozen
`WithPooled`  either of them, and a matrix for decoders that have a pooled condition too
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2Config, Qwen2Model

if TYPE_CHECKING:
    from dreamllm.model.config import DreamLLMConfig

HEAD_WIDTH = 64


def condition_projector(config: DreamLLMConfig, width: int) -> nn.Module:
    """The condition projector of a configuration, newly initialised. width: D, of the language model's states."""
    decoder = config.diffusion_decoder
    out, pooled = decoder.condition_width(config), decoder.pooled_width(config)
    projector: nn.Module = nn.Linear(width, out, bias=False)
    if config.connector_layers:
        projector = Connector(width, out, config.connector_layers, decoder.CONDITION_SCALE)
    return WithPooled(projector, width, out, pooled) if pooled else projector


class Connector(nn.Module):
    """Encoder of Qwen2's layers without causal mask, then a two-layer MLP and a norm, as in MetaQuery and BLIP3-o.

    MetaQuery (arXiv 2504.06256) has 24 layers of the language model's width; unlike it, these have no norms of queries
    and keys. scale: initial weight of the last norm
    """

    def __init__(self, width: int, out: int, layers: int, scale: float):
        super().__init__()
        heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        self.encoder = Qwen2Model(
            Qwen2Config(
                vocab_size=1,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                initializer_range=0.014,  # MetaQuery's
                use_cache=False,
                is_causal=False,
            )
        )
        self.encoder.embed_tokens = None  # its inputs are the states
        self.mlp = nn.Sequential(nn.Linear(width, out), nn.GELU(approximate="tanh"), nn.Linear(out, out))
        self.norm, self.scale = nn.RMSNorm(out, eps=1e-5), scale
        nn.init.constant_(self.norm.weight, scale)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Conditions (M, Q, Dc) of query states (M, Q, D)."""
        if not len(states):  # which the layers cannot take; the parameters have to be in the graph
            return self(states.new_zeros(1, *states.shape[1:]))[:0]
        encoded = self.encoder(inputs_embeds=states, is_causal=False).last_hidden_state
        return self.norm(self.mlp(encoded))


class WithPooled(nn.Module):
    """Conditions of `sequence`, and a last row with the pooled condition: a matrix on the mean of the query states.

    The mean of the states, and not of the conditions, is what the authors' SDXL variant and FolSpark's SD3 take.
    Raises ValueError for a pooled condition that is wider than the others.
    """

    def __init__(self, sequence: nn.Module, width: int, out: int, pooled: int):
        super().__init__()
        if pooled > out:
            raise ValueError(f"the decoder's pooled condition has width {pooled}, more than the {out} of the others")
        self.sequence, self.pooled = sequence, nn.Linear(width, pooled, bias=False)
        self.padding = out - pooled

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Conditions (M, Q + 1, Dc) of query states (M, Q, D); the last row is padded with zeros."""
        pooled = F.pad(self.pooled(states.mean(dim=1)), (0, self.padding))
        return torch.cat([self.sequence(states), pooled[:, None]], dim=1)


def split_pooled(conditions: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditions (M, Q, Dc) and pooled condition (M, width), of what `WithPooled` has joined."""
    return conditions[:, :-1], conditions[:, -1, :width]

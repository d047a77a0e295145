"""What the model's forward pass returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput


@dataclass
class DreamLLMOutput(ModelOutput):
    """`loss` is the weighted sum of the others. Training with losses has no logits. Hidden states are post-norm."""

    loss: torch.Tensor | None = None
    language_loss: torch.Tensor | None = None
    diffusion_loss: torch.Tensor | None = None
    alignment_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None  # (B, T, V)
    last_hidden_state: torch.Tensor | None = None  # (B, T, D)
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None  # with output_hidden_states=True
    attentions: tuple[torch.Tensor, ...] | None = None  # with output_attentions=True, eager attention

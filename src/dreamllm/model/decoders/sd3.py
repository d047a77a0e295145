"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a transformer over patches and conditions, trained by rectified flow.

Its pooled condition is a linear layer on the mean of the dream queries' states, as in FolSpark/DreamLLM-Qwen2.5, which
joins it to this decoder (`connector.WithPooled`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dreamllm.model.connector import split_pooled
from dreamllm.model.decoders.autoencoder_kl import (  # noqa: F401  functions of `Decoder`
    AUTOENCODER,
    decode,
    encode,
    encoder_blocks,
    latents_of,
    pixels_per_latent,
)
from dreamllm.model.decoders.flow import check, draw_timesteps, loss_weights, noisy_and_target  # noqa: F401
from dreamllm.model.diffusion import DecoderProblem

if TYPE_CHECKING:
    from dreamllm.model.config import DreamLLMConfig
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration

CONDITION_SCALE = 1.0


def condition_width(config: DreamLLMConfig) -> int:
    """The transformer's joint_attention_dim."""
    return config.denoiser_config["joint_attention_dim"]


def pooled_width(config: DreamLLMConfig) -> int:
    """The transformer's pooled_projection_dim."""
    return config.denoiser_config["pooled_projection_dim"]


def side_multiple(config: DreamLLMConfig) -> int:
    """Whole patches."""
    return pixels_per_latent(config) * config.denoiser_config["patch_size"]


def largest_side(config: DreamLLMConfig) -> int:
    """As far as the position embeddings reach."""
    return config.denoiser_config["pos_embed_max_size"] * side_multiple(config)


def predict(
    model: DreamLLMForConditionalGeneration, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: torch.Tensor
) -> torch.Tensor:
    """The transformer's velocity."""
    sequence, pooled = split_pooled(conditions, pooled_width(model.config))
    return model.denoiser(
        hidden_states=noisy,
        timestep=timesteps.expand(len(noisy)),
        encoder_hidden_states=sequence,
        pooled_projections=pooled,
    ).sample


def denoiser_blocks(denoiser: Any) -> list[nn.Module]:
    """All blocks, which are alike."""
    return list(denoiser.transformer_blocks)


def cross_attention(denoiser: Any) -> dict[str, nn.Module]:
    """None: patches and conditions are one sequence, and each attends to all of it."""
    raise DecoderProblem(
        "attention maps are of cross-attention to the dream queries, which this decoder (SD3) has not: its blocks "
        "attend to patches and queries together"
    )

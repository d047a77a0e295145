"""Stable Diffusion XL (arXiv 2307.01952): the UNet also has a pooled condition, and the sizes of picture and crop.

Where that pipeline takes the pooled output of a text encoder, the pooled condition is a linear layer on the mean of
the dream queries' states, as in the authors' own SDXL variant (`connector.WithPooled`). The sizes are those of an
uncropped picture at the size that is drawn, in training as in sampling: pictures are scaled and cropped to their centre
before they come here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreamllm.model.connector import split_pooled
from dreamllm.model.decoders.stable_diffusion import (  # noqa: F401  functions of `Decoder`
    AUTOENCODER,
    CONDITION_SCALE,
    check,
    condition_width,
    cross_attention,
    decode,
    denoiser_blocks,
    draw_timesteps,
    encode,
    encoder_blocks,
    largest_side,
    latents_of,
    loss_weights,
    noisy_and_target,
    pixels_per_latent,
    side_multiple,
)

if TYPE_CHECKING:
    from dreamllm.model.config import DreamLLMConfig
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration

SIZES = 6  # numbers of original size, top left corner of the crop, and target size


def pooled_width(config: DreamLLMConfig) -> int:
    """What is left of the UNet's added embedding beside the sizes."""
    unet = config.denoiser_config
    return unet["projection_class_embeddings_input_dim"] - SIZES * unet["addition_time_embed_dim"]


def predict(
    model: DreamLLMForConditionalGeneration, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: torch.Tensor
) -> torch.Tensor:
    """The UNet under cross-attention, with pooled condition and sizes."""
    sequence, pooled = split_pooled(conditions, pooled_width(model.config))
    height, width = (side * pixels_per_latent(model.config) for side in noisy.shape[-2:])
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=noisy.dtype, device=noisy.device)
    added = {"text_embeds": pooled, "time_ids": sizes.expand(len(noisy), -1)}
    return model.denoiser(noisy, timesteps, encoder_hidden_states=sequence, added_cond_kwargs=added).sample

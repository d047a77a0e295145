"""SANA (arXiv 2410.10629): a transformer with linear attention, by rectified flow on small latents of `AutoencoderDC`.

The decoder of MetaQuery (arXiv 2504.06256) and of BLIP3-o's later versions (arXiv 2505.09568).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dreamllm.model.decoders.flow import check, draw_timesteps, loss_weights, noisy_and_target  # noqa: F401
from dreamllm.model.decoders.sd3 import denoiser_blocks  # noqa: F401
from dreamllm.model.decoders.stable_diffusion import cross_attention, largest_side  # noqa: F401

if TYPE_CHECKING:
    from dreamllm.model.config import DreamLLMConfig
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration

AUTOENCODER = "AutoencoderDC"
CONDITION_SCALE = math.sqrt(5.5)  # of Gemma's features, from MetaQuery's and BLIP3-o's code


def condition_width(config: DreamLLMConfig) -> int:
    """The transformer's caption_channels."""
    return config.denoiser_config["caption_channels"]


def pooled_width(config: DreamLLMConfig) -> int:
    """None."""
    return 0


def pixels_per_latent(config: DreamLLMConfig) -> int:
    """Each level of the encoder except the last halves the side."""
    return 2 ** (len(config.vae_config["encoder_block_out_channels"]) - 1)


def side_multiple(config: DreamLLMConfig) -> int:
    """Whole patches."""
    return pixels_per_latent(config) * config.denoiser_config["patch_size"]


def encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The latents (M, C, h, w) themselves: this autoencoder has no posterior."""
    return vae.encode(pixels.to(vae.dtype)).latent.float()


def latents_of(vae: Any, statistics: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
    """The latents, scaled."""
    return statistics * vae.config.scaling_factor


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """By the autoencoder's decoder."""
    return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()


def encoder_blocks(vae: Any) -> list[nn.Module]:
    """Levels."""
    return list(vae.encoder.down_blocks)


def predict(
    model: DreamLLMForConditionalGeneration, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: torch.Tensor
) -> torch.Tensor:
    """The transformer's velocity; a variance that it may predict beside it is left out, as in SanaPipeline."""
    config = model.config.denoiser_config
    prediction = model.denoiser(
        noisy,
        encoder_hidden_states=conditions,
        timestep=timesteps.expand(len(noisy)) * config.get("timestep_scale", 1.0),
    ).sample
    return prediction[:, : config["in_channels"]]

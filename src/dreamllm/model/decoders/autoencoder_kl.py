"""The autoencoder of Stable Diffusion 1 to 3 and XL, `AutoencoderKL`: its functions of `Decoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from dreamllm.model.config import DreamLLMConfig

AUTOENCODER = "AutoencoderKL"


def pixels_per_latent(config: DreamLLMConfig) -> int:
    """Each level of AutoencoderKL except the last halves the side."""
    return 2 ** (len(config.vae_config["block_out_channels"]) - 1)


def encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of the posterior, (M, 2C, h, w)."""
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    return torch.cat([posterior.mean.float(), posterior.std.float()], dim=1)


def latents_of(vae: Any, statistics: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
    """A sample of the posterior, shifted where the autoencoder says so, and scaled."""
    mean, std = statistics.chunk(2, dim=1)
    latents = mean + std * posterior
    if vae.config.shift_factor:
        latents = latents - vae.config.shift_factor
    return latents * vae.config.scaling_factor


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `latents_of`, then the autoencoder's decoder."""
    latents = latents / vae.config.scaling_factor
    if vae.config.shift_factor:
        latents = latents + vae.config.shift_factor
    return vae.decode(latents.to(vae.dtype)).sample.float()


def encoder_blocks(vae: Any) -> list[nn.Module]:
    """Levels and middle."""
    return [*vae.encoder.down_blocks, vae.encoder.mid_block]

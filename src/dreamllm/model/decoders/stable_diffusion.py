"""Stable Diffusion 1 and 2: a UNet under cross-attention predicts noise (epsilon) or velocity (v_prediction).

As in the paper, section 3.1, and the official code, modeling_plugins.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from dreamllm.model.decoders.autoencoder_kl import (  # noqa: F401  functions of `Decoder`
    AUTOENCODER,
    decode,
    encode,
    encoder_blocks,
    latents_of,
    pixels_per_latent,
)
from dreamllm.model.decoders.flow import is_flow
from dreamllm.model.diffusion import DecoderProblem, DiffusionNoise, shift_timesteps, stratified_places

if TYPE_CHECKING:
    from dreamllm.model.config import DreamLLMConfig
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration

CONDITION_SCALE = 1.0  # CLIP's text features end with a norm; as in MetaQuery, for Stable Diffusion 1.5


def condition_width(config: DreamLLMConfig) -> int:
    """The UNet's cross_attention_dim."""
    return config.denoiser_config["cross_attention_dim"]


def pooled_width(config: DreamLLMConfig) -> int:
    """None."""
    return 0


def side_multiple(config: DreamLLMConfig) -> int:
    """8, as diffusers wants it, if the autoencoder's factor divides it."""
    return math.lcm(8, pixels_per_latent(config))


def largest_side(config: DreamLLMConfig) -> None:
    """No limit."""


def check(config: DreamLLMConfig) -> None:
    """Raises DecoderProblem for a schedule of rectified flow."""
    if is_flow(config.scheduler_config):
        raise DecoderProblem("the scheduler is one of rectified flow, but the UNet is trained with epsilon or velocity")


# ---- noise schedule ------------------------------------------------------------------------------------------------


def cumulative_alphas(scheduler_config: Mapping[str, Any]) -> torch.Tensor:
    """The cumulative product of alphas at each training timestep, (num_train_timesteps,) in fp32."""
    return _cumulative_alphas(json.dumps(scheduler_config, sort_keys=True))


@lru_cache
def _cumulative_alphas(scheduler_config: str) -> torch.Tensor:
    return DDPMScheduler.from_config(json.loads(scheduler_config)).alphas_cumprod


def prediction_type(config: DreamLLMConfig) -> str:
    """What the UNet predicts: epsilon or v_prediction."""
    return config.scheduler_config.get("prediction_type", "epsilon")


def draw_timesteps(config: DreamLLMConfig, count: int, generator: torch.Generator | None) -> torch.Tensor:
    """Integers, uniform; stratified and shifted as the configuration says."""
    total = len(cumulative_alphas(config.scheduler_config))
    if config.stratified_timesteps:
        timesteps = (stratified_places(count, generator) * total / max(1, count)).long().clamp(max=total - 1)
    else:
        device = "cpu" if generator is None else generator.device
        timesteps = torch.randint(total, (count,), generator=generator, device=device)
    return timesteps if config.timestep_shift == 1 else shift_timesteps(timesteps, total, config.timestep_shift)


def noisy_and_target(
    config: DreamLLMConfig, latents: torch.Tensor, noise: DiffusionNoise
) -> tuple[torch.Tensor, torch.Tensor]:
    """By `add_noise` and `prediction_target`."""
    alphas = cumulative_alphas(config.scheduler_config).to(latents.device)[noise.timesteps]
    noisy = add_noise(latents, noise.of_input, alphas)
    return noisy, prediction_target(latents, noise.noise, alphas, prediction_type(config))


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Noisy latents at the noise levels `alphas` (M,), the cumulative alphas of their timesteps."""
    alphas = alphas[:, None, None, None]
    return alphas.sqrt() * latents + (1 - alphas).sqrt() * noise


def prediction_target(
    latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The UNet's target: the noise ("epsilon") or the velocity ("v_prediction", arXiv 2202.00512), (M, C, h, w)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return add_noise(noise, -latents, alphas)
    raise ValueError(f"prediction_type {prediction_type!r} is not supported, expected epsilon or v_prediction")


def loss_weights(config: DreamLLMConfig, timesteps: torch.Tensor) -> torch.Tensor | None:
    """Min-SNR weights where the configuration has a gamma."""
    if config.snr_gamma is None:
        return None
    alphas = cumulative_alphas(config.scheduler_config).to(timesteps.device)[timesteps]
    return snr_weights(alphas, config.snr_gamma, prediction_type(config))


def snr_weights(alphas: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Min-SNR weight of each picture (arXiv 2303.09556), (M,); v_prediction uses SNR + 1 in place of SNR."""
    snr = alphas / (1 - alphas)
    if prediction_type == "v_prediction":
        snr = snr + 1
    return snr.clamp(max=gamma) / snr


# ---- UNet ----------------------------------------------------------------------------------------------------------


def predict(
    model: DreamLLMForConditionalGeneration, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: torch.Tensor
) -> torch.Tensor:
    """The UNet under cross-attention to the conditions."""
    return model.denoiser(noisy, timesteps, encoder_hidden_states=conditions).sample


def denoiser_blocks(denoiser: Any) -> list[nn.Module]:
    """Levels down, middle, levels up."""
    return [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]


def cross_attention(denoiser: Any) -> dict[str, nn.Module]:
    """The second attention of every transformer block."""
    return {name: module for name, module in denoiser.named_modules() if name.endswith(".attn2")}

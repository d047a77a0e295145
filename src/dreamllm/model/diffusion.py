"""The diffusion loss as pure functions of tensors (paper section 3.1; official code, modeling_plugins.py).

Latents, noise and noisy latents are fp32 in every precision of the networks, because in bf16 only a fifth of the noise
levels would differ. All random numbers are passed in explicitly, as a `DiffusionNoise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDPMScheduler


@dataclass(frozen=True)
class DiffusionNoise:
    """Every random number of the diffusion loss of M pictures, in the order in which they are drawn.

    With several draws per picture (`noise_draws`), M counts draws; those of one picture are adjacent.
    """

    posterior: torch.Tensor  # (M, C, h, w), of the VAE posterior
    noise: torch.Tensor  # (M, C, h, w), added to the latents; with noise_offset included
    perturbation: torch.Tensor | None  # (M, C, h, w), added to the noise in the input only
    timesteps: torch.Tensor  # (M,), integers
    dropped: torch.Tensor | None  # (M,), True where the null condition replaces the picture's own

    def to(self, device: torch.device) -> DiffusionNoise:
        """The same numbers on `device`."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})

    def __getitem__(self, pictures: slice) -> DiffusionNoise:
        """The numbers of some of the pictures."""
        return replace(self, **{name: value[pictures] for name, value in vars(self).items() if value is not None})


def draw_noise(
    shape: tuple[int, int, int, int],
    num_timesteps: int,
    *,
    noise_offset: float = 0.0,
    input_perturbation: float = 0.0,
    condition_dropout: float = 0.0,
    stratified_timesteps: bool = False,
    timestep_shift: float = 1.0,
    generator: torch.Generator | None = None,
) -> DiffusionNoise:
    """Draw the random numbers for latents of `shape` (M, C, h, w), in fp32 on the generator's device (default CPU).

    noise_offset adds noise that is constant over each channel, so that the model learns mean brightness; the UNet
    predicts it too. input_perturbation adds noise to the input only. Timesteps are uniform. If stratified, one falls
    into each of M equal parts of the schedule, in random order: the same expected loss with less variance (a
    low-discrepancy sampler, as in Variational Diffusion Models, arXiv 2107.00630). timestep_shift above 1 moves
    timesteps towards the noisy end, where a picture depends most on its condition.
    """
    device = "cpu" if generator is None else generator.device

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device)

    posterior = normal(*shape)
    noise = normal(*shape)
    if noise_offset:
        noise = noise + noise_offset * normal(*shape[:2], 1, 1)
    perturbation = input_perturbation * normal(*shape) if input_perturbation else None
    if stratified_timesteps:
        parts = torch.randperm(shape[0], generator=generator, device=device)
        places = torch.rand(shape[:1], generator=generator, device=device)
        timesteps = ((parts + places) * num_timesteps / max(1, shape[0])).long().clamp(max=num_timesteps - 1)
    else:
        timesteps = torch.randint(num_timesteps, shape[:1], generator=generator, device=device)
    if timestep_shift != 1:
        timesteps = shift_timesteps(timesteps, num_timesteps, timestep_shift)
    dropped = None
    if condition_dropout:
        dropped = torch.rand(shape[:1], generator=generator, device=device) < condition_dropout
    return DiffusionNoise(posterior, noise, perturbation, timesteps, dropped)


def shift_timesteps(timesteps: torch.Tensor, num_timesteps: int, shift: float) -> torch.Tensor:
    """Map timesteps t, as fractions of the schedule, to s t / (1 + (s - 1) t) (SD 3, arXiv 2403.03206)."""
    fractions = (timesteps.double() + 0.5) / num_timesteps
    return (num_timesteps * shift * fractions / (1 + (shift - 1) * fractions)).long()


def cumulative_alphas(scheduler_config: Mapping[str, Any]) -> torch.Tensor:
    """The cumulative product of alphas at each training timestep, (num_train_timesteps,) in fp32."""
    return DDPMScheduler.from_config(scheduler_config).alphas_cumprod


def drop_conditions(
    conditions: torch.Tensor, null_condition: torch.Tensor, dropped: torch.Tensor | None
) -> torch.Tensor:
    """Replace the conditions (M, Q, D) of the dropped pictures (M,) by the null condition (1 or M, Q, D)."""
    if dropped is None:
        return conditions
    return torch.where(dropped[:, None, None], null_condition.to(conditions.dtype), conditions)


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


def snr_weights(alphas: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Min-SNR weight of each picture (arXiv 2303.09556), (M,); v_prediction uses SNR + 1 in place of SNR."""
    snr = alphas / (1 - alphas)
    if prediction_type == "v_prediction":
        snr = snr + 1
    return snr.clamp(max=gamma) / snr


def squared_errors(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each of M pictures in fp32, (M,)."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def mean_error(errors: torch.Tensor, weights: torch.Tensor | None = None, count: int | None = None) -> torch.Tensor:
    """Mean of the errors (M,) of M pictures, optionally with a weight (M,) for each picture; a scalar.

    count: number of pictures of the whole batch to divide by, if these are some of them; the losses then add up.
    """
    if weights is not None:
        errors = errors * weights
    return errors.sum() / (len(errors) if count is None else count)

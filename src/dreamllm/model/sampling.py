"""Diffusion sampling: classifier-free guidance, any diffusers scheduler, one seed per picture.

A picture depends on its condition and its seed, not on the other pictures of its batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from PIL import Image

from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.finite import check_finite


@dataclass(frozen=True)
class PictureSampling:
    """Settings of diffusion sampling.

    scheduler: name of a diffusers scheduler class.  guidance: scale of classifier-free guidance; 1 is none
    """

    scheduler: str = "DPMSolverMultistepScheduler"
    steps: int = 25
    guidance: float = 3.0


class SchedulerProblem(ValueError):
    """A name that is not a scheduler class of diffusers."""


def make_scheduler(name: str, scheduler_config: Mapping[str, Any]) -> SchedulerMixin:
    """The diffusers scheduler of this class name, with the noise schedule that the UNet was trained with.

    Timesteps are spaced from the last one down ("trailing"). The "leading" spacing of Stable Diffusion's configuration
    starts at timestep 895 with 150 steps, where training never saw pure noise. Raises SchedulerProblem for an unknown
    name.
    """
    scheduler_class: Any = getattr(diffusers, name, None)
    is_scheduler = inspect.isclass(scheduler_class) and issubclass(scheduler_class, SchedulerMixin)
    if not is_scheduler:
        raise SchedulerProblem(f"{name!r} is not a scheduler class of diffusers {diffusers.__version__}")
    return scheduler_class.from_config(scheduler_config, timestep_spacing="trailing")


def draw_from_states(
    model: DreamLLMForConditionalGeneration,
    states: torch.Tensor,
    null_states: torch.Tensor,
    seeds: Sequence[int],
    sampling: PictureSampling,
    names: Sequence[str] | None = None,
) -> list[Image.Image]:
    """Draw M pictures from query states (M, Q, D) and null states (1, Q, D), with one seed for each picture.

    names: of the pictures, for error messages; their numbers if None
    Raises NonFiniteValues where the states, the UNet or the VAE give NaN or infinity.
    """
    names = [f"picture {number}" for number in range(len(seeds))] if names is None else names
    check_finite(null_states, ["the null condition"], "hidden states of the dream queries")
    check_finite(states, names, "hidden states of the dream queries")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    side = model.unet.config.sample_size
    shape = (model.unet.config.in_channels, side, side)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])  # (M, C, h, w)
    scheduler = make_scheduler(sampling.scheduler, model.config.scheduler_config)
    scheduler.set_timesteps(sampling.steps, device=model.device)
    latents = sample_latents(
        model, states, null_states, noise.to(model.device), scheduler, sampling.guidance, generators
    )
    check_finite(latents, names, "latents after the condition projector and the UNet")
    return decode_latents(model, latents, names)


@torch.no_grad()
def sample_latents(
    model: DreamLLMForConditionalGeneration,
    states: torch.Tensor,
    null_states: torch.Tensor,
    noise: torch.Tensor,
    scheduler: SchedulerMixin,
    guidance: float,
    generators: list[torch.Generator] | None = None,
) -> torch.Tensor:
    """Denoise standard normal noise (M, C, h, w) along the timesteps set in `scheduler`; fp32 throughout.

    generators: one per picture, for schedulers that draw noise at each step.
    """
    conditions = model.condition_projector(states)  # (M, Q, Dc)
    null_conditions = model.condition_projector(null_states).expand_as(conditions)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generators} if takes_generator else {}
    latents = noise.float() * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = guided_prediction(model, scaled, timestep, conditions, null_conditions, guidance)
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
    return latents


def guided_prediction(
    model: DreamLLMForConditionalGeneration,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditions: torch.Tensor,
    null_conditions: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """Classifier-free guidance (arXiv 2207.12598): null + guidance * (conditional - null); one call of the UNet."""
    if guidance == 1:
        return model.denoise(latents, timestep, conditions)
    both = model.denoise(torch.cat([latents, latents]), timestep, torch.cat([null_conditions, conditions]))
    null, conditional = both.chunk(2)
    return null + guidance * (conditional - null)


@torch.no_grad()
def decode_latents(
    model: DreamLLMForConditionalGeneration, latents: torch.Tensor, names: Sequence[str]
) -> list[Image.Image]:
    """Decode latents (M, C, h, w) to M RGB pictures with the VAE. Raises NonFiniteValues, with the picture's name."""
    vae = model.vae
    pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()  # (M, 3, H, W) in [-1, 1]
    check_finite(pixels, names, "pixels of the VAE")
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]

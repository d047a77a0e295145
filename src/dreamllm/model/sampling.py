"""Diffusion sampling: classifier-free guidance, any diffusers scheduler, one seed per picture.

A picture depends on its condition and its seed, not on the other pictures of its batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image

from dreamllm.model.decoders import flow
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.finite import check_finite


@dataclass(frozen=True)
class PictureSampling:
    """Settings of diffusion sampling, with the names and meanings that diffusers' pipelines give them.

    scheduler: name of a diffusers scheduler class.  guidance: scale of classifier-free guidance; 1 is none
    guidance_rescale: share of the rescaled prediction (arXiv 2305.08891, section 3.4).  eta: noise of DDIM, 0 to 1
    negative_prompt: what guidance leads away from; "" = the empty prompt
    height, width: of the pictures in pixels; None = the size that the denoiser was trained at
    """

    scheduler: str = "DPMSolverMultistepScheduler"
    steps: int = 25
    guidance: float = 3.0
    guidance_rescale: float = 0.0
    eta: float = 0.0
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None


class SamplingProblem(ValueError):
    """Settings of sampling that do not go together, or do not fit the model: says which."""


def check_sampling(sampling: PictureSampling) -> None:
    """Raises SamplingProblem for values out of range, and for options that would have no effect."""
    if sampling.steps < 1:
        raise SamplingProblem(f"steps is {sampling.steps}, at least 1 is needed")
    if not 1 <= sampling.guidance < float("inf"):
        raise SamplingProblem(f"guidance is {sampling.guidance}, not a number from 1, which is none")
    for name, value in (("guidance_rescale", sampling.guidance_rescale), ("eta", sampling.eta)):
        if not 0 <= value <= 1:
            raise SamplingProblem(f"{name} is {value}, not from 0 to 1")
    if sampling.guidance == 1 and (sampling.guidance_rescale or sampling.negative_prompt):
        raise SamplingProblem("without guidance (1), guidance_rescale and negative_prompt have no effect")


def latent_size(sampling: PictureSampling, sample_size: int, scale: int, step: int) -> tuple[int, int]:
    """Height and width of the latents. sample_size: that of the denoiser; scale: pixels per latent, of the VAE.

    Raises SamplingProblem for a height or width that is not a multiple of `step` pixels.
    """
    sides = []
    for name, pixels in (("height", sampling.height), ("width", sampling.width)):
        if pixels is not None and (pixels < 1 or pixels % step):
            raise SamplingProblem(f"{name} is {pixels}, not a multiple of {step} pixels")
        sides.append(sample_size if pixels is None else pixels // scale)
    return sides[0], sides[1]


def make_scheduler(name: str, scheduler_config: Mapping[str, Any]) -> SchedulerMixin:
    """The diffusers scheduler of this class name, with the noise schedule that the denoiser was trained with.

    A schedule of rectified flow takes Euler's scheduler for it, and solvers that take its noise levels. Of the others,
    timesteps are spaced from the last one down ("trailing"). The "leading" spacing of Stable Diffusion's configuration
    starts at timestep 895 with 150 steps, where training never saw pure noise. Raises SamplingProblem for an unknown
    name, and for classes that Stable Diffusion's pipeline does not take: they raise errors, or draw noise.
    """
    is_flow = flow.is_flow(scheduler_config)
    names = flow.schedulers() if is_flow else sorted(KarrasDiffusionSchedulers.__members__)
    if name not in names:
        raise SamplingProblem(
            f"{name!r} is not a scheduler class of diffusers {diffusers.__version__} for "
            f"{'rectified flow' if is_flow else 'Stable Diffusion'}; known: {', '.join(names)}"
        )
    if is_flow:
        return flow.make_scheduler(name, scheduler_config)
    return getattr(diffusers, name).from_config(scheduler_config, timestep_spacing="trailing")


def scheduler_with_steps(
    sampling: PictureSampling, scheduler_config: Mapping[str, Any], device: torch.device | None = None
) -> SchedulerMixin:
    """The scheduler of `make_scheduler`, its timesteps set.

    Raises SamplingProblem for a number of steps that it refuses, and for an eta that it would ignore.
    """
    scheduler = make_scheduler(sampling.scheduler, scheduler_config)
    set_steps(scheduler, sampling.steps, sampling.eta, device)
    return scheduler


def set_steps(
    scheduler: SchedulerMixin, steps: int, eta: float = 0.0, device: torch.device | str | None = None
) -> None:
    """Set a scheduler's timesteps. Raises SamplingProblem for steps that it refuses and an eta that it would ignore."""
    name = type(scheduler).__name__
    if eta and "eta" not in inspect.signature(scheduler.step).parameters:
        raise SamplingProblem(f"eta is {eta}, but {name} has none; DDIMScheduler has")
    if steps > (most := scheduler.config.num_train_timesteps):
        raise SamplingProblem(f"steps is {steps}, more than the {most} of the training's noise schedule")
    try:
        scheduler.set_timesteps(steps, device=device)
    except (ValueError, IndexError) as error:
        raise SamplingProblem(f"{name} refuses steps {steps}: {error}") from None


def check_fit(
    model: DreamLLMForConditionalGeneration, sampling: PictureSampling
) -> tuple[SchedulerMixin, tuple[int, int]]:
    """The scheduler, its timesteps set, and height and width of the latents.

    Raises SamplingProblem for settings that are wrong or do not fit the model.
    """
    check_sampling(sampling)
    scheduler = scheduler_with_steps(sampling, model.config.scheduler_config, model.device)
    return scheduler, latent_size_of(model, sampling)


def latent_size_of(model: DreamLLMForConditionalGeneration, sampling: PictureSampling) -> tuple[int, int]:
    """`latent_size` of the model. Raises SamplingProblem."""
    decoder, config = model.decoder, model.config
    if (most := decoder.largest_side(config)) and (side := max(sampling.height or 0, sampling.width or 0)) > most:
        raise SamplingProblem(f"{side} pixels are more than the {most} that the decoder has positions for")
    scale, step = decoder.pixels_per_latent(config), decoder.side_multiple(config)
    return latent_size(sampling, config.denoiser_config["sample_size"], scale, step)


def compile_denoiser(model: DreamLLMForConditionalGeneration) -> None:
    """Compile the repeated blocks of the denoiser with torch.compile; they share compiled code."""
    if getattr(model.denoiser, "_repeated_blocks", None):
        model.denoiser.compile_repeated_blocks()
    else:
        for block in model.decoder.denoiser_blocks(model.denoiser):
            block.compile()


def initial_noise(
    seeds: Sequence[int], channels: int, height: int, width: int
) -> tuple[torch.Tensor, list[torch.Generator]]:
    """Standard normal noise (M, C, h, w), each picture's from its own seed, and the generators, for further noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = [torch.randn((channels, height, width), generator=generator) for generator in generators]
    return torch.stack(noise), generators


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
    Raises NonFiniteValues where the states, the denoiser or the VAE give NaN or infinity, SamplingProblem for settings
    that do not fit the model.
    """
    scheduler, size = check_fit(model, sampling)
    names = [f"picture {number}" for number in range(len(seeds))] if names is None else names
    check_finite(null_states, ["the null condition"], "hidden states of the dream queries")
    check_finite(states, names, "hidden states of the dream queries")
    noise, generators = initial_noise(seeds, model.config.denoiser_config["in_channels"], *size)
    latents = sample_latents(
        model,
        states,
        null_states,
        noise.to(model.device),
        scheduler,
        sampling.guidance,
        sampling.guidance_rescale,
        sampling.eta,
        generators,
    )
    check_finite(latents, names, "latents after the condition projector and the denoiser")
    return to_pictures(decode_latents(model, latents, names))


@torch.no_grad()
def sample_latents(
    model: DreamLLMForConditionalGeneration,
    states: torch.Tensor,
    null_states: torch.Tensor,
    noise: torch.Tensor,
    scheduler: SchedulerMixin,
    guidance: float,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    generators: torch.Generator | list[torch.Generator] | None = None,
    after_step: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] = lambda step, timestep, latents: latents,
) -> torch.Tensor:
    """Denoise standard normal noise (M, C, h, w) along the timesteps set in `scheduler`; fp32 throughout.

    eta, generators: for schedulers that have an eta, or draw noise at each step; one generator, or one per picture
    after_step: called with number, timestep and latents of each step; returns the latents to continue with
    """
    conditions = model.project(states)  # (M, R, Dc)
    null_conditions = model.project(null_states).expand_as(conditions)
    known = inspect.signature(scheduler.step).parameters
    options = {name: value for name, value in (("eta", eta), ("generator", generators)) if name in known}
    latents, scales = noise.float(), hasattr(scheduler, "scale_model_input")  # those for rectified flow alone do not
    latents = latents * scheduler.init_noise_sigma if scales else latents
    for step, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep) if scales else latents
        prediction = guided_prediction(model, scaled, timestep, conditions, null_conditions, guidance, guidance_rescale)
        latents = after_step(step, timestep, scheduler.step(prediction, timestep, latents, **options).prev_sample)
    return latents


def guided_prediction(
    model: DreamLLMForConditionalGeneration,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditions: torch.Tensor,
    null_conditions: torch.Tensor,
    guidance: float,
    guidance_rescale: float = 0.0,
) -> torch.Tensor:
    """Classifier-free guidance (arXiv 2207.12598): null + guidance * (conditional - null); one call of the denoiser.

    With guidance_rescale the share of it whose standard deviation is that of the conditional prediction.
    """
    if guidance == 1:
        return model.denoise(latents, timestep, conditions)
    both = model.denoise(torch.cat([latents, latents]), timestep, torch.cat([null_conditions, conditions]))
    null, conditional = both.chunk(2)
    guided = null + guidance * (conditional - null)
    return rescale_noise_cfg(guided, conditional, guidance_rescale) if guidance_rescale else guided


@torch.no_grad()
def decode_latents(
    model: DreamLLMForConditionalGeneration, latents: torch.Tensor, names: Sequence[str]
) -> torch.Tensor:
    """Pixels (M, 3, H, W) in [-1, 1] of latents (M, C, h, w). Raises NonFiniteValues, with the picture's name."""
    pixels = model.decoder.decode(model.vae, latents)
    check_finite(pixels, names, "pixels of the VAE")
    return pixels


def to_pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """RGB pictures of pixels (M, 3, H, W) in [-1, 1]."""
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]

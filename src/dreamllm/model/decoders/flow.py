"""Rectified flow (arXiv 2209.03003) as Stable Diffusion 3 trains it (arXiv 2403.03206): functions of `Decoder`.

Noisy latents are (1 - sigma) latents + sigma noise, and the target is the velocity noise - latents. A timestep is
sigma * num_train_timesteps, a real number, as in diffusers' FlowMatchEulerDiscreteScheduler.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import SchedulerMixin
from diffusers.schedulers import KarrasDiffusionSchedulers

from dreamllm.model.diffusion import DecoderProblem, DiffusionNoise, stratified_places

if TYPE_CHECKING:
    from dreamllm.model.config import DreamLLMConfig

EULER, DEIS = "FlowMatchEulerDiscreteScheduler", "DEISMultistepScheduler"


def is_flow(scheduler_config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is one of rectified flow: of a flow-matching class, or of its prediction."""
    is_class = "FlowMatch" in scheduler_config.get("_class_name", "")
    return is_class or scheduler_config.get("prediction_type") == "flow_prediction"


def check(config: DreamLLMConfig) -> None:
    """Raises DecoderProblem for a schedule that is not of rectified flow, and for min-SNR weights."""
    if not is_flow(config.scheduler_config):
        raise DecoderProblem(
            "the scheduler is not one of rectified flow, which the transformer is trained with: expected a "
            "scheduler_config.json of a FlowMatch... class, or with prediction_type flow_prediction"
        )
    if config.snr_gamma is not None:
        raise DecoderProblem("snr_gamma is for decoders that predict noise or velocity of a diffusion; set it to null")


def num_train_timesteps(scheduler_config: Mapping[str, Any]) -> int:
    """The timestep of pure noise."""
    return scheduler_config.get("num_train_timesteps", 1000)


def shift_of(scheduler_config: Mapping[str, Any]) -> float:
    """The schedule's own shift: of a flow-matching scheduler, or of a solver that was given flow sigmas."""
    return scheduler_config.get("flow_shift" if "flow_shift" in scheduler_config else "shift", 1.0) or 1.0


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Map sigmas to s sigma / (1 + (s - 1) sigma), which above 1 moves them to the noisy end."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def draw_timesteps(config: DreamLLMConfig, count: int, generator: torch.Generator | None) -> torch.Tensor:
    """Sigmas from the logit-normal distribution (mean 0, deviation 1), shifted by the schedule and `timestep_shift`.

    Stratified, one falls into each of `count` equally probable parts of the distribution.
    """
    if config.stratified_timesteps:
        uniform = stratified_places(count, generator) / max(1, count)
    else:
        device = "cpu" if generator is None else generator.device
        uniform = torch.rand(count, generator=generator, device=device)
    sigmas = torch.special.ndtri(uniform.double()).sigmoid()
    sigmas = shift_sigmas(sigmas, shift_of(config.scheduler_config) * config.timestep_shift)
    return (sigmas * num_train_timesteps(config.scheduler_config)).float()


def noisy_and_target(
    config: DreamLLMConfig, latents: torch.Tensor, noise: DiffusionNoise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Between latents and noise, and the velocity from the former to the latter."""
    sigmas = (noise.timesteps / num_train_timesteps(config.scheduler_config))[:, None, None, None]
    return sigmas * noise.of_input + (1 - sigmas) * latents, noise.noise - latents


def loss_weights(config: DreamLLMConfig, timesteps: torch.Tensor) -> torch.Tensor | None:
    """None: the distribution of the timesteps is the weighting."""
    return None


def schedulers() -> list[str]:
    """Names of diffusers' schedulers for rectified flow: Euler's, and the solvers that take flow sigmas.

    Not DEIS, which does not arrive where a constant velocity leads: after 50 steps it is off by 0.3 (diffusers 0.42.1).
    """
    solvers = [getattr(diffusers, name) for name in sorted({*KarrasDiffusionSchedulers.__members__} - {DEIS})]
    return [EULER, *(one.__name__ for one in solvers if "use_flow_sigmas" in inspect.signature(one).parameters)]


def make_scheduler(name: str, scheduler_config: Mapping[str, Any]) -> SchedulerMixin:
    """The scheduler of this class name, one of `schedulers()`, with the shift of the configuration."""
    total, shift = num_train_timesteps(scheduler_config), shift_of(scheduler_config)
    if name == EULER:
        options = dict(scheduler_config) if "FlowMatch" in scheduler_config.get("_class_name", "") else {}
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(
            options | {"num_train_timesteps": total, "shift": shift}
        )
    options = {"num_train_timesteps": total, "prediction_type": "flow_prediction"}
    return getattr(diffusers, name)(**options, use_flow_sigmas=True, flow_shift=shift)

"""What the loss of every decoder has in common, as pure functions of tensors (paper section 3.1).

The rest is in `decoders/`. Latents, noise and noisy latents are fp32 in every precision of the networks, because in
bf16 only a fifth of the noise levels would differ. All random numbers are passed in explicitly, as a `DiffusionNoise`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


class DecoderProblem(ValueError):
    """A diffusion decoder that there is none for, or that cannot do what is asked of it: says why."""


@dataclass(frozen=True)
class DiffusionNoise:
    """Every random number of the diffusion loss of M pictures, in the order in which they are drawn.

    With several draws per picture (`noise_draws`), M counts draws; those of one picture are adjacent.
    """

    posterior: torch.Tensor  # (M, C, h, w), of the VAE posterior
    noise: torch.Tensor  # (M, C, h, w), added to the latents; with noise_offset included
    perturbation: torch.Tensor | None  # (M, C, h, w), added to the noise in the input only
    timesteps: torch.Tensor  # (M,), as the decoder draws them
    dropped: torch.Tensor | None  # (M,), True where the null condition replaces the picture's own

    @property
    def of_input(self) -> torch.Tensor:
        """The noise of the denoiser's input."""
        return self.noise if self.perturbation is None else self.noise + self.perturbation

    def to(self, device: torch.device) -> DiffusionNoise:
        """The same numbers on `device`."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})

    def __getitem__(self, pictures: slice) -> DiffusionNoise:
        """The numbers of some of the pictures."""
        return replace(self, **{name: value[pictures] for name, value in vars(self).items() if value is not None})


def draw_noise(
    shape: tuple[int, int, int, int],
    *,
    noise_offset: float = 0.0,
    input_perturbation: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Posterior, noise and perturbation of a DiffusionNoise for latents of `shape` (M, C, h, w).

    In fp32 on the generator's device (default CPU). noise_offset adds noise that is constant over each channel, so that
    the model learns mean brightness; the denoiser predicts it too. input_perturbation adds noise to the input only.
    """
    device = "cpu" if generator is None else generator.device

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device)

    posterior = normal(*shape)
    noise = normal(*shape)
    if noise_offset:
        noise = noise + noise_offset * normal(*shape[:2], 1, 1)
    return posterior, noise, input_perturbation * normal(*shape) if input_perturbation else None


def stratified_places(count: int, generator: torch.Generator | None) -> torch.Tensor:
    """Numbers (count,) from 0 to `count`, one between each two integers, in random order.

    The same expected loss with less variance: a low-discrepancy sampler, as in Variational Diffusion Models (arXiv
    2107.00630).
    """
    device = "cpu" if generator is None else generator.device
    parts = torch.randperm(count, generator=generator, device=device)
    return parts + torch.rand(count, generator=generator, device=device)


def draw_dropped(count: int, share: float, generator: torch.Generator | None = None) -> torch.Tensor | None:
    """Which of `count` pictures are trained with the null condition, (count,); None for a share of 0."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(count, generator=generator, device=device) < share if share else None


def shift_timesteps(timesteps: torch.Tensor, num_timesteps: int, shift: float) -> torch.Tensor:
    """Map timesteps t, as fractions of the schedule, to s t / (1 + (s - 1) t) (SD 3, arXiv 2403.03206)."""
    fractions = (timesteps.double() + 0.5) / num_timesteps
    return (num_timesteps * shift * fractions / (1 + (shift - 1) * fractions)).long()


def drop_conditions(
    conditions: torch.Tensor, null_condition: torch.Tensor, dropped: torch.Tensor | None
) -> torch.Tensor:
    """Replace the conditions (M, Q, D) of the dropped pictures (M,) by the null condition (1 or M, Q, D)."""
    if dropped is None:
        return conditions
    return torch.where(dropped[:, None, None], null_condition.to(conditions.dtype), conditions)


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

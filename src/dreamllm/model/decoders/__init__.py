"""Diffusion decoders: each module of this package says everything about one kind, by the functions of `Decoder`.

    stable_diffusion   UNet2DConditionModel, predicts noise or velocity (Stable Diffusion 1 and 2, as in the paper)
    sdxl               UNet2DConditionModel with a pooled condition and sizes (Stable Diffusion XL)
    sd3                SD3Transformer2DModel, rectified flow with a pooled condition (Stable Diffusion 3 and 3.5)
    sana               SanaTransformer2DModel, rectified flow on the latents of AutoencoderDC (SANA)

`decoder_of` is the only place that chooses among them. docs/parts.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from dreamllm.model import diffusion
from dreamllm.model.decoders import sana, sd3, sdxl, stable_diffusion
from dreamllm.model.diffusion import DecoderProblem, DiffusionNoise

if TYPE_CHECKING:
    from dreamllm.model.config import DreamLLMConfig
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration


class Decoder(Protocol):
    """What a decoder's module has. config: the model's DreamLLMConfig; every denoiser's has sample_size, in_channels.

    M: pictures.  (C, h, w): latents.  Conditions (M, R, Dc): a row for each dream query, then one with the pooled
    condition where there is one (`connector.split_pooled`).  Latents and noise are fp32.
    """

    AUTOENCODER: str
    """Name of the autoencoder's class in diffusers."""
    CONDITION_SCALE: float
    """Initial norm of a connector's conditions, by component: that of the text features of the denoiser's training."""

    # ---- facts from the configuration

    def condition_width(self, config: DreamLLMConfig) -> int:
        """Dc, the width of a condition."""

    def pooled_width(self, config: DreamLLMConfig) -> int:
        """Width of the pooled condition, at most Dc; 0: the denoiser has none."""

    def pixels_per_latent(self, config: DreamLLMConfig) -> int:
        """Scale factor of the autoencoder."""

    def side_multiple(self, config: DreamLLMConfig) -> int:
        """Pixels that height and width of a picture are multiples of."""

    def largest_side(self, config: DreamLLMConfig) -> int | None:
        """Pixels that height and width of a picture have at most; None: as many as the memory allows."""

    def check(self, config: DreamLLMConfig) -> None:
        """Raises DecoderProblem for a noise schedule or an option of the loss that the decoder does not have."""

    # ---- the loss

    def encode(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Statistics of the latents, in fp32, of pictures (M, 3, H, W) in [-1, 1]; what `precompute` stores."""

    def latents_of(self, vae: Any, statistics: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
        """Scaled latents (M, C, h, w) of the statistics and standard normal numbers (M, C, h, w)."""

    def draw_timesteps(self, config: DreamLLMConfig, count: int, generator: torch.Generator | None) -> torch.Tensor:
        """Random timesteps (count,) of the training, on the generator's device (default CPU)."""

    def noisy_and_target(
        self, config: DreamLLMConfig, latents: torch.Tensor, noise: DiffusionNoise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents and what the denoiser should predict for them, both (M, C, h, w)."""

    def loss_weights(self, config: DreamLLMConfig, timesteps: torch.Tensor) -> torch.Tensor | None:
        """Weight of each picture in the loss, (M,); None: all equal."""

    def predict(
        self,
        model: DreamLLMForConditionalGeneration,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: torch.Tensor,
    ) -> torch.Tensor:
        """The denoiser's prediction (M, C, h, w), in its dtype, for timesteps (M,) or one of a scheduler, ()."""

    # ---- sampling, and what other parts of the code do to the networks

    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Pixels (M, 3, H, W), in fp32, of scaled latents."""

    def denoiser_blocks(self, denoiser: Any) -> list[nn.Module]:
        """The blocks that are checkpointed and compiled, in order."""

    def encoder_blocks(self, vae: Any) -> list[nn.Module]:
        """The blocks of the autoencoder's encoder, which are compiled."""

    def cross_attention(self, denoiser: Any) -> dict[str, nn.Module]:
        """Layers in which places of a latent attend to conditions, by name. Raises DecoderProblem if there are none."""


DECODERS: dict[tuple[str, str | None], Decoder] = {  # (class of the denoiser, its addition_embed_type)
    ("UNet2DConditionModel", None): stable_diffusion,
    ("UNet2DConditionModel", "text_time"): sdxl,
    ("SD3Transformer2DModel", None): sd3,
    ("SanaTransformer2DModel", None): sana,
}


def kind_of(denoiser_config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The key in DECODERS of a denoiser's configuration. Raises DecoderProblem for one that is not there."""
    name = str(denoiser_config.get("_class_name", "UNet2DConditionModel"))
    added = denoiser_config.get("addition_embed_type")
    kind = name, None if added is None else str(added)
    if kind not in DECODERS:
        known = ", ".join(sorted({known for known, _ in DECODERS}))
        of = f" with addition_embed_type {str(added)[:80]!a}" if added else ""
        raise DecoderProblem(f"there is no decoder for a denoiser {name[:80]!a}{of}; known are {known} (docs/parts.md)")
    return kind


def decoder_of(denoiser_config: Mapping[str, Any]) -> Decoder:
    """The decoder of a denoiser's configuration (the config.json in unet/ or transformer/). Raises DecoderProblem."""
    return DECODERS[kind_of(denoiser_config)]


def draw_noise(config: DreamLLMConfig, count: int, generator: torch.Generator | None, *, drops: bool) -> DiffusionNoise:
    """Random numbers of the loss of `count` pictures, `noise_draws` times each; see `DreamLLM...draw_noise`.

    drops: whether conditions are dropped
    """
    count, side = count * config.noise_draws, config.denoiser_config["sample_size"]
    images = diffusion.draw_noise(
        (count, config.denoiser_config["in_channels"], side, side),
        noise_offset=config.noise_offset,
        input_perturbation=config.input_perturbation,
        generator=generator,
    )
    timesteps = config.diffusion_decoder.draw_timesteps(config, count, generator)
    dropped = diffusion.draw_dropped(count, config.condition_dropout if drops else 0.0, generator)
    return DiffusionNoise(*images, timesteps, dropped)

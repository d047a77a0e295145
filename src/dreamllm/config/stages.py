"""The sections of an experiment file that are about training: `stages` and `sd_finetuned`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Name, Positive, Section, Share
from dreamllm.config.foundations import Recipe

Part = Literal["language_model", "visual_projector", "dream_queries", "condition_projector", "unet"]

OF_THE_QUERIES = ("dream_queries", "condition_projector")
"""Parts that are trained for one number of dream queries."""


class LossWeights(Section):
    """Weights of the losses (official code: language 1 and diffusion 10)."""

    language: Annotated[float, Field(ge=0)] = 1.0
    diffusion: Annotated[float, Field(ge=0)] = 10.0
    alignment: Annotated[float, Field(ge=0)] = 0.0
    """Of regressing the conditions onto CLIP's features of the picture to draw: for arms of comparison (paper Figure 1
    and last row of Table 3, docs/training.md); 0 = off."""


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685) on the linear layers of the language model, which itself stays as it is.

    Its embeddings and its head are trained whole, since the special tokens begin as random numbers."""

    rank: Count = 64
    """Rank of the adapters."""
    alpha: Positive = 128
    """Scale: what an adapter adds is multiplied by alpha / rank."""


class Stage(Section):
    """One training stage. Defaults are the official code's, where it has the option."""

    init: list[Name] = []
    """Earlier stages whose trained parts are loaded, in order; [] = the foundations alone."""
    trains: Annotated[list[Part], Field(min_length=1)]
    """Parts that are trained, all others are frozen. CLIP and VAE always are, and in the paper the UNet, too (section
    3.2); an arm that regresses conditions onto CLIP trains it in a second stage, as Emu does."""
    lora: Lora | None = None
    """Train the language model through low-rank adapters; null = all of it, as the paper does."""
    mode: Literal["comprehension", "creation", "joint"]
    """comprehension: pictures are read; creation: they are drawn; joint: both (paper Table 3)."""
    mixture: Annotated[dict[Name, Positive], Field(min_length=1)]
    """Weight of each shard set: pairs, stories, instructions, text and contexts of the emoji world, and those of
    `sources`. Weights need not sum to one."""
    read_share: Share = 0.5
    """Share of the pairs that are read in joint mode; the others are drawn (official code: 0.5)."""
    loss_weights: LossWeights = LossWeights()
    steps: Count
    """Optimiser steps."""
    rows_per_batch: Count
    """Packed rows per optimiser step, over all devices."""
    context: Count
    """Tokens per row."""
    learning_rate: Positive
    """Peak learning rate; linear warm-up, cosine to zero."""
    warmup_ratio: Share = 0.003
    """Share of the steps that warm up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW's two decay rates."""
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient."""
    condition_dropout: Share = 0.0
    """Share of drawn pictures whose condition is the null condition (released: 0; recommended there: 0.1)."""
    snr_gamma: Positive | None = None
    """Gamma of min-SNR weighting (arXiv 2303.09556); null = off."""
    noise_offset: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the offset noise; 0 = off."""
    input_perturbation: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the input perturbation (arXiv 2301.11706); 0 = off."""
    stratified_timesteps: bool = False
    """Spread the timesteps of a batch evenly over the noise schedule: the same loss on average, with less noise."""
    timestep_shift: Positive = 1.0
    """Above 1, pictures are noised more often strongly than weakly (arXiv 2403.03206); 1 = evenly, as in the paper."""
    precompute: bool = False
    """Take all pictures of the mixture through CLIP and the VAE once, before the first step, and keep what they make of
    them on disk. Pays where a picture is met more than once, by this stage or by others (docs/training.md)."""
    num_dream_queries: Count | None = None
    """Dream queries of this stage's model, for arms with fewer or more (paper Table 9a); null = `model`'s. Stages
    that it starts from need the same, unless they train neither dream_queries nor condition_projector."""


class SdFinetuning(Recipe):
    """Baseline row of the paper's Table 2: Stable Diffusion fine-tuned on the same pairs with its own text encoder."""

    condition_dropout: Share = 0.1
    """Share of captions replaced by the empty caption."""

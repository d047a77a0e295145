"""The sections of an experiment file about training: `stages` and `sd_finetuned`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Name, Positive, Section, Share, Unique
from dreamllm.config.foundations import Recipe

ConnectorLayers = Annotated[int, Field(ge=0, le=1000)]

Part = Literal["language_model", "visual_projector", "dream_queries", "condition_projector", "unet", "transformer"]

QUERY_PARTS = ("dream_queries", "condition_projector")
"""Parts whose weights depend on the options of `model` in DRAWING_OPTIONS; all others depend on none of them."""

DRAWING_OPTIONS = ("num_dream_queries", "connector_layers", "decoder")
"""Options of `model` that say how images are generated."""

MODEL_OPTIONS = (*DRAWING_OPTIONS, "language_model")
"""Options of `model` that a stage may have in place of the section's."""


class LossWeights(Section):
    """Weights of the losses (official code: language 1 and diffusion 10)."""

    language: Annotated[float, Field(ge=0)] = 1.0
    diffusion: Annotated[float, Field(ge=0)] = 10.0
    alignment: Annotated[float, Field(ge=0)] = 0.0
    """Weight of regressing the conditions onto CLIP features of the target picture, for ablations (paper Figure 1 and
    last row of Table 3, docs/training.md); 0 = off."""


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685) on the linear layers of the language model, whose own weights are frozen.

    Embeddings and output head are trained in full, because the special tokens are initialised randomly."""

    rank: Count = 64
    """Rank of the adapters."""
    alpha: Positive = 128
    """Scale: the output of an adapter is multiplied by alpha / rank."""


class Stage(Section):
    """One training stage. Defaults are those of the official code for all options that it has."""

    init: Annotated[list[Name], Unique] = []
    """Earlier stages whose checkpoints are loaded, in this order; [] = start from the foundations."""
    trains: Annotated[list[Part], Field(min_length=1), Unique]
    """Parts that are trained; all others are frozen. CLIP and VAE are always frozen, and in the paper the UNet is, too
    (section 3.2); an ablation that regresses conditions onto CLIP trains it in a second stage, as Emu does. A decoder
    that is a transformer is called `transformer` (docs/parts.md)."""
    lora: Lora | None = None
    """Train the language model with low-rank adapters; null = train all of its weights, as in the paper."""
    mode: Literal["comprehension", "creation", "joint"]
    """comprehension: pictures are inputs; creation: pictures are targets; joint: both (paper Table 3)."""
    mixture: Annotated[dict[Name, Positive], Field(min_length=1)]
    """Sampling weight of each shard set: pairs, stories, instructions, questions, text and contexts of the emoji world,
    and sets of `sources`. Weights need not sum to 1."""
    read_share: Share = 0.5
    """Mode joint: fraction of the pairs whose picture is an input and not a target (official code: 0.5)."""
    loss_weights: LossWeights = LossWeights()
    steps: Count
    """Optimiser steps."""
    rows_per_batch: Count
    """Packed rows per optimiser step, in total over all devices."""
    context: Count
    """Length of a packed row in tokens."""
    learning_rate: Positive
    """Peak learning rate of AdamW; linear warm-up, then cosine decay to zero."""
    warmup_ratio: Share = 0.003
    """Fraction of the steps that are warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Betas of AdamW."""
    gradient_clip: Positive = 1.0
    """Maximum norm of the gradient."""
    condition_dropout: Share = 0.0
    """Fraction of target pictures whose condition is replaced by the null condition (released code: 0; recommended in
    it: 0.1)."""
    snr_gamma: Positive | None = None
    """Gamma of min-SNR weighting (arXiv 2303.09556); null = off. Not for decoders of rectified flow."""
    noise_draws: Count = 1
    """Noises and timesteps per picture and pass of the language model (paper: 1). The UNet denoises each picture this
    often under the same condition, and the diffusion loss is the mean: less variance for the UNet's time alone."""
    noise_offset: Annotated[float, Field(ge=0)] = 0.0
    """Strength of offset noise; 0 = off."""
    input_perturbation: Annotated[float, Field(ge=0)] = 0.0
    """Strength of input perturbation (arXiv 2301.11706); 0 = off."""
    stratified_timesteps: bool = False
    """Stratified sampling of the timesteps of a batch: the same loss in expectation, with less variance."""
    timestep_shift: Positive = 1.0
    """Values above 1 sample large timesteps more often (arXiv 2403.03206); 1 = uniformly, as in the paper. Decoders of
    rectified flow sample logit-normally, with this shift on top of that of their noise schedule."""
    precompute: bool = False
    """Compute CLIP features and VAE latents of all pictures of the mixture before the first step, and store them on
    disk. Faster where a picture is used more than once, by this stage or by others (docs/training.md)."""
    num_dream_queries: Count | None = None
    """Number of dream queries, for ablations (paper Table 9a); null = that of the section `model`. Stages that it
    starts from need the same number, unless they train neither dream_queries nor condition_projector."""
    connector_layers: ConnectorLayers | None = None
    """In place of `model.connector_layers`, as num_dream_queries."""
    decoder: Name | None = None
    """In place of `model.decoder`, as num_dream_queries."""
    language_model: Name | None = None
    """In place of `model.language_model`; stages that it starts from need the same one."""


class SdFinetuning(Recipe):
    """Baseline of the paper's Table 2: Stable Diffusion with its own text encoder, fine-tuned on the same pairs.

    A step has batch_size times accumulation pictures."""

    mixture: dict[Name, Positive] | None = None
    """Sampling weight of each set of pairs among `sources`; null = the emoji world's pairs, drawn with replacement."""
    accumulation: Count = 1
    """Batches whose gradients are averaged for a step (official code: 2)."""
    condition_dropout: Share = 0.1
    """Fraction of captions replaced by the empty caption."""
    flip: bool = False
    """Mirror every second picture at random (official code: true)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: 5 % linear warm-up, then cosine decay to zero; constant: `learning_rate` throughout (official code)."""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """Betas of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    ema: Share | None = None
    """Decay of the exponential moving average of the weights, which is then the result (official code: 0.9999 at
    most, less in the first steps); null = the last weights."""

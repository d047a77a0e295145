"""The sections `evaluation` and `evaluations` of an experiment file: how models are evaluated, and which on what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Name, Section
from dreamllm.config.pictures import Attention, Latency, PictureProtocol


class TextSampling(Section):
    """How answers and captions are written."""

    num_beams: Count = 1
    """Beams of the search, 1 = greedy (official code: 5)."""
    max_new_tokens: Count = 48
    """Longest answer in tokens."""
    batch_size: Count = 32
    """Items at a time; results do not depend on it."""


class Drawing(Section):
    """How pictures are drawn."""

    scheduler: Annotated[str, Field(pattern=r"Scheduler$")] = "DDIMScheduler"
    """Class name of a diffusers scheduler; its noise schedule comes from the foundation."""
    steps: Count = 25
    """Denoising steps per picture (official code: 150 for COCO FID)."""
    guidance: Annotated[float, Field(ge=1)] = 2.0
    """Scale of classifier-free guidance, 1 = none (official code: 2.0 for COCO FID)."""
    batch_size: Count = 32
    """Pictures at a time; results do not depend on it."""


class StoryTelling(Section):
    """How far free interleaving goes."""

    max_new_tokens: Count = 160
    """Longest story in tokens of text."""
    max_pictures: Count = 6
    """Pictures per story at most."""


class EvaluationSettings(Section):
    """Settings of all evaluations; chosen on the split dev, reported on test."""

    split: Literal["dev", "test"] = "test"
    """Which half of the benchmarks is run."""
    limit: Count | None = None
    """Items per benchmark at most; null = all."""
    prompts: Literal["emoji", "official", "corrected"] = "emoji"
    """Wording of the questions: that of the emoji world's instructions, that of the official evaluation code, or the
    latter without its slips (docs/evaluation.md)."""
    seed: int = 42
    """Picture k of a benchmark is drawn with this number plus k."""
    text: TextSampling = TextSampling()
    drawing: Drawing = Drawing()
    stories: StoryTelling = StoryTelling()
    pictures: PictureProtocol | None = None
    """Also measure drawn pictures as the paper does (docs/pictures.md); null = not."""
    latency: Latency = Latency()
    attention: Attention = Attention()


class Evaluation(Section):
    """A model and the benchmarks it runs."""

    model: Name
    """Name in the tables: a stage; llm (the language model alone), sd (Stable Diffusion with its own text tower) or
    sd_finetuned; or a name of its own with `stages`."""
    stages: list[Name] = []
    """Stages whose checkpoints make up the model, in loading order; [] = the stage called `model`."""
    benchmarks: Annotated[list[Name], Field(min_length=1)]
    """Those of the emoji world (captions, vqa, pope, draw, narratives, stories, language, illustrations, latency,
    in_context, attention), and those of the section `benchmarks`."""
    rewrite: bool = False
    """Rewrite, then draw (paper Table 10): the model writes each prompt anew, and Stable Diffusion draws that."""

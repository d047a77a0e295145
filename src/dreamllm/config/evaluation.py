"""The sections `evaluation` and `evaluations` of an experiment file: how models are evaluated, and which on what."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dreamllm.config.base import Count, Name, Section, Seed, Share, Unique, near
from dreamllm.config.pictures import Attention, Detection, Latency, PictureProtocol


@cache
def scheduler_names() -> list[str]:
    """The schedulers of diffusers that Stable Diffusion's pipeline takes: the enum KarrasDiffusionSchedulers.

    Read from its source, because importing it takes seconds.
    """
    spec = find_spec("diffusers")
    assert spec and spec.origin
    source = Path(spec.origin).with_name("schedulers") / "scheduling_utils.py"
    return sorted(re.findall(r"^    (\w+Scheduler) = \d+$", source.read_text(encoding="utf-8"), re.MULTILINE))


def _is_scheduler(name: str) -> str:
    """Raises ValueError for a scheduler that diffusers does not have."""
    if name not in (known := scheduler_names()):
        raise ValueError(f"{name[:80]!r} is no scheduler of diffusers for Stable Diffusion{near(name, known)}")
    return name


class TextSampling(Section):
    """Decoding of answers and captions."""

    num_beams: Count = 1
    """Beams of beam search; 1 = greedy decoding (official code: 5)."""
    max_new_tokens: Count = 48
    """Maximum length of an answer in tokens."""
    batch_size: Count = 32
    """Items per batch; results do not depend on it."""


class Drawing(Section):
    """Sampling of pictures."""

    scheduler: Annotated[str, AfterValidator(_is_scheduler)] = "DDIMScheduler"
    """Class of the sampler in diffusers; the noise schedule is that of the foundation."""
    steps: Count = 25
    """Denoising steps per picture (official code: 150 for COCO FID)."""
    guidance: Annotated[float, Field(ge=1)] = 2.0
    """Scale of classifier-free guidance; 1 = none (official code: 2.0 for COCO FID)."""
    guidance_rescale: Share = 0.0
    """Share of the guided prediction whose standard deviation is set to that of the conditional one (arXiv 2305.08891;
    official code: 0)."""
    eta: Share = 0.0
    """Noise of DDIMScheduler's steps; 0 = none (official code: 0). Schedulers without it are refused."""
    negative_prompt: Annotated[str, Field(max_length=10_000)] = ""
    """What guidance leads away from; "" = the empty prompt. The official demonstration has a long one."""
    height: Count | None = None
    """Height of the pictures in pixels, a multiple of the VAE's factor (8); null = that of the UNet's training."""
    width: Count | None = None
    """Width of the pictures, as `height`."""
    batch_size: Count = 32
    """Pictures per batch; results do not depend on it."""

    @model_validator(mode="after")
    def _have_an_effect(self) -> Drawing:
        if self.guidance == 1 and (self.guidance_rescale or self.negative_prompt):
            raise ValueError("without guidance (1), guidance_rescale and negative_prompt have no effect")
        return self


class StoryTelling(Section):
    """Limits of free interleaved generation."""

    max_new_tokens: Count = 160
    """Maximum text length of a story in tokens."""
    max_pictures: Count = 6
    """Maximum number of pictures in a story."""


WITHOUT_EFFECT = {"text": {"batch_size"}, "drawing": {"batch_size"}}
"""Settings of an evaluation that no result depends on: a change reruns nothing, and predictions do not record them."""


class EvaluationSettings(Section):
    """Settings of all evaluations. Choose them on the split dev, and report results on test."""

    split: Literal["dev", "test"] = "test"
    """Split of the benchmarks to evaluate on."""
    limit: Count | None = None
    """Maximum number of items per benchmark; null = all."""
    prompts: Literal["emoji", "official", "corrected"] = "emoji"
    """Wording of the prompts: that of the emoji world's instructions, that of the official evaluation code, or the
    latter with its errors corrected (docs/evaluation.md)."""
    seed: Seed = 42
    """The seed of the k-th picture of a benchmark is this number plus k."""
    text: TextSampling = TextSampling()
    drawing: Drawing = Drawing()
    stories: StoryTelling = StoryTelling()
    pictures: PictureProtocol | None = None
    """Compute FID and CLIP score of generated pictures by the paper's protocol (docs/pictures.md); null = do not."""
    detection: Detection | None = None
    """Score the images of the task geneval by an object detector; null = do not."""
    latency: Latency = Latency()
    attention: Attention = Attention()


class Evaluation(Section):
    """A model and the benchmarks it is evaluated on."""

    model: Name
    """Name in the tables: that of a stage; llm (the language model alone), sd (Stable Diffusion with its own text
    encoder) or sd_finetuned; or any name, with `stages`."""
    stages: Annotated[list[Name], Unique] = []
    """Stages whose checkpoints are loaded, in this order; [] = the stage called `model`."""
    benchmarks: Annotated[list[Name], Field(min_length=1), Unique]
    """Those of the emoji world (captions, vqa, pope, draw, draw_human, narratives, stories, language,
    illustrations, latency, in_context, attention), and those of the section `benchmarks`."""
    seeds: Count | None = None
    """Evaluate in the runs of the first so many `seeds` of the experiment; null = of all."""
    rewrite: bool = False
    """Rewrite, then draw (paper Table 10): the model rewrites each prompt, and Stable Diffusion draws the result."""

"""The sections of an experiment file that are about public data sets (`experiment.py`, docs/sources.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dreamllm.config.base import Count, Section, Share


class SourceSettings(Section):
    """How a public data set is used: what of it becomes documents. An evaluation set has nothing to choose."""

    folder: str | None = None
    """Where it is made: addresses, fetched pictures and shards/; null = data/sources/NAME. Experiments that use a set
    alike may share a folder."""
    candidates: Count | None = None
    """Records read from the beginning of the set at most; null = all. Of the web's pictures many are gone, so this is
    more than `documents`."""
    documents: Count | None = None
    """Documents kept at most; null = all that can be made."""
    picture_side: Count = 512
    """Shorter side of a stored picture in pixels at most (Stable Diffusion 2.1 draws 512)."""
    smallest_picture: Count = 1
    """Pictures with a shorter side than this are left out (official code: 128 for the third stage's documents)."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = 95
    """Quality of the stored JPEG pictures; null = PNG, without any loss and bigger and eight times slower to write."""
    min_similarity: Share = 0.0
    """MMC4: pictures whose CLIP similarity with their sentence is lower are left out (paper: 0.25)."""


class Service(Section):
    """A language model behind OpenAI's chat completions."""

    endpoint: str | None = None
    """Base address of an OpenAI-compatible service, such as http://localhost:8000/v1; null = none. The key comes from
    the environment variable OPENAI_API_KEY."""
    model: str = ""
    """Name of the service's model (paper: GPT-4)."""
    parallel: Count = 8
    """Requests under way at a time."""
    dollars_per_million: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.0, 0.0)
    """Price of a million tokens in and out, for the count of the cost."""

    @model_validator(mode="after")
    def _has_model(self) -> Service:
        if self.endpoint and not self.model:
            raise ValueError("an endpoint needs the name of its model")
        return self


class InstructionWriter(Service):
    """Who writes the instructions of the paper's two sets that were never released; without an endpoint templates do,
    offline."""

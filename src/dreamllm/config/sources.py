"""The sections of an experiment file about public data sets (`experiment.py`, docs/sources.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dreamllm.config.base import Address, Count, OwnFolder, Section, Share


class SourceSettings(Section):
    """Which part of a public data set becomes documents, and how. Evaluation sets have no settings."""

    folder: OwnFolder | None = None
    """Folder below data/ for addresses, downloaded pictures and shards/; null = data/sources/NAME. Experiments with the
    same settings of a set may share it."""
    candidates: Count | None = None
    """Maximum number of records whose pictures are downloaded, from the beginning of the set; null = all. Choose more
    than `documents`, since many addresses on the web are dead."""
    documents: Count | None = None
    """Maximum number of documents; null = all that can be made."""
    picture_side: Count = 512
    """Maximum length of the shorter side of a stored picture in pixels (Stable Diffusion 2.1 generates 512)."""
    smallest_picture: Count = 8
    """Minimum length of the shorter side in pixels; smaller pictures (spacers, rules, tracking pixels) are left out
    (official code: pairs of the third stage are wider and higher than 128)."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = 95
    """Quality of stored JPEG pictures; null = PNG, which is lossless, larger, and eight times slower to write."""
    min_similarity: Share = 0.0
    """MMC4: minimum CLIP similarity of a picture with its sentence; others are left out (paper: 0.25)."""
    private_hosts: bool = False
    """Ask for pictures at addresses of this machine and of the local network, too; by default they are left out, since
    anybody may have put them into a public list."""


class Service(Section):
    """A language model with OpenAI's chat completions API."""

    endpoint: Address | None = None
    """Base address of the service, such as http://localhost:8000/v1; null = none. The key is read from the environment
    variable OPENAI_API_KEY."""
    model: str = ""
    """Name of the model (paper: GPT-4; official code: ChatGPT-3.5 for the instruction sets)."""
    parallel: Count = 8
    """Maximum number of concurrent requests."""
    dollars_per_million: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.0, 0.0)
    """Price of a million input tokens and of a million output tokens, to report the cost."""

    @model_validator(mode="after")
    def _has_model(self) -> Service:
        if self.endpoint and not self.model:
            raise ValueError("an endpoint needs the name of its model")
        return self


class InstructionWriter(Service):
    """The service that writes instructions for the paper's two unreleased sets; without an endpoint they are made from
    templates, offline."""

"""The sections of an experiment file about data sets, public ones and your own (docs/sources.md, docs/your-data.md)."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from dreamllm.config.base import Address, Count, InputFolder, OwnFolder, Section, Share

OwnFormat = Literal[
    "image_folder",
    "llava",
    "llava_pairs",
    "webdataset",
    "interleaved_jsonl",
    "documents",
    "shard_list",
    "coco_captions",
    "vqa",
    "pope",
    "prompts",
    "as_is",
]
"""Formats of people's own data: the first seven of training sets, the others of evaluation sets."""


class SourceSettings(Section):
    """Which part of a data set becomes documents, and how: a public one, or with `path` your own. Evaluation sets need
    no settings but `path`, `format` and `licence`."""

    path: InputFolder | None = None
    """Folder with your own data, absolute or relative to the repository's root; it is read, and nothing is written to
    it (docs/your-data.md). null = the public set of this name in data/sources.yaml."""
    format: OwnFormat | None = None
    """Format of your own data. For mixtures: image_folder (images with captions), llava (conversations), llava_pairs,
    webdataset (tar shards), interleaved_jsonl, documents (shards of this project), shard_list (a list of such
    shards, which are read from where they are while training). For benchmarks: coco_captions, vqa, pope, prompts,
    as_is."""
    licence: Annotated[str, Field(max_length=200)] = ""
    """Licence of your own data, for the audit and the model card, such as CC BY 4.0 or private."""
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

    @model_validator(mode="after")
    def _is_described(self) -> SourceSettings:
        if self.path and not self.format:
            raise ValueError(f"your own data need a format, one of {', '.join(get_args(OwnFormat))}")
        if self.path and not self.licence.strip():
            raise ValueError("your own data need a licence, such as CC BY 4.0 or private")
        if not self.path and (self.format or self.licence):
            raise ValueError(
                "format and licence are of your own data, which need a path, too; data/sources.yaml has "
                "those of public sets"
            )
        return self


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

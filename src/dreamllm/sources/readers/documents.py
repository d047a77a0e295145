"""Shards of Documents in this project's own form (docs/data.md), as `dreamllm.data.shards` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dreamllm.config.sources import SourceSettings
from dreamllm.data import shards
from dreamllm.data.document import Document, Picture
from dreamllm.sources.picture_files import picture_problem, shrunk
from dreamllm.sources.readers import Inputs
from dreamllm.sources.readers.webdataset import shards_below
from dreamllm.sources.records import Rejected


def units(inputs: Inputs) -> Iterator[Path]:
    """The shards. Raises BuildProblem when there are none."""
    yield from shards_below(inputs.raw)


def documents(unit: Path, settings: SourceSettings) -> Iterator[Document | Rejected]:
    """The documents of one shard, their pictures no larger than the settings say."""
    problems: list[shards.ShardProblem] = []
    for record in shards.index(unit, problems.append):
        try:
            document = shards.load(record)
        except shards.ShardProblem as problem:
            yield Rejected("document is damaged", str(problem))
            continue
        try:
            parts = tuple(
                replace(part, image=shrunk(part.image, settings.picture_side, settings.smallest_picture))
                if isinstance(part, Picture)
                else part
                for part in document.parts
            )
        except ValueError as error:
            yield Rejected(picture_problem(error), f"{unit}, record {record.key}: {error}")
            continue
        yield replace(document, id=f"{unit.stem}-{record.key}", parts=parts)
    for problem in problems:
        yield Rejected("shard is damaged", str(problem))

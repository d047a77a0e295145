"""Interleaved documents of web pages whose pictures are named by address: what MMC4 and OBELICS share.

A picture belongs to its own page alone. One that was not downloaded is left out and counted and never moves another
one; a page without any picture left is rejected.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.config.sources import SourceSettings
from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.sources import picture_index
from dreamllm.sources.picture_files import picture, picture_problem
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import BuildProblem, Member, Rejected, members
from dreamllm.sources.urls import records_taken

Page = list[str | tuple[str, float | None]]
"""A page in reading order: texts, and pictures as (address, similarity with the text or None)."""
Pages = Iterable[tuple[str, Page | Rejected, dict[str, Any]]]
"""Pages as (place, page, meta)."""
ReadPages = Callable[[Member, SourceSettings], Pages]
"""Reads the pages of a file."""


@dataclass(frozen=True)
class Unit:
    """A file of pages, its reader, the shards and the index of its pictures, and how many of its records are taken."""

    file: Member
    pages: ReadPages
    pictures: Path
    index: Path
    records: int


def units(inputs: Inputs, suffix: str, pages: ReadPages) -> Iterator[Unit]:
    """The files from which `list-urls` took records. Lists the downloaded pictures first.

    Raises BuildProblem without downloaded pictures or without the output of `list-urls`.
    """
    if inputs.downloaded is None or inputs.urls is None:
        raise BuildProblem("interleaved documents need --pictures and --urls")
    index, taken = inputs.scratch / "pictures.sqlite", records_taken(inputs.urls)
    print(f"{inputs.downloaded}: {picture_index.write(inputs.downloaded, index)}", flush=True)
    for file in members(inputs.raw, suffix):
        if taken.get(str(file)):
            yield Unit(file, pages, inputs.downloaded, index, taken[str(file)])


def addresses(pages: Pages) -> Iterator[list[dict[str, str]] | Rejected]:
    """The addresses of the pictures of each page."""
    for _, page, _ in pages:
        yield page if isinstance(page, Rejected) else [{"url": part[0]} for part in page if not isinstance(part, str)]


def documents(unit: Unit, settings: SourceSettings) -> Iterator[Document | Rejected]:
    """The interleaved documents of one file, and what was left out."""
    taken = itertools.islice(unit.pages(unit.file, settings), unit.records)
    for number, (where, page, meta) in enumerate(taken):
        if isinstance(page, Rejected):
            yield page
            continue
        parts: list[Part] = []
        for part in page:
            if isinstance(part, str):
                if part:
                    parts.append(Text(part))
                continue
            url, _ = part
            fetched = picture_index.read(url, unit.pictures, unit.index)
            if fetched is None:
                yield Rejected("picture was not fetched", f"{where}: {url}", whole=False)
                continue
            try:
                data, turned = fetched
                parts.append(Picture(picture(data, settings.picture_side, settings.smallest_picture, turned)))
            except ValueError as error:
                yield Rejected(picture_problem(error), f"{where}: {url} {error}", whole=False)
        yield complete(f"{unit.file.name}-{number:08d}", parts, where, meta)


def complete(id_: str, parts: Sequence[Part], where: str, meta: dict[str, Any]) -> Document | Rejected:
    """The document of the parts that are left, or why there is none."""
    parts = _join_texts(parts)
    if not any(isinstance(part, Picture) for part in parts):
        return Rejected("no picture is left", where)
    if not any(isinstance(part, Text) for part in parts):
        return Rejected("no text", where)
    return Document(id_, "interleaved", tuple(parts), meta)


def _join_texts(parts: Sequence[Part]) -> list[Part]:
    """Join neighbouring texts, between which a picture was left out."""
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, Text) and isinstance(joined[-1], Text):
            joined[-1] = Text(f"{joined[-1].text} {part.text}")
        else:
            joined.append(part)
    return joined

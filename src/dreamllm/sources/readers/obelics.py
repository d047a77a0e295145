"""OBELICS: parquet rows {"images": addresses or None, "texts": texts or None}.

The two lists have one length, and exactly one of them has a value at each place (the set's card on the Hub).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dreamllm.config.sources import SourceSettings
from dreamllm.sources import interleaved
from dreamllm.sources.interleaved import Page, Unit
from dreamllm.sources.manifest import Source
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import Member, Rejected, read_parquet

SUFFIX, CAPTIONS = ".parquet", False
documents = interleaved.documents


def units(inputs: Inputs) -> Iterator[Unit]:
    """The files of pages."""
    return interleaved.units(inputs, SUFFIX, pages)


def addresses(member: Member, source: Source, settings: SourceSettings) -> Iterator[list[dict[str, str]] | Rejected]:
    """The addresses of the pictures of each page."""
    return interleaved.addresses(pages(member, settings))


def pages(file: Member, settings: SourceSettings) -> Iterator[tuple[str, Page | Rejected, dict[str, Any]]]:
    """The pages of a file as (place, page, meta)."""
    for where, record in read_parquet(file, ["images", "texts"], 256):
        yield where, record if isinstance(record, Rejected) else page(record, where), {}


def page(record: dict[str, Any], where: str = "") -> Page | Rejected:
    """A page in reading order."""
    urls, texts = record.get("images"), record.get("texts")
    if not isinstance(urls, list) or not isinstance(texts, list) or len(urls) != len(texts):
        return Rejected("images and texts do not fit", where)
    parts: Page = []
    for url, text in zip(urls, texts, strict=True):
        if (url is None) == (text is None) or not isinstance(url if text is None else text, str):
            return Rejected("images and texts do not fit", where)
        if url is not None:
            parts.append((url, None))
        elif text.strip():
            parts.append(text.strip())
    return parts

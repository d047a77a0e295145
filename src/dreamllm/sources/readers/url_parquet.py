"""Pairs whose files are parquet tables with columns for the address and the caption of a picture."""

from __future__ import annotations

from collections.abc import Iterator

from dreamllm.config.sources import SourceSettings
from dreamllm.sources import img2dataset
from dreamllm.sources.manifest import Source
from dreamllm.sources.records import Member, Rejected, read_parquet

SUFFIX, CAPTIONS = ".parquet", True
units, documents = img2dataset.units, img2dataset.documents


def addresses(member: Member, source: Source, settings: SourceSettings) -> Iterator[list[dict[str, str]] | Rejected]:
    """The address and caption of each row, by the names in `source.columns`."""
    rows = read_parquet(member, [source.columns["url"], source.columns["caption"]], 10_000)
    return img2dataset.addresses(rows, source)

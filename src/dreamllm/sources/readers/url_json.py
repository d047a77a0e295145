"""Pairs whose files are JSON lists of records with the address and the caption of a picture."""

from __future__ import annotations

from collections.abc import Iterator

from dreamllm.config.sources import SourceSettings
from dreamllm.sources import img2dataset
from dreamllm.sources.manifest import Source
from dreamllm.sources.records import Member, Rejected, read_list

SUFFIX, CAPTIONS = ".json", True
units, documents = img2dataset.units, img2dataset.documents


def addresses(member: Member, source: Source, settings: SourceSettings) -> Iterator[list[dict[str, str]] | Rejected]:
    """The address and caption of each record, by the names in `source.columns`."""
    return img2dataset.addresses(read_list(member), source)

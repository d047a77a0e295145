"""Runs of records of one big file, so that several processes can work on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dreamllm.sources.records import Folders, Rejected

SIZE = 2000


@dataclass(frozen=True)
class Chunk:
    """Some records of a file: the number of the first, (place, record) pairs, and the folders of their pictures."""

    name: str
    first: int
    records: tuple[tuple[str, dict[str, Any] | Rejected], ...]
    folders: Folders

    def __iter__(self) -> Iterator[tuple[int, str, dict[str, Any] | Rejected]]:
        for number, (where, record) in enumerate(self.records, self.first):
            yield number, where, record


def chunks(
    records: Iterable[tuple[str, dict[str, Any] | Rejected]], name: str, folders: Folders, size: int = SIZE
) -> Iterator[Chunk]:
    """The records in runs of `size`."""
    records = iter(records)
    for first in itertools.count(0, size):
        run = tuple(itertools.islice(records, size))
        if not run:
            return
        yield Chunk(name, first, run, folders)

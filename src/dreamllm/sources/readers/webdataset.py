"""WebDataset tar shards of pairs: KEY.jpg (or .jpeg, .png, .webp) and its caption KEY.txt, in any folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreamllm.sources import img2dataset
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import BuildProblem, files_below

documents = img2dataset.documents


def units(inputs: Inputs) -> Iterator[Path]:
    """The shards. Raises BuildProblem when there are none."""
    yield from shards_below(inputs.raw)


def shards_below(folder: Path) -> list[Path]:
    """All tar files below a folder, sorted. Raises BuildProblem when there are none."""
    found = [path for path in files_below(folder) if path.suffix == ".tar"]
    if not found:
        raise BuildProblem(f"{folder}: has no shard; names of shards end in .tar, and they are not compressed")
    return found

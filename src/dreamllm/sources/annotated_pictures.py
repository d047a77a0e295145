"""Pictures with annotations in separate files: what the readers of COCO, Localized Narratives, GQA and LLaVA share.

Big files are cut into chunks of records, so that several processes can work on one file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dreamllm.config.sources import SourceSettings
from dreamllm.data.document import Document, Kind, Part, Picture, Text
from dreamllm.sources.picture_files import Folders, picture, picture_files, picture_problem
from dreamllm.sources.records import Rejected

CHUNK = 2000  # records

Records = Iterator[tuple[str, dict[str, Any] | Rejected]]
"""Records with their places. Those of the functions below have the keys picture (a file name) and id."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of a file: number of the first, (place, record) pairs, and the folders of their pictures."""

    name: str
    first: int
    records: tuple[tuple[str, dict[str, Any] | Rejected], ...]
    folders: Folders

    def __iter__(self) -> Iterator[tuple[int, str, dict[str, Any] | Rejected]]:
        for number, (where, record) in enumerate(self.records, self.first):
            yield number, where, record


def chunks(records: Records, name: str, folders: Folders, size: int = CHUNK) -> Iterator[Chunk]:
    """The records in chunks of `size`."""
    for first in itertools.count(0, size):
        chunk = tuple(itertools.islice(records, size))
        if not chunk:
            return
        yield Chunk(name, first, chunk, folders)


def pair_documents(unit: Chunk, settings: SourceSettings) -> Iterator[Document | Rejected]:
    """Pairs of records {"picture", "caption", "id"}."""

    def parts(record: dict[str, Any], image: Image.Image) -> tuple[Part, ...] | str:
        caption = record["caption"] if isinstance(record["caption"], str) else ""
        caption = " ".join(caption.split())
        return (Picture(image), Text(caption)) if caption else "caption is empty"

    return documents(unit, settings, "pair", parts)


def documents(
    unit: Chunk,
    settings: SourceSettings,
    kind: Kind,
    parts_of: Callable[[dict[str, Any], Image.Image], tuple[Part, ...] | str],
) -> Iterator[Document | Rejected]:
    """One document for each record. parts_of(record, picture): the document's parts, or why there are none."""
    for number, where, record in unit:
        if isinstance(record, Rejected):
            yield record
            continue
        image = load_picture(unit, where, record["picture"], settings)
        if isinstance(image, Rejected):
            yield image
            continue
        parts = parts_of(record, image)
        if isinstance(parts, str):
            yield Rejected(parts, where)
        else:
            yield Document(f"{unit.name}-{number:08d}", kind, parts, {"id": record["id"]})


def load_picture(unit: Chunk, where: str, name: Any, settings: SourceSettings) -> Image.Image | Rejected:
    """The picture called `name`: a path with a folder, or the name of a file in whatever folder or archive."""
    try:
        if not isinstance(name, str):
            raise ValueError(f"the name of a picture is {name!r}")
        files = picture_files(unit.folders)
        data = files.read(name) if "/" in name else files.read_by_name(name)
        return picture(data, settings.picture_side, settings.smallest_picture)
    except KeyError:
        return Rejected("picture is not there", f"{where}: {name}")
    except ValueError as error:
        return Rejected(picture_problem(error), f"{where}: {error}")

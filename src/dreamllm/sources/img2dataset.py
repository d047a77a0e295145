"""Pairs of picture and caption in the tar shards of img2dataset: KEY.jpg, KEY.txt and KEY.json for each pair.

img2dataset numbers the keys, writes only pictures that it could download, and keeps the caption in KEY.txt (also in
KEY.json, with the address). Official code: unified_it_pair_webdataset.py, which also drops pairs without a caption.

workflow/fetch_pictures.sh has it keep the files as they were served. By default it decodes them with OpenCV and encodes
them again: EXIF orientation is then in KEY.json alone, and 16-bit pictures are saturated to white, which cannot be
undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dreamllm.config.sources import SourceSettings
from dreamllm.data import shards
from dreamllm.data.damage import LARGEST_PICTURE, is_fork, parse_json
from dreamllm.data.document import Document, Picture, Text
from dreamllm.sources.manifest import Source
from dreamllm.sources.picture_files import picture, picture_problem
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import Rejected, parse

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
ORIENTATIONS = (  # ExifRead's names of 1 to 8, which img2dataset records
    "Horizontal (normal)",
    "Mirrored horizontal",
    "Rotated 180",
    "Mirrored vertical",
    "Mirrored horizontal then rotated 90 CCW",
    "Rotated 90 CW",
    "Mirrored horizontal then rotated 90 CW",
    "Rotated 90 CCW",
)


def units(inputs: Inputs) -> Iterator[Path]:
    """The shards."""
    yield from tars(inputs.downloaded or inputs.raw)


def tars(folder: Path) -> list[Path]:
    """The shards in a folder, sorted."""
    return sorted(path for path in folder.glob("*.tar") if not is_fork(path.name))


def documents(unit: Path, settings: SourceSettings) -> Iterator[Document | Rejected]:
    """The pairs of one shard."""
    for where, members in read_samples(unit):
        if isinstance(members, Rejected):
            yield members
            continue
        suffix = next((suffix for suffix in PICTURE_SUFFIXES if suffix in members), None)
        try:
            caption = " ".join(members.get("txt", b"").decode("utf-8-sig").split())
        except UnicodeDecodeError as error:
            yield Rejected("caption is not UTF-8", f"{where}: {error}")
            continue
        if suffix is None:
            yield Rejected("no picture", where)
        elif not caption:
            yield Rejected("caption is empty", where)
        else:
            try:
                recorded = metadata(members.get("json", b"{}"))
                turned = orientation(recorded)
                image = picture(members[suffix], settings.picture_side, settings.smallest_picture, turned)
            except ValueError as error:
                yield Rejected(picture_problem(error), f"{where}: {error}")
                continue
            key = where.rpartition(" ")[2]
            about = {name: recorded.get(name) for name in ("url", "sha256")}
            meta = {name: value for name, value in about.items() if value and isinstance(value, str)}
            yield Document(f"{unit.stem}-{key}", "pair", (Picture(image), Text(caption)), meta)


def addresses(
    records: Iterable[tuple[str, dict[str, Any] | Rejected]], source: Source
) -> Iterator[list[dict[str, str]] | Rejected]:
    """The address and caption of each record, by the names in `source.columns`, as a list of one."""
    for where, record in records:
        if isinstance(record, Rejected):
            yield record
            continue
        if missing := [name for name in source.columns.values() if name not in record]:
            where = f"{where}, which has no field {', '.join(missing)}, but {', '.join(record) or 'none'}"
        url, caption = record.get(source.columns["url"]), record.get(source.columns["caption"])
        if not isinstance(url, str) or not url.strip():
            yield Rejected("no address", where)
        elif not isinstance(caption, str) or not caption.strip():
            yield Rejected("caption is empty", where)
        else:
            yield [{"url": url.strip(), "caption": caption}]


def read_samples(tar: Path) -> Iterator[tuple[str, dict[str, bytes] | Rejected]]:
    """The samples of a tar shard as (place, files by suffix). Nothing is unpacked to disk.

    Rejected are samples with a repeated key or with a key that leads out of a folder, and all that follows a damaged
    header.
    """
    problems: list[shards.ShardProblem] = []
    seen: set[str] = set()
    records = shards.index(tar, problems.append)
    for record in sorted(records, key=lambda record: record.key):  # img2dataset writes them as they arrive
        where = f"{tar}, record {record.key}"
        path = PurePosixPath(record.key)
        suffixes = [suffix for suffix, _, _ in record.members]
        if path.is_absolute() or ".." in path.parts:
            yield where, Rejected("name leads out of its folder", where)
        elif record.key in seen or len(set(suffixes)) < len(suffixes):
            yield where, Rejected("duplicate key", where)
        elif any(size > LARGEST_PICTURE for _, _, size in record.members):
            yield where, Rejected("file is too large", where)
        else:
            members = {}
            with tar.open("rb") as file:
                for suffix, offset, size in record.members:
                    file.seek(offset)
                    members[suffix] = file.read(size)
            yield where, members
        seen.add(record.key)
    for problem in problems:
        yield str(tar), Rejected("shard is damaged", str(problem))


def metadata(content: bytes) -> dict[str, Any]:
    """What img2dataset recorded of a picture, from its KEY.json; {} for JSON that is no object. Raises ValueError."""
    recorded = parse(content.decode("utf-8-sig"))
    return recorded if isinstance(recorded, dict) else {}


def orientation(recorded: Mapping[str, Any]) -> int:
    """EXIF's number, 1 to 8, of the original picture's orientation, from its KEY.json; 1 where none is recorded.

    Also 1 for a TIFF file, which OpenCV turns upright itself.
    """
    try:
        exif = parse_json(recorded.get("exif") or "{}")
        name = None if "Image StripOffsets" in exif or "Image TileOffsets" in exif else exif.get("Image Orientation")
    except (TypeError, ValueError, AttributeError):  # no string, no JSON, no object
        name = None
    return ORIENTATIONS.index(name) + 1 if name in ORIENTATIONS else 1

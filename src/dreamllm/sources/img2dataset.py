"""Pairs of picture and caption in the tar shards of img2dataset: KEY.jpg, KEY.txt and KEY.json for each pair.

img2dataset numbers the keys, writes only pictures that it could download, and keeps the caption in KEY.txt (also in
KEY.json, with the address). Official code: unified_it_pair_webdataset.py, which also drops pairs without a caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dreamllm.config.sources import SourceSettings
from dreamllm.data import shards
from dreamllm.data.document import Document, Picture, Text
from dreamllm.sources.manifest import Source
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import Rejected, parse, picture, picture_problem

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


def units(inputs: Inputs) -> Iterator[Path]:
    """The shards."""
    yield from sorted((inputs.downloaded or inputs.raw).glob("*.tar"))


def documents(unit: Path, settings: SourceSettings) -> Iterator[Document | Rejected]:
    """The pairs of one shard."""
    for where, members in read_samples(unit):
        if isinstance(members, Rejected):
            yield members
            continue
        suffix = next((suffix for suffix in PICTURE_SUFFIXES if suffix in members), None)
        caption = " ".join(members.get("txt", b"").decode("utf-8", "replace").split())
        if suffix is None:
            yield Rejected("no picture", where)
        elif not caption:
            yield Rejected("caption is empty", where)
        else:
            try:
                image = picture(members[suffix], settings.picture_side, settings.smallest_picture)
                meta = _meta(members)
            except ValueError as error:
                yield Rejected(picture_problem(error), f"{where}: {error}")
                continue
            key = where.rpartition(" ")[2]
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


def _meta(members: dict[str, bytes]) -> dict[str, Any]:
    """The address and digest of a picture, as img2dataset recorded them."""
    if "json" not in members:
        return {}
    recorded = parse(members["json"].decode("utf-8"))
    return {key: recorded[key] for key in ("url", "sha256") if isinstance(recorded, dict) and recorded.get(key)}

"""Pairs of picture and caption in the tar shards of img2dataset: KEY.jpg, KEY.txt and KEY.json per pair.

img2dataset numbers its keys, writes only pictures that it could fetch, and keeps the caption in KEY.txt (also in
KEY.json, with the address). Official code: unified_it_pair_webdataset.py, which also drops pairs without a caption.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dreamllm.config.sources import SourceUse
from dreamllm.data import shards
from dreamllm.data.document import Document, Picture, Text
from dreamllm.sources.records import Folders, Rejected, parse, picture

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


def units(raw: Path, fetched: Path | None, folders: Folders) -> Iterator[Path]:
    """The shards, each of which can be read on its own."""
    yield from sorted((fetched or raw).glob("*.tar"))


def documents(unit: Path, use: SourceUse) -> Iterator[Document | Rejected]:
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
                image = picture(members[suffix], use.picture_side, use.smallest_picture)
                meta = _meta(members)
            except ValueError as error:
                yield Rejected(reason(error), f"{where}: {error}")
                continue
            key = where.rpartition(" ")[2]
            yield Document(f"{unit.stem}-{key}", "pair", (Picture(image), Text(caption)), meta)


def reason(error: ValueError) -> str:
    """Why a picture is not used, in words that are the same for all such pictures."""
    text = str(error)
    return "picture is too small" if text.startswith("is smaller") else "picture or its data cannot be read"


def read_samples(tar: Path) -> Iterator[tuple[str, dict[str, bytes] | Rejected]]:
    """The samples of a tar shard as (place, files by suffix). Nothing is unpacked, so no name can lead out of a folder.

    A sample whose key comes a second time, or leads out of a folder, is Rejected; so is what follows a damaged header.
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
            yield where, Rejected("key stands twice", where)
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
    """What img2dataset knows of a picture: its address and digest."""
    if "json" not in members:
        return {}
    known = parse(members["json"].decode("utf-8"))
    return {key: known[key] for key in ("url", "sha256") if isinstance(known, dict) and known.get(key)}

"""Documents in WebDataset tar shards: one `KEY.json` and its pictures `KEY.0.png`, `KEY.1.png`, ... per document.

    {"id": "story-17", "kind": "interleaved", "meta": {},
     "parts": [{"text": "A red fish.", "role": ""}, {"image": "0.png", "role": ""}]}

Shards are written by webdataset and can be read by it (tested), but are read here by an index of their tar headers and
byte offsets: webdataset's reader does not notice a truncated shard and has no random access. `mixture.py` decides the
order. A damaged document loses no other: documents are read whole or not at all.
"""

from __future__ import annotations

import io
import json
import mmap
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from PIL import Image

from dreamllm.atomic import new_file
from dreamllm.data import images
from dreamllm.data.damage import damage_as, parse_json
from dreamllm.data.document import Document, Part, Picture, Text

if TYPE_CHECKING:
    from dreamllm.data.remote import RemoteShard

MEMBER_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")  # webdataset's rule: a key ends at the file name's first dot
PLACEHOLDER = Image.new("RGB", (1, 1))  # in place of a picture that is not decoded
EMPTY_BLOCK = bytes(tarfile.BLOCKSIZE)  # closes every tar archive
PLAIN_NAME = re.compile(rb"([\x20-\x7e]{1,100})\0*")  # POSIX ustar: all of the name, in the first 100 bytes
# Of a regular file: mode, owners, size, date, checksum, type, link, magic, names, devices, prefix.
PLAIN_REST = re.compile(rb".{24}([0-7]{11})\0.{12}([0-7]{6})\0 0\0{100}ustar\x0000.{80}\0{167}", re.DOTALL)


class ShardProblem(ValueError):
    """Something is wrong in a shard: which file, which record (its key; "" for the file itself), and what."""

    def __init__(self, file: str | Path | RemoteShard, record: str, what: str) -> None:
        self.file, self.record, self.what = str(file), record, what
        super().__init__(f"{file}{', record ' + record if record else ''}: {what}")

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardProblem, (self.file, self.record, self.what)  # crosses process borders whole


def stop(problem: ShardProblem) -> NoReturn:
    """Default for `on_problem`: raise the first problem. Pass a list's `append` to skip damaged documents instead."""
    raise problem


@dataclass(frozen=True, slots=True)
class Record:
    """Location of a document: its shard and the byte ranges of its members."""

    file: Path | RemoteShard
    key: str
    members: tuple[tuple[str, int, int], ...]  # (suffix, offset, size)


# ---- writing -------------------------------------------------------------------------------------------------------


def write(
    documents: Iterable[Document], prefix: str | Path, per_shard: int = 1000, jpeg_quality: int | None = None
) -> list[Path]:
    """Write documents to `PREFIX-00000.tar`, `PREFIX-00001.tar`, ... and return these paths.

    Pictures are stored as PNG, without loss, or as JPEG of a quality from 1 to 100.

    The same documents give the same bytes. Each shard appears whole or not at all; shards left over from an earlier,
    longer set of the same prefix are removed. Raises ValueError for two documents of one id.
    """
    prefix = Path(prefix)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    shards: list[Path] = []
    waiting: list[Document] = []
    for document in documents:
        if document.id in seen:
            raise ValueError(f"{prefix}: two documents have the id {document.id!r}; ids must be unique in a set")
        seen.add(document.id)
        waiting.append(document)
        if len(waiting) == per_shard:
            shards.append(_write_shard(waiting, prefix, len(shards), per_shard, jpeg_quality))
            waiting = []
    if waiting:
        shards.append(_write_shard(waiting, prefix, len(shards), per_shard, jpeg_quality))
    for path in find(prefix):
        if path not in shards:
            path.unlink()
    return shards


def find(prefix: str | Path) -> list[Path]:
    """The shards of a set, in order: all `PREFIX-NNNNN.tar`."""
    prefix = Path(prefix)
    name = re.compile(re.escape(prefix.name) + r"-\d{5,}\.tar")
    return sorted(path for path in prefix.parent.glob("*.tar") if name.fullmatch(path.name))


def _write_shard(
    documents: list[Document], prefix: Path, number: int, per_shard: int, jpeg_quality: int | None
) -> Path:
    from webdataset import TarWriter  # imports torch: more than a second, only needed here

    path = prefix.with_name(f"{prefix.name}-{number:05d}.tar")
    with (
        new_file(path) as temporary,
        temporary.open("wb") as file,
        TarWriter(file, user="", group="", mtime=0, encoder=False) as tar,
    ):
        for place, document in enumerate(documents):
            tar.write({"__key__": f"{number * per_shard + place:08d}", **_members(document, jpeg_quality)})
    return path


def _members(document: Document, jpeg_quality: int | None) -> dict[str, bytes]:
    """The files of a document by suffix."""
    members: dict[str, bytes] = {}
    parts: list[dict[str, str]] = []
    for part in document.parts:
        if isinstance(part, Text):
            parts.append({"text": part.text, "role": part.role})
        else:
            name = f"{len(members)}.{'jpg' if jpeg_quality else 'png'}"
            encoded = images.encode_jpeg(part.image, jpeg_quality) if jpeg_quality else images.encode_png(part.image)
            members[name] = encoded
            parts.append({"image": name, "role": part.role})
    header = {"id": document.id, "kind": document.kind, "parts": parts, "meta": document.meta}
    members["json"] = json.dumps(header, ensure_ascii=False, sort_keys=True).encode()
    return members


# ---- reading -------------------------------------------------------------------------------------------------------


def read(paths: Iterable[str | Path], on_problem: Callable[[ShardProblem], object] = stop) -> Iterator[Document]:
    """Yield the documents of shards in order.

    on_problem: `stop` (default) raises the first ShardProblem; the `append` of a list skips exactly the damaged
    document and keeps the reason.
    """
    for path in paths:
        for record in index(path, on_problem):
            try:
                document = load(record)
            except ShardProblem as problem:
                on_problem(problem)
            else:
                yield document


def index(path: str | Path | RemoteShard, on_problem: Callable[[ShardProblem], object] = stop) -> list[Record]:
    """List the records of a shard from its tar headers; no picture is read.

    A shard that ends early or has a damaged header is reported as one problem and gives the records before it.
    Raises FileNotFoundError when there is no such shard.
    """
    path = Path(path) if isinstance(path, str) else path
    found: list[tuple[str, str, int, int]] = []  # (key, suffix, offset, size)
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if (plain := _plain_members(file, size)) is not None:
            named = ((MEMBER_NAME.fullmatch(name), offset, length) for name, offset, length in plain)
            found = [(name[1], sys.intern(name[2]), offset, length) for name, offset, length in named if name]
            return _records(path, found)
        try:
            with damage_as(tarfile.TarError), tarfile.open(fileobj=file, mode="r:") as tar:
                while member := tar.next():
                    if member.size < 0:  # tarfile would read the same header for ever
                        raise tarfile.TarError(f"header of {member.name!r} with {member.size} bytes")
                    name = MEMBER_NAME.fullmatch(member.name)
                    whole = member.offset_data + member.size <= size
                    if member.isreg() and not member.issparse() and name and whole:
                        found.append((name[1], sys.intern(name[2]), member.offset_data, member.size))
                    tar.members = []  # type: ignore[attr-defined]  # or tarfile keeps a header object per member
                end = tar.offset
                file.seek(end)
                block = file.read(len(EMPTY_BLOCK))
            # tarfile itself takes a damaged or missing header for the end of the archive
            complaint = "" if block == EMPTY_BLOCK else f"it ends or is damaged at byte {end}"
        except tarfile.TarError as error:
            complaint = f"it is truncated or no uncompressed tar file ({error})"
    if complaint:
        last = found[-1][0] if found else ""
        on_problem(ShardProblem(path, last, f"{complaint}; documents {'after this record ' if last else ''}are lost"))
    return _records(path, found)


def _records(path: Path | RemoteShard, found: list[tuple[str, str, int, int]]) -> list[Record]:
    """Records of members, given as (key, suffix, offset, size)."""
    return [
        Record(path, key, tuple((suffix, offset, size) for _, suffix, offset, size in members))
        for key, members in groupby(found, key=lambda member: member[0])
    ]


def _plain_members(file: BinaryIO, size: int) -> list[tuple[str, int, int]] | None:
    """(name, offset, size) of the members of a whole tar file whose headers are plain, as webdataset writes them.

    None for every other file, which tarfile then reads: it knows more kinds of headers, and takes three times as long.
    """
    if not size:
        return None
    found: list[tuple[str, int, int]] = []
    offset = 0
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        while (header := content[offset : offset + tarfile.BLOCKSIZE]) != EMPTY_BLOCK:
            name, rest = PLAIN_NAME.fullmatch(header[:100]), PLAIN_REST.fullmatch(header[100:])
            if not name or not rest or sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(rest[2], 8):
                return None
            length = int(rest[1], 8)
            begin = offset + tarfile.BLOCKSIZE
            if begin + length > size:
                return None
            found.append((name[1].decode("ascii"), begin, length))
            offset = begin + -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return found


def load(record: Record, *, decode: bool = True) -> Document:
    """Load one document, whole. Raises ShardProblem naming file and record otherwise.

    decode: False reads the text alone and puts a stand-in of one pixel for each picture, to plan with; what is wrong
    inside a picture is then not noticed.
    """

    def problem(what: str) -> ShardProblem:
        return ShardProblem(record.file, record.key, what)

    members: dict[str, bytes] = {}
    with record.file.open("rb") as file:
        for suffix, offset, size in record.members:
            if suffix in members:
                raise problem(f"two files are named {record.key}.{suffix}")
            file.seek(offset)
            members[suffix] = file.read(size) if decode or suffix == "json" else b""
    if "json" not in members:
        raise problem(f"has no {record.key}.json, only {', '.join(members)}")
    try:
        header = parse_json(members.pop("json").decode("utf-8-sig"))
    except ValueError as error:  # also UnicodeDecodeError
        raise problem(f"malformed JSON ({error})") from error
    try:
        parts = _parse_parts(header, members, images.decode if decode else lambda _: PLACEHOLDER)
        return Document(header["id"], header["kind"], parts, header.get("meta", {}))
    except ValueError as error:
        raise problem(str(error)) from error


def _parse_parts(header: Any, files: dict[str, bytes], decode: Callable[[bytes], Image.Image]) -> tuple[Part, ...]:
    """Build the parts of a document from its JSON and its picture files; every file must be named by a part."""
    if not isinstance(header, dict) or not isinstance(header.get("parts"), list):
        raise ValueError('the JSON needs the fields "id", "kind" and "parts" (a list)')
    if not (isinstance(header.get("id"), str) and isinstance(header.get("kind"), str)):
        raise ValueError('the fields "id" and "kind" must be strings')
    if not isinstance(header.get("meta", {}), dict):
        raise ValueError('the field "meta" must be an object')
    parts: list[Part] = []
    named: set[str] = set()
    for number, part in enumerate(header["parts"]):
        if not isinstance(part, dict) or ("text" in part) == ("image" in part):
            raise ValueError(f'part {number} needs exactly one of "text" and "image"')
        content: Any = part.get("text", part.get("image"))
        role: Any = part.get("role", "")
        if not all(isinstance(value, str) for value in (content, role)):
            raise ValueError(f"part {number}: text, image and role must be strings")
        if "text" in part:
            parts.append(Text(content, role))
            continue
        if content not in files:
            raise ValueError(f"part {number}: picture {content} is missing")
        named.add(content)
        try:
            parts.append(Picture(decode(files[content]), role))
        except ValueError as error:
            raise ValueError(f"part {number}: picture {content} {error}") from error
    if unnamed := sorted(files.keys() - named):
        raise ValueError(f"no part names the files {', '.join(unnamed)}; {len(named)} pictures are named")
    return tuple(parts)

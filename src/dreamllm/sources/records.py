"""Files and records of public data sets, read strictly and without unpacking anything to disk.

JSON objects with a duplicate key are rejected, since nothing says which of the two values counts. Big lists are read
record by record. A record that cannot be used becomes a Rejected, which reports count; nothing is dropped silently.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from PIL import Image

from dreamllm.data import images

DEEPEST = 3  # levels of nested archives; an archive can be made to contain itself
LARGEST_LINE = 200_000_000  # bytes of a record
LARGEST_PICTURE = 200_000_000  # bytes of a picture file; a larger one may be meant to exhaust the memory
BLOCK = 1 << 20  # characters


@dataclass(frozen=True)
class Rejected:
    """A record, or a picture of it, that is left out. why: the reason, one of a few; where: file and record."""

    why: str
    where: str
    whole: bool = True
    """Whether the whole document is left out, or only one of its pictures."""


class RecordProblem(ValueError):
    """A file of a data set that cannot be read at all: names the file and the reason."""


class BuildProblem(ValueError):
    """A set of which no document can be made, or that cannot be read as its format in the manifest says."""


# ---- files, plain or in zip and gzip archives ----------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A file of a fetched set: a path, and for a member of (nested) zip archives its name in each."""

    path: Path
    inside: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join([str(self.path), *self.inside])

    @property
    def name(self) -> str:
        """Its own name, without folders and .gz."""
        return (self.inside[-1] if self.inside else str(self.path)).rsplit("/", 1)[-1].removesuffix(".gz")

    def open(self) -> BinaryIO:
        """Open it for reading, decompressed. Raises RecordProblem for a damaged archive."""
        try:
            file: IO[bytes] = self.path.open("rb")
            for name in self.inside:
                file = zipfile.ZipFile(file).open(name)  # noqa: SIM115
            last = self.inside[-1] if self.inside else self.path.name
            return cast(BinaryIO, gzip.open(file) if last.endswith(".gz") else file)
        except (zipfile.BadZipFile, KeyError) as error:
            raise RecordProblem(f"{self}: {error}") from None


def members(folder: Path, *suffixes: str) -> list[Member]:
    """All files below `folder` and in its zip archives whose names end in a suffix, or in a suffix and .gz; sorted."""
    wanted = (*suffixes, *(f"{suffix}.gz" for suffix in suffixes))
    found: list[Member] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name.endswith(wanted):
            found.append(Member(path))
        elif path.suffix == ".zip":
            found += _inside(Member(path), wanted)
    return found


def _inside(archive: Member, wanted: tuple[str, ...]) -> Iterator[Member]:
    if len(archive.inside) >= DEEPEST:
        raise RecordProblem(f"{archive}: archives nested more than {DEEPEST} deep")
    try:
        with archive.open() as file, zipfile.ZipFile(file) as opened:
            names = sorted(opened.namelist())
    except zipfile.BadZipFile as error:
        raise RecordProblem(f"{archive}: {error}") from None
    for name in names:
        inner = Member(archive.path, (*archive.inside, name))
        if name.endswith(wanted):
            yield inner
        elif name.endswith(".zip"):
            yield from _inside(inner, wanted)


def one(folder: Path, suffix: str) -> Member:
    """The only member whose name ends in `suffix`. Raises RecordProblem when there are none or several."""
    found = members(folder, suffix)
    if len(found) != 1:
        raise RecordProblem(f"{folder}: {len(found)} files end in {suffix}, expected 1: {', '.join(map(str, found))}")
    return found[0]


# ---- records -------------------------------------------------------------------------------------------------------


class _DuplicateKey(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        key = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise _DuplicateKey(f"duplicate key {key!r}")
    return table


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def parse(text: str) -> Any:
    """JSON without duplicate keys. Raises ValueError saying what is wrong."""
    return _DECODER.decode(text)


def read_json(member: Member) -> Any:
    """A whole JSON file. Raises RecordProblem."""
    try:
        # text compresses less than 200-fold; a file of zeros, 1000-fold
        largest = max(LARGEST_LINE, 200 * member.path.stat().st_size)
        with member.open() as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"has more than {largest} bytes when decompressed")
        return parse(content.decode("utf-8"))
    except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise RecordProblem(f"{member}: {error}") from None


def read_jsonl(member: Member) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """The records of a JSON lines file as (place, record); a line that is no object is Rejected."""
    with member.open() as file:
        for number, line in enumerate(_lines(file, member), 1):
            if not line.strip():
                continue
            where = f"{member}, line {number}"
            try:
                record = parse(line.decode("utf-8"))
            except ValueError as error:
                yield where, Rejected("not valid JSON", f"{where}: {error}")
            else:
                is_object = isinstance(record, dict)
                yield where, record if is_object else Rejected("not a JSON object", where)


def _lines(file: BinaryIO, member: Member) -> Iterator[bytes]:
    try:
        while line := file.readline(LARGEST_LINE):  # a longer line comes in pieces, which are not JSON
            yield line
    except (zipfile.BadZipFile, EOFError, OSError) as error:  # wrong checksum, truncated archive
        raise RecordProblem(f"{member}: {error}") from None


def read_list(member: Member) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """The records of a JSON file that is a list of objects, as (place, record); read one by one, for files of many GB.

    Raises RecordProblem where the list itself is damaged, since the following records cannot be found.
    """
    for place, record in _elements(member, "[", "]"):
        is_object = isinstance(record, (dict, Rejected))
        yield place, record if is_object else Rejected("not a JSON object", place)


def read_table(member: Member) -> Iterator[tuple[str, str, dict[str, Any] | Rejected]]:
    """The entries of a JSON file that is an object of objects, as (place, key, record); read one by one."""
    elements = _elements(member, "{", "}")
    for place, key in elements:
        _, record = next(elements)
        is_object = isinstance(record, (dict, Rejected))
        yield place, str(key), record if is_object else Rejected("not a JSON object", place)


def _elements(member: Member, opening: str, closing: str) -> Iterator[tuple[str, Any]]:
    """The values of a JSON array, or alternately the keys and values of an object, with their places."""
    with member.open() as raw:
        text = io.TextIOWrapper(raw, "utf-8")
        buffer, place, number, begun = "", 0, 0, False
        while True:
            try:
                block = text.read(BLOCK)
            except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
                raise RecordProblem(f"{member}: {error}") from None
            buffer, place = buffer[place:] + block, 0
            while True:
                while place < len(buffer) and buffer[place] in " \t\r\n,:":
                    place += 1
                if place == len(buffer):
                    break
                if not begun:
                    if buffer[place] != opening:
                        raise RecordProblem(f"{member}: expected {opening!r}, found {buffer[place]!r}")
                    begun, place = True, place + 1
                    continue
                if buffer[place] == closing:
                    return
                where = f"{member}, record {number}"
                try:
                    value, end = _DECODER.raw_decode(buffer, place)
                except _DuplicateKey as error:
                    _, end = json.JSONDecoder().raw_decode(buffer, place)
                    value = Rejected("duplicate key", f"{where}: {error}")
                except json.JSONDecodeError as error:
                    if block:  # may be cut by the end of the block
                        break
                    raise RecordProblem(f"{where}: {error.msg}") from None
                if end == len(buffer) and block:  # a number may continue
                    break
                yield where, value
                number, place = number + 1, end
            if not block:
                raise RecordProblem(f"{member}: ends after record {number - 1} without {closing!r}")


def read_parquet(member: Member, columns: list[str], batch: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a parquet file as (place, record), of which `batch` are in memory at a time.

    Raises RecordProblem naming the columns that are not there, and those that are.
    """
    import pyarrow.parquet

    with member.open() as file:
        table = pyarrow.parquet.ParquetFile(file)
        there = table.schema_arrow.names
        if missing := [name for name in columns if name not in there]:
            raise RecordProblem(f"{member}: no column {', '.join(missing)}; its columns are {', '.join(there)}")
        batches = table.iter_batches(batch, columns=columns)
        rows = (record for rows in batches for record in rows.to_pylist())
        for number, record in enumerate(rows):
            yield f"{member}, row {number}", record


# ---- pictures ------------------------------------------------------------------------------------------------------


Folders = tuple[tuple[str, Path], ...]


class PictureFiles:
    """Picture files by path: FOLDER/NAME for a plain file or a member of FOLDER/*.zip.

    Archives are read as if they were unpacked side by side, and no name can lead out of a folder.
    folders: ("", the set's own folder), and (prefix, folder) for another set whose pictures are named PREFIX/NAME.
    """

    def __init__(self, folders: Folders) -> None:
        self._where: dict[str, tuple[Path | zipfile.ZipFile, str]] = {}
        self._by_name: dict[str, str] = {}
        found = [(top, folder, path) for top, folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        for top, folder, path in found:
            below = (Path(top) / path.parent.relative_to(folder)).as_posix()
            prefix = "" if below == "." else f"{below}/"
            if path.suffix == ".zip":
                try:
                    archive = zipfile.ZipFile(path)
                except zipfile.BadZipFile as error:
                    raise RecordProblem(f"{path}: {error}") from None
                self._where |= {prefix + name: (archive, name) for name in archive.namelist()}
            else:
                self._where[prefix + path.name] = (path, path.name)
        for name in self._where:
            self._by_name.setdefault(name.rsplit("/", 1)[-1], name)

    def read_by_name(self, name: str) -> bytes:
        """`read` by the name of the file alone, in whatever folder or archive it is, as COCO and GQA name pictures."""
        return self.read(self._by_name[name])

    def has(self, name: str) -> bool:
        """Whether a file has this name, in whatever folder or archive."""
        return name in self._by_name

    def place(self, name: str) -> tuple[Path, str]:
        """The file or archive that holds the picture called `name`, and its name in there. Raises KeyError."""
        holder, inside = self._where[self._by_name[name]]
        return (holder if isinstance(holder, Path) else Path(str(holder.filename))), inside

    def read(self, name: str) -> bytes:
        """The bytes of a picture file. Raises KeyError when there is none, ValueError when it is damaged or huge."""
        holder, inside = self._where[name]
        if isinstance(holder, Path):
            return holder.read_bytes()
        size = holder.getinfo(inside).file_size
        if size > LARGEST_PICTURE:
            raise ValueError(f"has {size} bytes")
        try:
            return holder.read(inside)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(str(error)) from None


def folders_of(entries: list[str]) -> Folders:
    """The folders of command-line arguments PREFIX=FOLDER."""
    return tuple((prefix, Path(folder)) for prefix, _, folder in (entry.partition("=") for entry in entries))


@functools.cache
def picture_files(folders: Folders) -> PictureFiles:
    """`PictureFiles`, made once per process, since listing a big archive takes a second."""
    return PictureFiles(folders)


def picture(data: bytes, side: int, smallest: int) -> Image.Image:
    """Decode a picture file to RGB and shrink it until its shorter side has at most `side` pixels.

    Raises ValueError("cannot be decoded ...") or ValueError("is smaller than ...").
    """
    image = images.decode(data)
    shorter = min(image.size)
    if shorter < smallest:
        raise ValueError(f"is smaller than {smallest} pixels")
    if shorter <= side:
        return image
    width, height = (max(1, round(length * side / shorter)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def picture_problem(error: ValueError) -> str:
    """The reason by which reports count an error of `picture` or `PictureFiles.read`."""
    return "picture is too small" if str(error).startswith("is smaller") else "picture or its data cannot be read"

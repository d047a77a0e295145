"""Files and records of public data sets, read strictly and without unpacking anything to disk.

Text is UTF-8, with or without a byte order mark, which editors and spreadsheets on Windows write.

JSON objects with a duplicate key are rejected, since nothing says which of the two values counts. Big lists are read
record by record. A record that cannot be used becomes a Rejected, which reports count; nothing is dropped silently.
Where damage hides the end of a record, so that none after it can be told apart, RecordProblem names the file.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from dreamllm.data.damage import check_json, damage_as, is_fork, is_text, parse_json

DEEPEST = 3  # levels of nested archives; an archive can be made to contain itself
LARGEST_LINE = 200_000_000  # bytes of a record
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


class MissingColumns(RecordProblem):
    """A table that lacks columns of its format: they are named differently, and `columns` of the set can say how."""


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
        with self.damage():
            file: IO[bytes] = self.path.open("rb")
            for name in self.inside:
                file = zipfile.ZipFile(file).open(name)  # noqa: SIM115
            return cast(BinaryIO, gzip.open(file) if self._compressed else file)

    def damage(self) -> AbstractContextManager[None]:
        """Inside, what decoders raise for damaged bytes becomes a RecordProblem that names this file."""
        return damage_as(lambda what: RecordProblem(f"{self}: {what}"))

    def verify(self) -> None:
        """Read a compressed file to its end, where its checksum is: a damaged one gives wrong text before that.

        Raises RecordProblem.
        """
        if self.inside or self._compressed:
            with self.open() as file, self.damage():
                while file.read(BLOCK):
                    pass

    @property
    def _compressed(self) -> bool:
        return (self.inside[-1] if self.inside else self.path.name).endswith(".gz")


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted, except those of `is_fork`. Symbolic links to files and folders are followed.

    Raises RecordProblem for a symbolic link to what is not there, or to a folder that it lies in.
    """
    found = []
    for at, folders, names in os.walk(folder, followlinks=True):
        for link in (path for path in (Path(at, name) for name in (*folders, *names)) if path.is_symlink()):
            if not link.exists():
                raise RecordProblem(f"{link}: is a symbolic link to {link.readlink()}, which is not there")
            if link.resolve() in (link.parent.resolve(), *link.parent.resolve().parents):
                raise RecordProblem(f"{link}: is a symbolic link to {link.readlink()}, a folder that it lies in")
        found += [Path(at, name) for name in names]
    return sorted(path for path in found if path.is_file() and not is_fork(path.relative_to(folder).as_posix()))


def members(folder: Path, *suffixes: str) -> list[Member]:
    """All files below `folder` and in its zip archives whose names end in a suffix, or in a suffix and .gz; sorted."""
    wanted = (*suffixes, *(f"{suffix}.gz" for suffix in suffixes))
    found: list[Member] = []
    for path in files_below(folder):
        if path.name.endswith(wanted):
            found.append(Member(path))
        elif path.suffix == ".zip":
            found += _inside(Member(path), wanted)
    return found


def _inside(archive: Member, wanted: tuple[str, ...]) -> Iterator[Member]:
    if len(archive.inside) >= DEEPEST:
        raise RecordProblem(f"{archive}: archives nested more than {DEEPEST} deep")
    with archive.open() as file, archive.damage(), zipfile.ZipFile(file) as opened:
        names = sorted(name for name in opened.namelist() if not is_fork(name))
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
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|["\[\]{}]|[^\s,:"\[\]{}]+', re.DOTALL)


def parse(text: str) -> Any:
    """JSON without duplicate keys, as strict as `data.damage.parse_json`. Raises ValueError saying what is wrong."""
    return parse_json(text, _unique_keys)


def read_json(member: Member) -> Any:
    """A whole JSON file. Raises RecordProblem."""
    # text compresses less than 200-fold; a file of zeros, 1000-fold
    largest = max(LARGEST_LINE, 200 * member.path.stat().st_size)
    with member.open() as file, member.damage():
        content = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"has more than {largest} bytes when decompressed")
        return parse(content.decode("utf-8-sig"))


def read_jsonl(member: Member) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """The records of a JSON lines file as (place, record); a line that is no object is Rejected.

    A file that cannot be decompressed whole gives one Rejected and no record.
    """
    try:
        member.verify()
        for number, line in enumerate(_lines(member), 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            where = f"{member}, line {number}"
            try:
                record = parse(line.decode("utf-8"))
            except ValueError as error:
                is_cut = not line.endswith(b"\n") and len(line) < LARGEST_LINE
                why = "file is damaged" if is_cut else "not valid JSON"
                yield where, Rejected(why, f"{where}: {error}")
            else:
                is_object = isinstance(record, dict)
                yield where, record if is_object else Rejected("not a JSON object", where)
    except RecordProblem as problem:
        yield str(member), Rejected("file is damaged", str(problem))


def _lines(member: Member) -> Iterator[bytes]:
    with member.open() as file:
        while True:
            with member.damage():
                line = file.readline(LARGEST_LINE)  # a longer line comes in pieces, which are not JSON
            if not line:
                return
            yield line


def read_list(member: Member) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """The records of a JSON file that is a list of objects, as (place, record); read one by one, for files of many GB.

    Raises RecordProblem where the list itself is damaged, since the following records cannot be found.
    """
    for place, record in _elements(member, "[", "]"):
        is_object = isinstance(record, (dict, Rejected))
        yield place, record if is_object else Rejected("not a JSON object", place)


def read_table(member: Member) -> Iterator[tuple[str, str, dict[str, Any] | Rejected]]:
    """The entries of a JSON file that is an object of objects, as (place, key, record); read one by one.

    Raises RecordProblem where the object itself is damaged.
    """
    elements = _elements(member, "{", "}")
    for place, key in elements:
        _, record = next(elements, (place, None))
        if not isinstance(key, str):
            raise RecordProblem(f"{place}: expected a key, found {key if isinstance(key, Rejected) else repr(key)}")
        yield place, key, record if isinstance(record, (dict, Rejected)) else Rejected("not a JSON object", place)


def _elements(member: Member, opening: str, closing: str) -> Iterator[tuple[str, Any]]:
    """The values of a JSON array, or alternately the keys and values of an object, with their places."""
    member.verify()
    with member.open() as raw:
        text = io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape")  # so that one wrong byte spoils one record
        buffer, place, number, begun, skipped = "", 0, 0, False, False
        while True:
            with member.damage():
                block = text.read(BLOCK)
            buffer, place = buffer[place:] + block, 0
            if len(buffer) > LARGEST_LINE:
                raise RecordProblem(f"{member}, record {number}: does not end within {LARGEST_LINE} characters")
            while True:
                while place < len(buffer) and buffer[place] in " \t\r\n,:":
                    skipped = skipped and buffer[place] != ","
                    place += 1
                if place == len(buffer):
                    break
                if not begun:
                    if buffer[place] != opening:
                        raise RecordProblem(f"{member}: expected {opening!r}, found {buffer[place]!r}")
                    begun, place = True, place + 1
                    continue
                where = f"{member}, record {number}"
                if buffer[place] == closing:
                    with member.damage():
                        while not (after := buffer[place + 1 :].strip()) and block:
                            block = buffer = text.read(BLOCK)
                            place = -1
                    if after:
                        raise RecordProblem(f"{where}: after the last {closing!r} there is {after[:20]!r}")
                    return
                if skipped:  # the end of a malformed record was no end: a quote or bracket of it is missing
                    raise RecordProblem(f"{where}: expected ',', found {buffer[place]!r}; the record before is damaged")
                value: Any
                try:
                    value, end = _DECODER.raw_decode(buffer, place)
                    check_json(value, buffer[place:end])
                    if not is_text(buffer[place:end]):
                        raise ValueError("is not UTF-8")
                except (ValueError, RecursionError) as error:
                    ends = _end(buffer, place)
                    if (ends is None or ends == len(buffer)) and block:  # may be cut by the end of the block
                        break
                    if ends is None:
                        raise RecordProblem(f"{where}: {error}") from None
                    why = "duplicate key" if isinstance(error, _DuplicateKey) else "not valid JSON"
                    value, end, skipped = Rejected(why, f"{where}: {error}"), ends, True
                if end == len(buffer) and block:  # a number may continue
                    break
                yield where, value
                number, place = number + 1, end
            if not block:
                raise RecordProblem(f"{member}: ends after record {number - 1} without {closing!r}")


def _end(text: str, start: int) -> int | None:
    """Where the value that begins at `start` ends, by its brackets and quotes alone; None if it does not end."""
    depth = 0
    for piece in _PIECE.finditer(text, start):
        if piece[0] == '"':  # a string without an end
            return None
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece[0], 0)
        if depth <= 0:
            return piece.end() if depth == 0 else None
    return None


def read_parquet(member: Member, columns: list[str], batch: int) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """The rows of a parquet file as (place, record), of which `batch` are in memory at a time.

    A row whose text is no UTF-8 is Rejected. From where the file is damaged on, one Rejected stands for all rows.
    Raises MissingColumns naming the columns that are not there, and those that are.
    """
    import pyarrow.parquet

    number = 0
    try:
        member.verify()
        with member.open() as file:
            with member.damage():
                table = pyarrow.parquet.ParquetFile(file)
            there = table.schema_arrow.names
            if missing := [name for name in columns if name not in there]:
                raise MissingColumns(f"{member}: no column {', '.join(missing)}; its columns are {', '.join(there)}")
            with member.damage():
                batches = table.iter_batches(batch, columns=columns)
            while True:
                with member.damage():
                    rows = next(batches, None)
                if rows is None:
                    return
                for record in _records(rows):
                    where = f"{member}, row {number}"
                    yield where, Rejected("not UTF-8", where) if record is None else record
                    number += 1
    except MissingColumns:
        raise
    except RecordProblem as problem:
        yield f"{member}, row {number}", Rejected("file is damaged", f"from row {number} on: {problem}")


def _records(rows: Any) -> list[dict[str, Any] | None]:
    """The rows of a pyarrow batch; None for each that has text which is no UTF-8."""
    try:
        return rows.to_pylist()
    except ValueError:
        if len(rows) == 1:
            return [None]
        half = len(rows) // 2
        return _records(rows.slice(0, half)) + _records(rows.slice(half))

"""Reading benchmark files strictly: JSON, JSON lines and picture collections, with errors that name file and record.

Knows no benchmark; the modules in `tasks/` do.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from dreamllm.data.damage import LARGEST_PICTURE, damage_as, is_fork, parse_json
from dreamllm.data.images import PICTURE_SUFFIXES, decode

Key = TypeVar("Key", str, int)

_NUMBER = re.compile(r"(?:.*[^0-9A-Za-z])?([0-9]{1,18})\.\w+")  # at the end of a file name


class BenchmarkProblem(ValueError):
    """Something is wrong in an evaluation file: which file, which record ("" for the file itself), and what."""

    def __init__(self, file: str | Path, record: str, what: str) -> None:
        self.file, self.record, self.what = str(file), record, what
        super().__init__(f"{file}{', ' + record if record else ''}: {what}")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark. Raises BenchmarkProblem when it is missing or not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise BenchmarkProblem(path, "", "no such file") from None
    except IsADirectoryError:
        raise BenchmarkProblem(path, "", "is a folder, not a file") from None
    except UnicodeDecodeError as error:
        raise BenchmarkProblem(path, f"byte {error.start}", "is not UTF-8 text") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises BenchmarkProblem, with the line for malformed JSON."""
    return _parse(read_text(path), path, 0)


def read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The records of a JSON lines file, each with its place ("line 3") for error messages. Empty lines do not count."""
    return parse_jsonl(read_text(path), path)


def parse_jsonl(text: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """`read_jsonl` for a text that was read from `path`."""
    lines = text.split("\n")  # not splitlines: it also breaks at characters that JSON allows inside strings
    return [(f"line {n}", _parse(line, path, n)) for n, line in enumerate(lines, 1) if line.strip()]


def _parse(text: str, path: Path, line: int) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise BenchmarkProblem(path, f"line {line}" if line else "", f"has the value {constant}, which is no number")

    try:
        value = parse_json(text, constant=refuse)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise BenchmarkProblem(path, place, f"malformed JSON ({error.msg})") from None
    except BenchmarkProblem:
        raise
    except ValueError as error:
        raise BenchmarkProblem(path, f"line {line}" if line else "", f"malformed JSON ({error})") from None
    if not isinstance(value, dict):
        place = f"line {line}" if line else ""
        raise BenchmarkProblem(path, place, f"expected a JSON object, found {type(value).__name__}")
    return value


def field(record: Any, name: str, kind: type | tuple[type, ...], path: str | Path, place: str) -> Any:
    """A field of a record, of the right type. Raises BenchmarkProblem when it is missing or of another type, or when
    the record is no JSON object."""
    if not isinstance(record, dict):
        raise BenchmarkProblem(path, place, f"expected a JSON object, found {type(record).__name__}")
    if name not in record:
        raise BenchmarkProblem(path, place, f"has no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}")
    value = record[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(type_.__name__ for type_ in kinds)
        raise BenchmarkProblem(path, place, f"field {name!r} should be {names}, it is {type(value).__name__}")
    return value


def keyed(records: list[tuple[Key, Any]], path: str | Path, what: str) -> dict[Key, Any]:
    """(id, record) pairs as a dictionary in the same order. Raises BenchmarkProblem for an id that occurs twice."""
    table: dict[Key, Any] = {}
    for id_, record in records:
        if id_ in table:
            raise BenchmarkProblem(path, f"{what} {id_}", "occurs twice")
        table[id_] = record
    return table


def pictures_of(folder: Path, split: str) -> Pictures:
    """The images of a split: images_SPLIT.zip, or the folder images_SPLIT."""
    archive = folder / f"images_{split}.zip"
    return Pictures(archive if archive.exists() else folder / f"images_{split}")


class Pictures:
    """The pictures of a benchmark: a folder, or a zip file as COCO comes in. Pictures are found by file name or by id.

    Sub-folders are looked through. The id is the number that is the stem, or that ends it after a sign which is neither
    letter nor digit (42.jpg, COCO_val2014_000000000042.jpg: 42); 1a2b42.jpg, a hexadecimal name, has none.
    Raises BenchmarkProblem when the collection or a picture is missing, ambiguous or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            self._zip = None
            members = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
        elif path.exists():
            with damage_as(
                lambda what: BenchmarkProblem(path, "", f"is neither a folder nor a whole zip file ({what})")
            ):
                self._zip = zipfile.ZipFile(path)
            members = self._zip.namelist()
        else:
            raise BenchmarkProblem(path, "", "no such folder or zip file")
        members = [m for m in members if Path(m).suffix.lower() in PICTURE_SUFFIXES and not is_fork(m)]
        self._members = keyed([(Path(member).name, member) for member in members], path, "picture")
        self._by_id: dict[int, list[str]] = {}
        for name in self._members:
            if match := _NUMBER.fullmatch(name):
                self._by_id.setdefault(int(match[1]), []).append(name)

    def name_of(self, image_id: int, path: Path, place: str) -> str:
        """File name of the picture with this id, asked for by a record of another file."""
        names = self._by_id.get(image_id, [])
        if not names:
            raise BenchmarkProblem(path, place, f"picture {image_id} is not in {self.path}")
        if len(names) > 1:
            raise BenchmarkProblem(self.path, f"picture {names[1]}", f"has the same id as {names[0]}")
        return names[0]

    def check(self, name: str, path: Path, place: str) -> str:
        """The file name itself if there is such a picture."""
        if name not in self._members:
            raise BenchmarkProblem(path, place, f"picture {name} is not in {self.path}")
        return name

    def read(self, name: str) -> Image.Image:
        """A picture in RGB (CMYK, transparency and palettes are converted)."""
        if name not in self._members:
            raise BenchmarkProblem(self.path, f"picture {name}", "is missing")
        member = self._members[name]
        with damage_as(lambda what: BenchmarkProblem(self.path, f"picture {name}", what)):
            size = self._zip.getinfo(member).file_size if self._zip else (self.path / member).stat().st_size
            if size > LARGEST_PICTURE:
                raise ValueError(f"has {size} bytes")
            return decode(self._zip.read(member) if self._zip else (self.path / member).read_bytes())

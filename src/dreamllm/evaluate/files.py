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

from dreamllm.data.images import decode

Key = TypeVar("Key", str, int)

INSTALL = 'is not installed: pip install -e ".[evaluation]"'

LARGEST_PICTURE = 200_000_000  # bytes of a file; more is no picture but an attack on the memory
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


class BenchmarkProblem(ValueError):
    """Something is wrong in an evaluation file: which file, which record ("" for the file itself), and what."""

    def __init__(self, file: str | Path, record: str, what: str) -> None:
        self.file, self.record, self.what = str(file), record, what
        super().__init__(f"{file}{', ' + record if record else ''}: {what}")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark. Raises BenchmarkProblem when it is missing or not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BenchmarkProblem(path, "", "no such file") from None
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
        value = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise BenchmarkProblem(path, place, f"malformed JSON ({error.msg})") from None
    if not isinstance(value, dict):
        place = f"line {line}" if line else ""
        raise BenchmarkProblem(path, place, f"expected a JSON object, found {type(value).__name__}")
    return value


def field(record: dict[str, Any], name: str, kind: type | tuple[type, ...], path: Path, place: str) -> Any:
    """A field of a record, of the right type. Raises BenchmarkProblem when it is missing or of another type."""
    if name not in record:
        raise BenchmarkProblem(path, place, f"has no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}")
    value = record[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(type_.__name__ for type_ in kinds)
        raise BenchmarkProblem(path, place, f"field {name!r} should be {names}, it is {type(value).__name__}")
    return value


def keyed(records: list[tuple[Key, Any]], path: Path, what: str) -> dict[Key, Any]:
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

    Sub-folders are looked through. The id is the number at the end of the stem (COCO_val2014_000000000042.jpg: 42).
    Raises BenchmarkProblem when the collection or a picture is missing, ambiguous or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            self._zip = None
            members = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
        elif path.exists():
            try:
                self._zip = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise BenchmarkProblem(path, "", f"is neither a folder nor a whole zip file ({error})") from None
            members = self._zip.namelist()
        else:
            raise BenchmarkProblem(path, "", "no such folder or zip file")
        members = [member for member in members if Path(member).suffix.lower() in PICTURE_SUFFIXES]
        self._members = keyed([(Path(member).name, member) for member in members], path, "picture")
        numbered = [(match[1], name) for name in self._members if (match := re.search(r"(\d+)\.\w+$", name))]
        self._by_id: dict[int, str] = {}
        for digits, name in numbered:
            if int(digits) in self._by_id:
                raise BenchmarkProblem(path, f"picture {name}", f"has the same id as {self._by_id[int(digits)]}")
            self._by_id[int(digits)] = name

    def name_of(self, image_id: int, path: Path, place: str) -> str:
        """File name of the picture with this id, asked for by a record of another file."""
        if image_id not in self._by_id:
            raise BenchmarkProblem(path, place, f"picture {image_id} is not in {self.path}")
        return self._by_id[image_id]

    def check(self, name: str, path: Path, place: str) -> str:
        """The file name itself if there is such a picture."""
        if name not in self._members:
            raise BenchmarkProblem(path, place, f"picture {name} is not in {self.path}")
        return name

    def read(self, name: str) -> Image.Image:
        """A picture in RGB (CMYK, transparency and palettes are converted)."""
        try:
            member = self._members[name]
            if self._zip and self._zip.getinfo(member).file_size > LARGEST_PICTURE:
                raise ValueError(f"has {self._zip.getinfo(member).file_size} bytes")
            return decode(self._zip.read(member) if self._zip else (self.path / member).read_bytes())
        except KeyError:
            raise BenchmarkProblem(self.path, f"picture {name}", "is missing") from None
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise BenchmarkProblem(self.path, f"picture {name}", str(error)) from None

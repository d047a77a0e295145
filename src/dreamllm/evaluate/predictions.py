"""Prediction files: what a model wrote or generated, before it is scored.

    NAME.jsonl   a header, then one record per item in benchmark order
    NAME.safetensors   the same as metadata, beside tensors (attention)
    NAME.tar     the same as its first member `index.jsonl`, then the pictures that its records name, as PNG

    {"header": {"model": ..., "benchmark": ..., "split": ..., "limit": ..., "protocol": {...}}}
    {"id": ..., "prompt": ..., "seed": ..., "output": ...}                                captions, vqa, pope
    {"id": ..., "prompt": ..., "seed": ..., "options": [...], "loglikelihoods": [...]}    language
    {"id": ..., "prompt": ..., "seed": ..., "image": "000000.png"}               draw, illustrations, in_context
    {"id": ..., "prompt": ..., "seed": ..., "seconds": {"50": ...}}                       latency, by steps
    {"id": ..., "prompt": ..., "seed": ..., "parts": [{"text"} | {"image"}], "stopped": "end"}   stories

A header of pictures also has the number of their `sample`, and a picture drawn from a rewritten prompt has that as
`rewritten`. The same predictions always give the same bytes, and a file is written whole or not at all.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreamllm.atomic import new_file
from dreamllm.data.damage import damage_as
from dreamllm.data.images import decode, encode_png
from dreamllm.evaluate.files import BenchmarkProblem, field, keyed, parse_jsonl, read_jsonl

INDEX = "index.jsonl"


@dataclass(frozen=True)
class Predictions:
    """A prediction file: header, records by item id in file order, place and length of the pictures in the archive."""

    path: Path
    header: dict[str, Any]
    records: dict[str, dict[str, Any]]
    images: dict[str, tuple[int, int]]

    def image(self, name: str, place: str) -> Image.Image:
        """A picture that the record at `place` names. Raises BenchmarkProblem when it is missing or damaged."""
        if name not in self.images:
            raise BenchmarkProblem(self.path, place, f"names picture {name}, which is not in the archive")
        try:
            return decode(_bytes_at(self.path, *self.images[name]))
        except ValueError as error:
            raise BenchmarkProblem(self.path, f"picture {name}", str(error)) from None

    def tensor(self, name: str) -> np.ndarray:
        """A tensor of a safetensors file. Raises BenchmarkProblem when there is none of this name."""
        with open_tensors(self.path) as file:
            if name not in file.keys():  # noqa: SIM118, a safe_open is no mapping
                raise BenchmarkProblem(self.path, "", f"has no tensor {name!r}")
            return file.get_tensor(name)

    def get(self, id_: str, name: str, kind: type | tuple[type, ...]) -> Any:
        """A field of an item's record. Raises BenchmarkProblem when it is missing or of another type."""
        return field(self.records[id_], name, kind, self.path, f"item {id_}")


def write(
    path: Path,
    header: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    images: Mapping[str, Image.Image | Path] | None = None,
) -> None:
    """Write a prediction file; a tar archive when there are pictures (an empty mapping, too), or paths of PNG files."""
    index = _index(header, records).encode()
    with new_file(path) as temporary:
        if images is None:
            temporary.write_bytes(index)
            return
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            _add(archive, INDEX, index)
            for name, image in images.items():
                _add(archive, name, image.read_bytes() if isinstance(image, Path) else encode_png(image))


def write_tensors(
    path: Path, header: Mapping[str, Any], records: Sequence[Mapping[str, Any]], tensors: Mapping[str, Any]
) -> None:
    """Write a prediction file whose predictions are torch tensors; their first dimension goes over the records."""
    from safetensors.torch import save_file

    with new_file(path) as temporary:
        save_file(dict(tensors), temporary, metadata={INDEX: _index(header, records)})


def _index(header: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    lines = [{"header": dict(header)}, *records]
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its defaults are mtime 0, mode 644, no owner
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def read(path: Path) -> Predictions:
    """Read a prediction file of any of the forms.

    Raises BenchmarkProblem, naming file and record, for a damaged archive, malformed lines, doubled ids or no header.
    """
    images: dict[str, tuple[int, int]] = {}
    if path.suffix == ".tar":
        images = _members(path)
        if INDEX not in images:
            raise BenchmarkProblem(path, "", f"has no member {INDEX}")
        with damage_as(lambda what: BenchmarkProblem(path, INDEX, f"is not UTF-8 text ({what})")):
            index = _bytes_at(path, *images.pop(INDEX)).decode()
        lines = parse_jsonl(index, path)
    elif path.suffix == ".safetensors":
        with open_tensors(path) as file:
            lines = parse_jsonl((file.metadata() or {}).get(INDEX, ""), path)
    else:
        lines = read_jsonl(path)
    if not lines or "header" not in lines[0][1]:
        raise BenchmarkProblem(path, "line 1", "is not a header; give a file written by `dreamllm predict`")
    header = field(lines[0][1], "header", dict, path, "line 1")
    for name in ("benchmark", "split"):
        if not re.fullmatch(r"\w+", value := field(header, name, str, path, "header")):
            raise BenchmarkProblem(path, "header", f"{name} {value[:80]!a} is no name")  # it is part of paths
    field(header, "model", str, path, "header")
    records = [(field(record, "id", str, path, place), record) for place, record in lines[1:]]
    return Predictions(path, header, keyed(records, path, "item"), images)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """An open safetensors file, for numpy arrays. Raises BenchmarkProblem when it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            yield file
    except FileNotFoundError:
        raise BenchmarkProblem(path, "", "no such file") from None
    except SafetensorError as error:
        raise BenchmarkProblem(path, "", f"is no whole safetensors file ({error})") from None


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of the files in a tar archive, so that pictures are read one by one."""
    members: dict[str, tuple[int, int]] = {}
    try:
        with damage_as(tarfile.TarError), tarfile.open(path, "r:") as archive:
            while member := archive.next():
                if member.size < 0:  # tarfile would read the same header for ever
                    raise tarfile.TarError(f"header of {member.name!r} with {member.size} bytes")
                if member.isfile():
                    members[member.name] = member.offset_data, member.size
    except (FileNotFoundError, IsADirectoryError):
        raise BenchmarkProblem(path, "", "no such file") from None
    except tarfile.TarError as error:
        raise BenchmarkProblem(path, "", f"is no whole tar archive ({error})") from None
    return members


def _bytes_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def check_complete(predictions: Predictions, ids: Sequence[str]) -> None:
    """Raises BenchmarkProblem unless there is exactly one prediction for each of these items: none is ever left out."""
    missing = [id_ for id_ in ids if id_ not in predictions.records]
    surplus = sorted(predictions.records.keys() - set(ids))
    if missing:
        raise BenchmarkProblem(
            predictions.path, f"item {missing[0]}", f"{len(missing)} of {len(ids)} items have no prediction"
        )
    if surplus:
        raise BenchmarkProblem(predictions.path, f"item {surplus[0]}", f"{len(surplus)} predictions are for no item")

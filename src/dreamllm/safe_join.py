"""Joins a folder and a name that came from a file or a server, so that the result lies inside the folder."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

LONGEST_PART = 255  # bytes of a file or folder name on the usual file systems


class NameProblem(ValueError):
    """A name that cannot be the path of a file inside a folder. The message has the name and the reason."""


def checked(name: object) -> PurePosixPath:
    """A relative path with `/` between its parts, none of which leads upwards.

    Raises NameProblem for anything that is no text, empty or absolute, for `..`, for parts of more than 255 bytes,
    control characters, and text that is no valid Unicode.
    """
    if not isinstance(name, str):
        raise NameProblem(f"a name of a file is text, not {type(name).__name__}")
    path, shown = PurePosixPath(name), ascii(name if len(name) <= 80 else f"{name[:80]}...")
    if not path.parts:
        raise NameProblem(f"{shown} names no file")
    if path.is_absolute() or ".." in path.parts:
        raise NameProblem(f"{shown} leads out of its folder")
    if not name.isprintable() and any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise NameProblem(f"{shown} has control characters")
    try:
        longest = max(len(part.encode()) for part in path.parts)
    except UnicodeEncodeError:
        raise NameProblem(f"{shown} is not valid Unicode") from None
    if longest > LONGEST_PART:
        raise NameProblem(f"{shown} has a part of {longest} bytes, more than {LONGEST_PART}")
    return path


def shards_of(index: Path) -> list[str]:
    """The names of the weight files that an index such as model.safetensors.index.json maps tensors to, sorted.

    Raises NameProblem when it is malformed, or names anything but files beside it.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise NameProblem(f"{index}: malformed JSON ({type(error).__name__})") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise NameProblem(f"{index}: has no weight_map from tensor names to file names")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if shard in ("", ".", "..") or Path(shard).name != shard:
            raise NameProblem(f"{index}: {shard[:80]!a} is not the name of a file in the same folder")
        checked(shard)
    return shards


def safe_join(folder: str | Path, name: object) -> Path:
    """`folder`/`name`, for a name that others chose. Raises NameProblem as `checked` does, and for a name that a
    symbolic link on the way leads out of the folder."""
    folder = Path(folder)
    path = folder / checked(name)
    inside = folder.resolve()
    if inside not in (there := path.resolve()).parents and there != inside:
        raise NameProblem(f"{str(checked(name))!a} leads out of {folder} through a symbolic link")
    return path

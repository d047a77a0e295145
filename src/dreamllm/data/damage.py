"""Damaged and hostile files: what decoders raise for them, and strict JSON.

A reader puts each call of a decoder into `damage_as`, and counts or names what it could not read.
"""

from __future__ import annotations

import errno
import json
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DAMAGE = (
    *(ValueError, LookupError, ArithmeticError, EOFError, MemoryError, OSError, struct.error),
    RuntimeError,  # also NotImplementedError (unknown compression method) and RecursionError; encrypted zip members
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)
"""What the standard library's decoders, Pillow and pyarrow raise for damaged bytes."""

OF_DAMAGE = (None, errno.EINVAL, errno.EOVERFLOW)  # OSError of a decoder, or of a seek to where no file can reach
LARGEST_PICTURE = 200_000_000  # bytes of a picture file; a larger one may be meant to exhaust the memory
DEEPEST_JSON = 100  # levels; deeper objects exhaust the stack of json, of pickle, and of whoever writes them again
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_fork(name: str) -> bool:
    """Whether macOS put this file beside another one, as `__MACOSX/._NAME` in archives; it holds none of the data."""
    *folders, last = name.split("/")
    return "__MACOSX" in folders or last.startswith("._")


@contextmanager
def damage_as(problem: Callable[[str], Exception]) -> Iterator[None]:
    """Raise problem(what is wrong) for all that damaged bytes make a decoder raise.

    Errors of the disk itself (no such file, no access, input/output error) pass as they are, and so do our own.
    """
    try:
        yield
    except DAMAGE as error:
        ours = type(error).__module__.startswith("dreamllm.")
        if ours or (isinstance(error, OSError) and error.errno not in OF_DAMAGE):
            raise
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise problem(f"{kind}{error}") from None


def parse_json(
    text: str,
    hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    constant: Callable[[str], Any] | None = None,
) -> Any:
    """The value of a JSON text that `check_json` accepts.

    hook: makes objects of (key, value) pairs.  constant: makes values of NaN and Infinity, or refuses them

    Raises ValueError saying what is wrong; json.JSONDecodeError, which is one, has the line and column.
    """
    try:
        value = json.loads(text, object_pairs_hook=hook, parse_constant=constant)
    except RecursionError:
        raise ValueError(f"is nested more than {DEEPEST_JSON} deep") from None
    check_json(value, text)
    return value


def check_json(value: Any, text: str) -> None:
    """Raise ValueError for a value that is nested too deeply, or that has half a surrogate pair in a string.

    Half a surrogate pair, as a text cut inside an emoji has, is no character: it cannot be written as UTF-8, and one of
    them makes pyarrow refuse a whole file.  text: the JSON of the value, by which most values are known to be sound.
    """
    if not _ESCAPED_SURROGATE.search(text) and text.count("[") + text.count("{") <= DEEPEST_JSON:
        return
    level, depth = [value], 0
    while level:
        if any(isinstance(inner, str) and not is_text(inner) for inner in level):
            raise ValueError("has half a surrogate pair in a string")
        holders = [inner for inner in level if isinstance(inner, (dict, list))]
        if holders and depth == DEEPEST_JSON:
            raise ValueError(f"is nested more than {DEEPEST_JSON} deep")
        level = [one for holder in holders for one in holder]
        level += [one for holder in holders if isinstance(holder, dict) for one in holder.values()]
        depth += 1


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

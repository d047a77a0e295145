"""People's own files (`sources.NAME.path` of an experiment): their digests, by which a changed file is noticed.

The dates of files say little: a picture that is moved over another one keeps its own. So a set is built again when the
contents of its folder change, and only then.
"""

from __future__ import annotations

import json
from pathlib import Path

from dreamllm.atomic import new_file
from dreamllm.config.reading import digest
from dreamllm.digests import sha256_of_file
from dreamllm.sources.records import files_below

KNOWN = Path("scratch/own")
"""Folder of the digests that were computed before, by set; may be deleted."""


def files(folder: Path) -> dict[str, Path]:
    """The files of a set by their names in its folder, without those whose own name begins with a dot (.DS_Store).

    Raises RecordProblem as `files_below`.
    """
    return {path.relative_to(folder).as_posix(): path for path in files_below(folder) if not path.name.startswith(".")}


def digests(folder: Path, known: Path | None = None) -> dict[str, str]:
    """SHA-256 of each file of a set, by name.

    known: what `remember` wrote; a file of the same size and date as then is not read again
    """
    before = json.loads(known.read_text(encoding="utf-8")) if known and known.is_file() else {}
    found = {}
    for name, path in files(folder).items():
        old = before.get(name)
        found[name] = old[2] if old and old[:2] == _stamp(path) else sha256_of_file(path)
    return found


def remember(folder: Path, known: Path) -> str:
    """`digest_of`; sizes, dates and digests of the files are written to the file `known`."""
    found = digests(folder, known)
    known.parent.mkdir(parents=True, exist_ok=True)
    with new_file(known) as temporary:
        stamped = {name: [*_stamp(path), found[name]] for name, path in files(folder).items() if name in found}
        temporary.write_text(json.dumps(stamped), encoding="utf-8")
    return digest(found)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def digest_of(folder: Path, known: Path | None = None) -> str:
    """One digest of a whole set: of the names and contents of its files."""
    return digest(digests(folder, known))

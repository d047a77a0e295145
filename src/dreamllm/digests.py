"""Digests of files and folders, and which files of a folder are its content."""

from __future__ import annotations

import hashlib
import json
import os.path
from pathlib import Path

from dreamllm.safe_join import shards_of

NOT_CONTENT = ".snakemake_timestamp"  # Snakemake leaves such a file in folders that it made; also in .dvcignore


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file, in hex, read in blocks. Raises OSError as `open` does."""
    return _of_file(path, "sha256")


def digest(path: str | Path) -> str:
    """SHA-256, in hex, of a file; or of a folder: of the names and SHA-256 of its `content_files`.

    Weights that are split have the path that they would have in one file (model.safetensors): the digest is that of the
    names and SHA-256 of their index and the files that it names.
    Raises FileNotFoundError when the path does not exist, and NameProblem for a malformed index.
    """
    files = _listing(path, "sha256")
    if isinstance(files, str):
        return files
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in files).encode()).hexdigest()


def md5(path: str | Path) -> str:
    """DVC's name of the content of a file or folder, as in dvc.lock: MD5 in hex, followed by `.dir` for a folder.

    Raises FileNotFoundError when the path does not exist.
    """
    files = _listing(path, "md5")
    if isinstance(files, str):
        return files
    listing = [{"md5": md5, "relpath": name} for name, md5 in files]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def content_files(folder: str | Path) -> list[Path]:
    """All files below a folder except Snakemake's marks, sorted by POSIX path; [] when there is no such folder."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != NOT_CONTENT)
    return sorted(files, key=Path.as_posix)  # DVC's order


def _listing(path: str | Path, algorithm: str) -> str | list[tuple[str, str]]:
    """The digest of a file, or (name, digest) of each file of a folder or of split weights."""
    path = Path(path)
    if path.is_file():
        return _of_file(path, algorithm)
    index = path.with_name(f"{path.name}.index.json")
    if os.path.isfile(index):  # noqa: PTH113, which would raise for a long name
        return [(name, _of_file(path.with_name(name), algorithm)) for name in (index.name, *shards_of(index))]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return [(file.relative_to(path).as_posix(), _of_file(file, algorithm)) for file in content_files(path)]


def _of_file(path: str | Path, algorithm: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()

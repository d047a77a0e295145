"""SHA-256 of files, and which files of a folder are its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

NOT_CONTENT = ".snakemake_timestamp"  # a mark that Snakemake leaves in folders; .dvcignore has it too


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file, in hex, read in blocks. Raises OSError as `open` does."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: str | Path) -> str:
    """sha256 of a file, or of a folder: of the names and digests of all files in it, Snakemake's mark apart.

    Raises FileNotFoundError where there is neither.
    """
    path = Path(path)
    if path.is_file():
        return sha256_of_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    lines = [f"{sha256_of_file(file)}  {file.relative_to(path).as_posix()}\n" for file in content_files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def content_files(folder: str | Path) -> list[Path]:
    """All files below a folder but Snakemake's marks, sorted by path; none where there is no such folder."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != NOT_CONTENT)

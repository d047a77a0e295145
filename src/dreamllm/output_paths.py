"""Types of argparse for paths that a verb writes to: they refuse what stands in the way before any work is done.

They raise OSError and not what argparse expects, so that `dreamllm VERB` answers with one line and without its usage.
"""

from __future__ import annotations

import errno
from pathlib import Path

from dreamllm.atomic import refuse_file


def folder_to_write(value: str) -> Path:
    """The path of a folder that a verb makes. Raises NotADirectoryError for a file there or above it."""
    path = Path(value)
    refuse_file(path)
    _refuse_file_above(path)
    return path


def file_to_write(value: str) -> Path:
    """The path of a file that a verb makes. Raises IsADirectoryError for a folder there, NotADirectoryError for a file
    above it."""
    path = Path(value)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, but a file is to be written there", value)
    _refuse_file_above(path)
    return path


def _refuse_file_above(path: Path) -> None:
    if file := next((above for above in path.parents if above.is_file()), None):
        raise NotADirectoryError(errno.ENOTDIR, f"cannot be made, because {file} is a file", str(path))

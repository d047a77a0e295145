"""Atomic writes: files and folders are written under a temporary name and renamed when complete.

Before the rename, contents are flushed to the disk (fsync), and after it the folder's entry, so that a power cut leaves
either the former result or the new one, whole. Files get the permissions that the umask gives, whoever wrote them:
safetensors makes its files readable by their owner only. A full disk is an OSError, whatever a library raises.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What a disk says: full, over the quota, file too big, read-only, damaged."""

FULL = 64 * 1024  # bytes; a disk with less free space is taken for full
HOST = re.sub(r"[^\w-]", "_", platform.node())[:24]


@contextmanager
def new_file(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path for a file. It replaces `path` when the block succeeds and is removed when it fails.

    sync: flush the file to the disk; False for the many files of a cache whose reader checks each of them
    Raises OSError where the disk refuses, also for errors of libraries that are none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with _disk_errors(temporary):
            temporary.unlink(missing_ok=True)
            temporary.touch()  # for the permissions that the umask gives
            mode = temporary.stat().st_mode & 0o777
            temporary.unlink()
            yield temporary
            temporary.chmod(mode)
            if sync:
                _flush(temporary)
            temporary.replace(path)
            if sync:
                _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """An empty temporary folder. It replaces `path` when the block succeeds and is removed when it fails.

    Raises OSError where the disk refuses, also for errors of libraries that are none, for a file called `path`, and for
    a folder that holds more than results.
    """
    path = Path(path).absolute()
    refuse_file(path)
    _refuse_home(path)
    temporary = temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _disk_errors(temporary):
            temporary.mkdir(parents=True)
            yield temporary
            inside = list(temporary.rglob("*"))
            folders = [path for path in inside if path.is_dir() and not path.is_symlink()]
            files = [path for path in inside if _is_own(path)]
            mode = temporary.stat().st_mode & 0o666
            for file in files:
                file.chmod(mode)
            with ThreadPoolExecutor(8) as pool:  # 400 files took 0.05 s together, 2 s one after the other
                list(pool.map(_flush, [*files, *folders, temporary]))
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
            _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_file(path: str | Path) -> None:
    """Raises NotADirectoryError for a file where a folder is to be written, before any work for it is done."""
    if Path(path).is_file():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, but a folder is to be written there", str(path))


def _refuse_home(path: Path) -> None:
    """Raises FileExistsError for the working folder, the home folder, a folder around them, a root of a repository."""
    whole = path.resolve()
    if (whole / ".git").exists() or any(own.resolve().is_relative_to(whole) for own in (Path.cwd(), Path.home())):
        what = "would be replaced with all that is in it: name a folder for the output alone"
        raise FileExistsError(errno.EEXIST, what, str(path))


def temporary_name(path: Path) -> Path:
    """The hidden name beside `path` under which this process writes it: .NAME.HOST-PID"""
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}")


def unfinished(folder: str | Path) -> list[Path]:
    """Temporary files and folders below a folder that processes of this machine left when they were killed.

    Those of living processes and of other machines are left out. Names without a machine are of earlier versions.
    """
    names = {path: re.fullmatch(rf"\..+\.(?:{re.escape(HOST)}-)?(\d+)", path.name) for path in Path(folder).rglob(".*")}
    return sorted(path for path, name in names.items() if name and not _is_alive(int(name[1])))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return True


def _is_own(path: Path) -> bool:
    """Whether a path is a file and no link: the files behind symbolic and hard links belong to others."""
    return path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1


def _flush(path: Path) -> None:
    """Wait until the contents of a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(number)


@contextmanager
def _disk_errors(temporary: Path) -> Iterator[None]:
    """Turn errors of libraries that come from the disk into an OSError with its number.

    The exceptions of safetensors and tokenizers have the system's message in their text. Those of torch.save
    (RuntimeError) and NumPy (OSError without a number) do not tell the reason, so the free space decides, as the disk
    is still full before the temporary file is removed.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno):
            raise
        number = next((number for number in DISK_ERRORS if os.strerror(number) in str(error)), None)
        unexplained = number is None and isinstance(error, OSError | RuntimeError)
        if unexplained and shutil.disk_usage(temporary.parent).free < FULL:
            number = errno.ENOSPC
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(temporary)) from error

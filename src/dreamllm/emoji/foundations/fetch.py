"""Fetches the foundation models by digest from a folder that is a DVC remote.

Such a remote is content-addressed: a file with MD5 `abcd...` lies at `files/md5/ab/cd...`, and a folder is a JSON list
of {md5, relpath}, whose own name ends in `.dir`. It is read here directly and not by `dvc get`, so that fetching works
inside `dvc repro` (no lock), in a copy without git history, and follows the configuration alone.

    dreamllm fetch-foundations --store data/store --md5 MD5.dir --sha256 SHA256 --out data/foundations
    dreamllm fetch-foundations --describe data/foundations        prints the two digests for a configuration
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from dreamllm import digests
from dreamllm.digests import content_files, sha256_of_file


class FetchProblem(ValueError):
    """Foundations that are not in the store, or are not what the configuration says."""


def fetch(store: Path, md5: str, sha256: str, out: Path) -> None:
    """Copy the folder called `md5` (`<hex>.dir`) from `store` to `out` and check it against `sha256`.

    Each entry of the folder replaces the one of that name in `out`, after all of them have been checked.
    Raises FetchProblem, naming what is missing or different.
    """
    files = listing(store, md5)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".fetching-") as name:
        staging = Path(name)
        for file in files:
            target = staging / file["relpath"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stored(store, file["md5"], file["relpath"]), target)
        found = sha256_of(staging)
        if found != sha256:
            raise FetchProblem(
                f"the folder {md5} in {store} has sha256 {found}, the configuration says {sha256}: "
                "take both digests from `dreamllm fetch-foundations --describe FOLDER`"
            )
        for entry in sorted(staging.iterdir()):
            target = out / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)


def sha256_of(folder: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder."""
    lines = [f"{sha256_of_file(file)}  {name}\n" for name, file in _files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def md5_of(folder: Path) -> str:
    """DVC's name of a folder's content, as in dvc.lock."""
    return digests.md5(folder)


def _files(folder: Path) -> list[tuple[str, Path]]:
    """All files below a folder with their relative POSIX names, in the order in which DVC lists them."""
    return sorted((file.relative_to(folder).as_posix(), file) for file in content_files(folder))


def stored(store: Path, md5: str, what: str) -> Path:
    """The file of this MD5 in a store. Raises FetchProblem, naming `what`, when it is not there."""
    path = store / "files" / "md5" / md5[:2] / md5[2:]
    if not path.exists():
        raise FetchProblem(f"{what} is not in the store: {path} does not exist. Is data/store complete (git status)?")
    return path


def listing(store: Path, md5: str) -> list[dict[str, str]]:
    """The files, {md5, relpath} each, of the folder called `md5` in a store. Raises FetchProblem."""
    return json.loads(stored(store, md5, "the folder of the foundations").read_text(encoding="utf-8"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm fetch-foundations`."""
    parser.add_argument("--describe", type=Path, metavar="FOLDER", help="print a folder's digests and do nothing else")
    parser.add_argument("--store", type=Path, help="DVC remote that is a folder")
    parser.add_argument("--md5", help="DVC's name of the content, <hex>.dir")
    parser.add_argument("--sha256", help="digest of all files")
    parser.add_argument("--out", type=Path, help="where to put them")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm fetch-foundations`."""
    if args.describe:
        print(f"md5: {md5_of(args.describe)}\nsha256: {sha256_of(args.describe)}")
    elif all((args.store, args.md5, args.sha256, args.out)):
        fetch(args.store, args.md5, args.sha256, args.out)
    else:
        raise FetchProblem("--store, --md5, --sha256 and --out are needed together, or --describe alone")

"""Fetches the foundation models by digest from a folder that is a DVC remote.

Such a remote is content-addressed: a file with MD5 `abcd...` is at `files/md5/ab/cd...`, and a folder is a JSON list of
{md5, relpath}, whose own name ends in `.dir`. It is read directly instead of by `dvc get`, so that fetching works
inside `dvc repro` (which holds DVC's lock) and in a copy without git history, and depends on the configuration alone.

    dreamllm fetch-foundations --config config/embedded.yaml --out data/foundations
    dreamllm fetch-foundations --describe data/foundations        prints the two digests for a configuration
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dreamllm import digests
from dreamllm.config.reading import load
from dreamllm.config.world import World
from dreamllm.emoji.foundations import gates
from dreamllm.output_paths import folder_to_write
from dreamllm.safe_join import NameProblem, safe_join


class StoreProblem(ValueError):
    """Foundations that are not in the store, or whose digest is not that of the configuration."""


def fetch(store: Path, md5: str, sha256: str, world: World, out: Path, others: Sequence[str] = ()) -> None:
    """Copy the folder called `md5` (`<hex>.dir`) from `store` to `out` and check it against `sha256`.

    Each entry of the folder replaces the one of that name in `out`, after all of them have been checked.
    Raises StoreProblem, naming what is missing or different, and GateProblem for foundations whose card lacks a gate or
    that were trained on another language than the world's.
    """
    files = listing(store, md5)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".fetching-") as name:
        staging = Path(name)
        for file in files:
            try:
                target = safe_join(staging, file["relpath"])
            except NameProblem as problem:
                raise StoreProblem(f"the listing {md5} in {store}: {problem}") from None
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stored(store, file["md5"], file["relpath"]), target)
        found = digests.digest(staging)
        if found != sha256:
            raise StoreProblem(
                f"the folder {md5} in {store} has sha256 {found}, the configuration says {sha256}: "
                "take both digests from `dreamllm fetch-foundations --describe FOLDER`"
            )
        gates.check_card(staging / gates.CARD, world, f"the folder {md5} in {store}", others)
        for entry in sorted(staging.iterdir()):
            target = out / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            entry.replace(target)


def stored(store: Path, md5: str, what: str) -> Path:
    """The file of this MD5 in a store. Raises StoreProblem, naming `what`, when it is not there, or when `md5` is no
    MD5."""
    if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
        raise StoreProblem(f"{what}: {md5[:80]!a} is no MD5 of 32 hex digits")
    path = store / "files" / "md5" / md5[:2] / md5[2:]
    if not path.exists():
        raise StoreProblem(f"{what} is not in the store: {path} does not exist. Is data/store complete (git status)?")
    return path


def listing(store: Path, md5: str) -> list[dict[str, str]]:
    """The files, {md5, relpath} each, of the folder called `md5` in a store. Raises StoreProblem."""
    path = stored(store, md5, "the folder of the foundations")
    try:
        files = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreProblem(f"{path}: no listing of a folder ({error})") from None
    keys = ("md5", "relpath")
    if not isinstance(files, list) or not all(
        isinstance(file, dict) and all(isinstance(file.get(key), str) for key in keys) for file in files
    ):
        raise StoreProblem(f"{path}: no listing of a folder, which is a list of objects with the texts md5 and relpath")
    return files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm fetch-foundations`."""
    parser.add_argument("--describe", type=Path, metavar="FOLDER", help="print a folder's digests and do nothing else")
    parser.add_argument("--config", type=Path, help="experiment that names store, digests and world")
    parser.add_argument("--out", type=folder_to_write, help="where to put them")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm fetch-foundations`."""
    if args.describe:
        print(f"md5: {digests.md5(args.describe)}\nsha256: {digests.digest(args.describe)}")
    elif args.config and args.out:
        experiment = load(args.config)
        wanted = experiment.instruments
        if wanted.source != "fetch":
            raise StoreProblem(f"{args.config}: its foundations are trained, not fetched: run `make foundations`")
        fetch(Path(wanted.store), wanted.md5, wanted.sha256, experiment.world, args.out, wanted.others)
    else:
        raise StoreProblem("--config and --out are needed together, or --describe alone")

"""Fetch a public data set of the manifest: all its files, complete and checked, or nothing.

    dreamllm fetch-source --source llava_pretrain --out data/raw/llava_pretrain

Files are collected in a folder beside `--out`, where an interrupted fetch resumes; `--out` appears when all files are
there. The first fetch writes NAME.lock.json beside it, with the digest of each file and the commit of each repository;
each later fetch must give the same bytes. Sets that must be requested by a person are taken from data/by_hand/NAME.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from braceexpand import braceexpand
from filelock import FileLock, Timeout

from dreamllm.atomic import new_file
from dreamllm.data.damage import parse_json
from dreamllm.digests import content_files, sha256_of_file
from dreamllm.output_paths import folder_to_write
from dreamllm.safe_join import NameProblem, safe_join
from dreamllm.sources import manifest
from dreamllm.sources.manifest import Source, SourceFile
from dreamllm.sources.services import hub
from dreamllm.sources.services.http import FetchProblem, download, session
from dreamllm.sources.services.hub import HubFile

BY_HAND = Path("data/by_hand")
Files = dict[str, dict[str, Any]]
"""Of each file by name: sha256, bytes and origin."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch and the name it is saved under.

    origin: address, or repository@commit/path.  sha256: digest of the manifest, or "".  hub: where it is on the Hub.
    """

    name: str
    origin: str
    sha256: str = ""
    hub: HubFile | None = None


# ---- any files: from an address or from the Hub, complete and checked ------------------------------------------------


@contextmanager
def assembled(out: Path, identity: str) -> Iterator[Path]:
    """A folder to collect files in, which becomes `out` when the block ends without an error and stays otherwise.

    It lies beside `out` under a name with `identity`, so that a later call with the same identity resumes there.
    Raises FetchProblem when another process is filling it.
    """
    partial = out.with_name(f".{out.name}.{identity}")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            yield partial
            shutil.rmtree(out, ignore_errors=True)
            partial.replace(out)
    except Timeout:
        raise FetchProblem(f"{out}: another process is fetching it; wait for it or stop it") from None


def fetch_files(files: Sequence[RemoteFile], folder: Path, locked: Mapping[str, Any] | None = None) -> Files:
    """Fetch files to `folder`, all but those that an earlier call fetched, and check every one.

    locked: what an earlier fetch found, which must be found again. Removes other files from the folder.
    Raises FetchProblem, naming the file.
    """
    names = Counter(file.name for file in files)
    if duplicates := sorted(name for name, count in names.items() if count > 1):
        raise FetchProblem(f"two files would be called {', '.join(duplicates)}: give one of them another `to`")
    web, found = session(), {}
    try:
        paths = [safe_join(folder, file.name) for file in files]
    except NameProblem as problem:
        raise FetchProblem(f"{folder.parent}: {problem}") from None
    for file, path in zip(files, paths, strict=True):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if file.hub:
                check_space(path.parent, file.origin, file.hub.size)
                hub.download(file.hub, folder / file.name.removesuffix(file.hub.path))
            else:
                download(file.origin, path, web)
        found[file.name] = verified(path, file, (locked or {}).get(file.name))
    for path in folder.rglob("*"):  # left by another version of the manifest
        if path.is_file() and path.relative_to(folder).as_posix() not in found:
            path.unlink()
    return found


def verified(path: Path, file: RemoteFile, locked: Mapping[str, Any] | None) -> dict[str, Any]:
    """sha256, bytes and origin of a file that was fetched; locked: what an earlier fetch found.

    Removes the file and raises FetchProblem when its digest or size is wrong.
    """
    digest, size = sha256_of_file(path), path.stat().st_size
    again = "fetch it again; if it differs again, it was changed at its origin"
    changed = "it was changed at its origin since the first fetch; remove the lock file only to accept that"
    for expected, authority, what_to_do in (
        (file.sha256, "the manifest", again),
        (file.hub and file.hub.sha256, "the Hub", again),
        (locked and locked["sha256"], "the lock file", changed),
    ):
        if expected and digest != expected:
            path.unlink()
            raise FetchProblem(f"{file.origin}: sha256 is {digest}, {authority} says {expected}: {what_to_do}")
    if file.hub and size != file.hub.size:
        path.unlink()
        raise FetchProblem(f"{file.origin}: has {size} bytes, the Hub says {file.hub.size}: {again}")
    return {"sha256": digest, "bytes": size, "origin": file.origin}


def check_space(folder: Path, origin: str, size: int) -> None:
    """Raise FetchProblem when a file of `size` bytes does not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise FetchProblem(f"{origin}: needs {size / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free")


# ---- a set of the manifest -------------------------------------------------------------------------------------------


def lock_path(out: Path) -> Path:
    """The lock file of a set that is fetched to `out`."""
    return out.with_name(f"{out.name}.lock.json")


def fetch(name: str, source: Source, out: Path, by_hand: Path = BY_HAND) -> dict[str, Any]:
    """Fetch a set to the folder `out` and return the content of its lock file: {"source": name, "files": Files}.

    Raises FetchProblem, naming the file and what is wrong with it; `out` is then as it was.
    """
    lock_file = lock_path(out)
    lock = _read_lock(lock_file) if lock_file.exists() else {"files": {}}
    locked = lock["files"]
    present = {path.relative_to(out).as_posix(): sha256_of_file(path) for path in content_files(out)}
    if present and present == {file: entry["sha256"] for file, entry in locked.items()}:
        return lock
    with assembled(out, "fetching") as partial:
        if source.files:
            found = fetch_files([one for file in source.files for one in expand(file, locked)], partial, locked)
        else:
            found = _take_by_hand(name, source, partial, by_hand / name, locked)
        if gone := sorted(locked.keys() - found.keys()):
            raise FetchProblem(f"{name}: {', '.join(gone)} is in {lock_file} and no longer at its origin")
    lock = {"source": name, "files": found}
    with new_file(lock_file) as temporary:
        temporary.write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return lock


def _read_lock(path: Path) -> dict[str, Any]:
    """The content of a lock file. Raises FetchProblem for one that is not as `fetch` writes it."""
    keys = ("sha256", "origin")
    try:
        lock = parse_json(path.read_text(encoding="utf-8-sig"))
        sound = all(isinstance(entry[key], str) for entry in lock["files"].values() for key in keys)
    except (ValueError, LookupError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise FetchProblem(f"{path}: is no lock file as `dreamllm fetch-source` writes it; restore it (git checkout)")
    return lock


def expand(file: SourceFile, locked: Mapping[str, Any]) -> list[RemoteFile]:
    """The files that an entry of the manifest stands for; of the Hub, at the commit of the manifest or the lock file.

    Asks the Hub. Raises FetchProblem.
    """
    prefix = f"{file.to}/" if file.to else ""
    if file.hub:
        origins = (entry["origin"] for entry in locked.values())
        origin = next((origin for origin in origins if origin.startswith(f"{file.hub}@")), "")
        revision = file.revision or origin.partition("@")[2].split("/")[0] or None
        listed = hub.list_files(file.hub, [file.path], revision)
        return [RemoteFile(prefix + one.path, one.origin, file.sha256, one) for one in listed]
    urls = list(braceexpand(file.url))
    for number in file.missing:
        urls.remove(file.url[: file.url.index("{")] + str(number) + file.url[file.url.rindex("}") + 1 :])
    return [RemoteFile(prefix + unquote(urlsplit(url).path.rsplit("/", 1)[-1]), url, file.sha256) for url in urls]


def _take_by_hand(name: str, source: Source, partial: Path, folder: Path, locked: Mapping[str, Any]) -> Files:
    files = content_files(folder)
    if not files:
        stands_in = f" Or use {source.substitute}, which stands in for it." if source.substitute else ""
        raise FetchProblem(
            f"{name} ({source.availability}) cannot be fetched: {source.obtain} Put its files into {folder}.{stands_in}"
        )
    shutil.rmtree(partial)
    shutil.copytree(folder, partial)
    named = [(path, path.relative_to(folder).as_posix()) for path in files]
    return {
        file: verified(partial / file, RemoteFile(file, f"by hand: {path}"), locked.get(file)) for path, file in named
    }


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm fetch-source`."""
    manifest.add_arguments(parser)
    parser.add_argument("--by-hand", type=Path, default=BY_HAND, help="folder of sets that a person downloaded")
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder to fetch to, data/raw/NAME")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm fetch-source`."""
    source = manifest.chosen(args)
    lock = fetch(args.source, source, args.out, args.by_hand)
    size = sum(entry["bytes"] for entry in lock["files"].values())
    print(f"{args.out}: {len(lock['files'])} files, {size:,} bytes, digests in {lock_path(args.out)}")

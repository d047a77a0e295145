"""Fetch a public data set of the manifest: all its files, whole and checked, or nothing.

    dreamllm fetch-source --source llava_pretrain --out data/raw/llava_pretrain

Files are gathered in a folder beside `--out` and go on there after an interruption; `--out` appears when every file is
there. NAME.lock.json beside it holds the digest of every file and the commit of every repository: the first fetch
writes it, each later one must give the same bytes. Sets that a person has to ask for are taken from data/by_hand/NAME.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from braceexpand import braceexpand
from filelock import FileLock, Timeout

from dreamllm.atomic import new_file
from dreamllm.digests import content_files, sha256_of_file
from dreamllm.sources import manifest
from dreamllm.sources.manifest import Source, SourceFile
from dreamllm.sources.services import http
from dreamllm.sources.services.http import ATTEMPTS, PASSING, FetchProblem, download, session

BY_HAND = Path("data/by_hand")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Item:
    """One file to fetch. origin: address, or repository@commit/path.  sha256: as published, or ""."""

    name: str
    origin: str
    sha256: str = ""
    size: int | None = None
    hub: tuple[str, str, str, str] | None = None  # kind, repository, commit, path


def _what_is_there(out: Path) -> dict[str, str]:
    """Digests of the files of a folder, by name."""
    return {path.relative_to(out).as_posix(): sha256_of_file(path) for path in content_files(out)}


def lock_path(out: Path) -> Path:
    """The lock file of a set that lies at `out`."""
    return out.with_name(f"{out.name}.lock.json")


def fetch(name: str, source: Source, out: Path, by_hand: Path = BY_HAND) -> dict[str, Any]:
    """Fetch a set to the folder `out` and return its lock: {"files": {name: {sha256, bytes, origin}}}.

    Raises FetchProblem, saying what is wrong with which file; `out` is then as it was.
    """
    lock_file = lock_path(out)
    if (there := _what_is_there(out)) and lock_file.exists():
        lock = json.loads(lock_file.read_text(encoding="utf-8"))
        if there == {name: entry["sha256"] for name, entry in lock["files"].items()}:
            return lock
    locked = json.loads(lock_file.read_text(encoding="utf-8")) if lock_file.exists() else {"files": {}}
    partial = out.with_name(f".{out.name}.fetching")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(partial.with_suffix(".lock"), timeout=0):
            if source.files:
                found = _fetch_files(source, partial, locked)
            else:
                found = _take_by_hand(name, source, partial, by_hand / name, locked)
            for path in partial.rglob("*"):  # from an older manifest
                if path.is_file() and path.relative_to(partial).as_posix() not in found:
                    path.unlink()
            if locked["files"] and (gone := sorted(locked["files"].keys() - found.keys())):
                raise FetchProblem(f"{name}: {', '.join(gone)} stands in {lock_file} and is not there any more")
            shutil.rmtree(out, ignore_errors=True)
            os.replace(partial, out)
    except Timeout:
        raise FetchProblem(f"{name}: another process is fetching it to {out}; wait for it or stop it") from None
    lock = {"source": name, "files": found}
    with new_file(lock_file) as temporary:
        temporary.write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return lock


def _fetch_files(source: Source, partial: Path, locked: dict[str, Any]) -> dict[str, Any]:
    web, found = session(), {}
    items = [item for file in source.files for item in expand(file, locked)]
    names = [item.name for item in items]
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise FetchProblem(f"two files would be called {', '.join(twice)}: give one of them another `to`")
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise FetchProblem(f"{outside[0]!r} would lie outside {partial.parent}")
    for item in items:
        path = partial / item.name
        if not path.exists():
            check_space(path.parent, item)
            if item.hub:
                _download_from_hub(item, partial)
            else:
                download(item.origin, path, web)
        found[item.name] = verified(path, item, locked["files"].get(item.name))
    return found


def verified(path: Path, item: Item, before: dict[str, Any] | None) -> dict[str, Any]:
    """The lock's entry of a file that has come. Removes the file and raises FetchProblem when it is not as expected."""
    digest, size = sha256_of_file(path), path.stat().st_size
    for expected, told_by in ((item.sha256, "its publisher"), ((before or {}).get("sha256"), "the lock file")):
        if expected and digest != expected:
            path.unlink()
            what_to_do = (
                "fetch it again; when it differs again, it was changed at its origin"
                if told_by == "its publisher"
                else "it was changed at its origin since the first fetch; remove the lock file only to accept that"
            )
            raise FetchProblem(f"{item.origin}: sha256 {digest}, by {told_by} it should be {expected}: {what_to_do}")
    if item.size is not None and size != item.size:
        path.unlink()
        raise FetchProblem(f"{item.origin}: {size} bytes came, {item.size} were announced: fetch it again")
    return {"sha256": digest, "bytes": size, "origin": item.origin}


def check_space(folder: Path, item: Item) -> None:
    """Raise FetchProblem when a file of known size does not fit on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if item.size is not None and item.size > free:
        raise FetchProblem(f"{item.origin}: needs {item.size / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free")


def expand(file: SourceFile, locked: dict[str, Any]) -> list[Item]:
    """The files that an entry of the manifest stands for. Asks the Hub; raises FetchProblem."""
    if file.hub:
        return _hub_items(file, locked)
    urls = list(braceexpand(file.url))
    for number in file.missing:
        gone = file.url[: file.url.index("{")] + str(number) + file.url[file.url.rindex("}") + 1 :]
        urls.remove(gone)
    prefix = f"{file.to}/" if file.to else ""
    return [Item(prefix + unquote(urlsplit(url).path.rsplit("/", 1)[-1]), url, file.sha256) for url in urls]


# ---- the Hugging Face Hub: huggingface_hub downloads and goes on; HF_TOKEN and HF_ENDPOINT as it reads them -------


def _hub_items(file: SourceFile, locked: dict[str, Any]) -> list[Item]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    kind, repository = file.hub.split("s/", 1)
    before = next((e["origin"] for e in locked["files"].values() if e["origin"].startswith(f"{file.hub}@")), "")
    revision = file.revision or before.partition("@")[2].split("/")[0] or None
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)

    def list_files() -> tuple[str, list[RepoFile]]:
        commit = api.repo_info(repository, repo_type=kind, revision=revision).sha
        tree = api.list_repo_tree(repository, repo_type=kind, revision=commit, recursive=True)
        files = [entry for entry in tree if isinstance(entry, RepoFile) and fnmatch.fnmatchcase(entry.path, file.path)]
        return commit, files

    commit, files = _ask_hub(list_files, file.hub, revision)
    if not files:
        raise FetchProblem(f"{file.hub}@{commit}: no file matches {file.path!r}")
    prefix = f"{file.to}/" if file.to else ""
    return [
        Item(
            prefix + entry.path,
            f"{file.hub}@{commit}/{entry.path}",
            file.sha256 or (entry.lfs.sha256 if entry.lfs else ""),
            entry.size,
            (kind, repository, commit, entry.path),
        )
        for entry in files
    ]


def _download_from_hub(item: Item, partial: Path) -> None:
    from huggingface_hub import hf_hub_download

    kind, repository, commit, path = item.hub
    folder = partial / item.name.removesuffix(path)

    def download_file() -> None:
        endpoint = os.environ.get("HF_ENDPOINT") or None
        hf_hub_download(repository, path, repo_type=kind, revision=commit, local_dir=folder, endpoint=endpoint)

    _ask_hub(download_file, f"{kind}s/{repository}", commit)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's notes


def _ask_hub(call: Callable[[], Answer], hub: str, revision: str | None) -> Answer:
    """What `call` returns; tried again when the Hub is busy or the line is cut. Raises FetchProblem otherwise."""
    import httpx2  # what huggingface_hub speaks HTTP with; its errors come through
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    for attempt in range(ATTEMPTS):
        wait = http.BACKOFF * 2**attempt
        try:
            return call()
        except RevisionNotFoundError:
            raise FetchProblem(f"{hub}: there is no revision {revision!r}; its page lists those there are") from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
                raise FetchProblem(
                    f"{hub}: it does not exist, or its conditions are not accepted: open "
                    f"https://huggingface.co/{hub.removeprefix('models/')} with an account, accept them, and put the "
                    "account's token into the environment variable HF_TOKEN"
                ) from None
            if status not in PASSING or attempt + 1 == ATTEMPTS:
                raise FetchProblem(f"{hub}@{revision}: {error}") from None
            told = error.response.headers.get("Retry-After", "")
            wait = min(int(told), http.LONGEST_WAIT) if told.isdigit() else wait
        except (OSError, httpx2.TransportError) as error:  # the line was cut, or fewer bytes came than announced
            if attempt + 1 == ATTEMPTS:
                raise FetchProblem(f"{hub}@{revision}: {error}; the same command goes on where it stopped") from None
        time.sleep(wait)
    raise AssertionError("unreachable")


# ---- what a person has to bring ------------------------------------------------------------------------------------


def _take_by_hand(name: str, source: Source, partial: Path, folder: Path, locked: dict[str, Any]) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        stands_in = f" Or use {source.substitute}, which stands in for it." if source.substitute else ""
        raise FetchProblem(
            f"{name} ({source.availability}) cannot be fetched: {source.obtain} Put its files into {folder}.{stands_in}"
        )
    found = {}
    for path in files:
        item = Item(path.relative_to(folder).as_posix(), f"by hand: {path}")
        copy = partial / item.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        shutil.copyfile(path, copy)
        found[item.name] = verified(copy, item, locked["files"].get(item.name))
    return found


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm fetch-source`."""
    manifest.add_arguments(parser)
    parser.add_argument("--by-hand", type=Path, default=BY_HAND, help="folder of sets that a person brings")
    parser.add_argument("--out", type=Path, required=True, help="folder to fetch to, data/raw/NAME")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm fetch-source`."""
    source = manifest.chosen(args)
    lock = fetch(args.source, source, args.out, args.by_hand)
    size = sum(entry["bytes"] for entry in lock["files"].values())
    print(f"{args.out}: {len(lock['files'])} files, {size:,} bytes, digests in {lock_path(args.out)}")

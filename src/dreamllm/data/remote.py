"""Shards on a web server, in an object store or on the Hugging Face Hub, read through a local cache of bounded size.

A shard list is a JSON file in the format of the wids index (webdataset), with a digest of each shard:

    {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "pairs", "shardlist": [
      {"url": "s3://bucket/pairs-00000.tar", "nsamples": 1000, "filesize": 73400320, "sha256": "..."}, ...]}

An address without a scheme is a path relative to the list's folder, and its shard is read where it is. `md5sum`, which
wids writes, is checked like `sha256`; without either the size alone is. fsspec fetches the others whole: http(s)://,
s3:// (needs the package s3fs; credentials and endpoint from the environment variables AWS_...), hf:// (HF_TOKEN,
HF_ENDPOINT), gs:// (gcsfs) and az:// (adlfs). Its other schemes are refused, because some read further addresses or
templates out of a file. The processes of a node share one cache folder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

from dreamllm.atomic import new_file, unfinished
from dreamllm.data.damage import parse_json
from dreamllm.masking import mask

ATTEMPTS, PAUSE = 5, 2.0  # tries of one shard, and seconds before the second one, doubled each time
SILENCE = 60.0  # seconds without a byte after which a web server counts as gone
AHEAD = 4  # shards that a process fetches at once
CHANGED = "bring the former file back, or list it again by dreamllm list-shards (which begins another training)"
UNREACHABLE = "check that its address can be reached, and run the same command again"
SCHEMES = ("http", "https", "s3", "hf", "gs", "az")
HOPELESS = (401, 403, 404, 410)  # HTTP statuses after which no other try follows


class RemoteShardProblem(ValueError):
    """A shard list that cannot be read, or a shard that cannot be fetched or is not what its list says."""


@dataclass(frozen=True)
class ShardCache:
    """Local copies of remote shards: those that were read last, of together at most `limit` bytes.

    Up to AHEAD shards for each process come on top of it while they are fetched.
    """

    folder: Path
    limit: int

    @cached_property
    def _requests(self) -> SimpleQueue[RemoteShard]:
        requests: SimpleQueue[RemoteShard] = SimpleQueue()
        for number in range(AHEAD):  # daemons, because the end of a training waits for no shard
            Thread(target=_fetch_requested, args=(requests,), name=f"shards {number}", daemon=True).start()
        return requests

    def fetch_ahead(self, shards: Iterable[RemoteShard]) -> None:
        """Begin to fetch shards, in this order, and return at once. What goes wrong is met again when they are read."""
        for shard in shards:
            self._requests.put(shard)

    def make_room(self, size: int) -> None:
        """Delete the shards that were read longest ago until `size` bytes more fit into the limit."""
        with (self.folder / ".room.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in unfinished(self.folder):  # of processes that were killed
                path.unlink(missing_ok=True)
            found = [
                (status.st_mtime_ns, status.st_size, path)
                for path in self.folder.glob("*.tar")
                if (status := _stat(path))
            ]
            total = size + sum(length for _, length, _ in found)
            for _, length, path in sorted(found):
                if total <= self.limit:
                    break
                path.unlink(missing_ok=True)
                total -= length


@dataclass(frozen=True)
class RemoteShard:
    """A shard of a list, in place of its path: `open` fetches it where the cache does not have it.

    documents, size: numbers of the list.  digests: of sha256 and md5, those that the list has
    """

    address: str
    documents: int
    size: int
    digests: tuple[tuple[str, str], ...]
    cache: ShardCache = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.address.partition("?")[0]  # what follows may be a signature

    @property
    def path(self) -> Path:
        """Its local copy, which may not exist. The name depends on what the list says of the shard."""
        named = hashlib.sha256(f"{self.address} {self.size} {self.digests}".encode()).hexdigest()[:32]
        return self.cache.folder / f"{named}.tar"

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the local copy for reading. Raises RemoteShardProblem where there is none and it cannot be fetched."""
        for _ in range(ATTEMPTS):
            try:
                file = self.path.open("rb")
            except FileNotFoundError:  # not fetched yet, or deleted by another process since
                self.fetch()
                continue
            os.utime(file.fileno())  # read last
            return file
        raise RemoteShardProblem(
            f"{self}: its copy in {self.cache.folder} was deleted as soon as it was fetched, {ATTEMPTS} times; raise "
            "machine.shard_cache_gb, or give each job a cache folder of its own (machine.shard_cache)"
        )

    def touch(self) -> bool:
        """Mark a local copy as just read; returns whether there is one."""
        try:
            os.utime(self.path)
        except FileNotFoundError:
            return False
        return True

    def fetch(self, *, wait: bool = True) -> None:
        """Fetch the shard and check it, unless the cache has it. wait: for another process that is fetching it now

        Raises RemoteShardProblem.
        """
        self.cache.folder.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return
            if self.path.exists():
                return
            self.cache.make_room(self.size)
            fetch_file(self.address, self.path, self._check)

    def _check(self, path: Path) -> None:
        """Raises RemoteShardProblem unless a file is what the list says."""
        if (size := path.stat().st_size) != self.size:
            raise RemoteShardProblem(f"{size} bytes came, the shard list says {self.size}")
        for algorithm, expected in self.digests:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if found != expected:
                raise RemoteShardProblem(f"its {algorithm} is {found}, the shard list says {expected}")


def _fetch_requested(requests: SimpleQueue[RemoteShard]) -> None:
    while True:
        with suppress(RemoteShardProblem, OSError):  # whoever reads the shard tries again, and says what is wrong
            requests.get().fetch(wait=False)


def read_list(path: Path, cache: ShardCache | None) -> list[tuple[Path | RemoteShard, int]]:
    """The shards of a list and their numbers of documents. Remote ones need a cache.

    Raises RemoteShardProblem, naming the list and the entry.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RemoteShardProblem(f"{path}: is no JSON ({error}); write it by dreamllm list-shards") from error
    entries = content.get("shardlist") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise RemoteShardProblem(f'{path}: has no list "shardlist"; write it by dreamllm list-shards')
    found: list[tuple[Path | RemoteShard, int]] = []
    for number, entry in enumerate(entries):
        if problem := _entry_problem(entry):
            raise RemoteShardProblem(f"{path}: shardlist[{number}]: {problem}")
        if "://" not in entry["url"]:
            found.append((path.parent / entry["url"], entry["nsamples"]))
            continue
        if cache is None:
            raise RemoteShardProblem(f"{path}: shardlist[{number}] is not on this machine, and nothing is fetched here")
        digests = tuple((name, entry[key]) for name, key in (("sha256", "sha256"), ("md5", "md5sum")) if entry.get(key))
        found.append(
            (RemoteShard(entry["url"], entry["nsamples"], entry["filesize"], digests, cache), entry["nsamples"])
        )
    addresses = [str(shard) for shard, _ in found]
    if len(set(addresses)) < len(addresses):
        twice = next(address for number, address in enumerate(addresses) if address in addresses[:number])
        raise RemoteShardProblem(f"{path}: {twice} is listed twice")
    return found


def _entry_problem(entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("url"), str) or not entry["url"]:
        return 'needs a "url"'
    if problem := address_problem(entry["url"]):
        return problem
    wanted = ("nsamples", "filesize") if "://" in entry["url"] else ("nsamples",)
    for key in wanted:
        if type(entry.get(key)) is not int or entry[key] < 1:
            return f'"{key}" of {entry["url"][:200]} is no positive whole number'
    for key, length in (("sha256", 64), ("md5sum", 32)):
        if not re.fullmatch(f"[0-9a-f]{{{length}}}", str(entry.get(key) or "0" * length)):
            return f'"{key}" of {entry["url"][:200]} is no digest in lower-case hexadecimal'
    return ""


def address_problem(address: str) -> str:
    """Why an address is none that shards are fetched from; "" for a path and for one of SCHEMES."""
    scheme, found, _ = address.partition("://")
    if (found and scheme not in SCHEMES) or "::" in address:
        return f"shards are not read from {address[:200]}, but from paths and {'://, '.join(SCHEMES)}://"
    return ""


def fetch_file(address: str, path: Path, check: Callable[[Path], None] = lambda path: None) -> None:
    """Fetch a file by fsspec, whole or not at all, with several tries.

    check: raises an error for a file that is not the right one. Raises RemoteShardProblem, which names the address, the
    reason and what to do.
    """
    for attempt in range(ATTEMPTS):
        try:
            with new_file(path) as temporary:
                _download(address, temporary)
                check(temporary)
            return
        except Exception as error:  # each file system of fsspec has exceptions of its own
            advice = _advice(error)
            if advice or attempt + 1 == ATTEMPTS:
                advice = advice or (CHANGED if isinstance(error, RemoteShardProblem) else UNREACHABLE)
                tries = f" in {attempt + 1} tries" if attempt else ""
                reason = str(error) if isinstance(error, RemoteShardProblem) else f"{type(error).__name__}: {error}"
                where = address.partition("?")[0]
                raise RemoteShardProblem(f"{where}: cannot be fetched{tries} ({_masked(reason)}); {advice}") from error
        time.sleep(PAUSE * 2**attempt)


def _download(address: str, path: Path) -> None:
    import fsspec  # and aiohttp, s3fs or huggingface_hub: only where a set is remote

    options: dict[str, Any] = {}
    if address.startswith("hf://"):
        options = {"endpoint": os.environ.get("HF_ENDPOINT")}
    elif address.startswith("http"):
        from aiohttp import ClientTimeout

        # by default the whole of a shard would have to come within five minutes
        options = {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)}}
    file_system, name = fsspec.url_to_fs(address, **options)
    file_system.get_file(name, str(path))


def _advice(error: Exception) -> str:
    """What to do about an error that another try does not mend; "" for one that may pass."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ImportError):
        return "install the package that it names"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk of the cache is full: lower machine.shard_cache_gb, or choose another machine.shard_cache"
    if isinstance(error, PermissionError) or status in (401, 403):
        return "set the credentials of this address in the environment"
    if isinstance(error, FileNotFoundError) or status in HOPELESS:
        return "correct its address in the shard list, or bring the shard back"
    return ""


def _masked(message: str) -> str:
    """The message of an error without secrets and the queries of addresses, which may hold a signature."""
    return mask(re.sub(r"\?[^\s'\"]*", "?...", message))[:500]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process has just deleted it
        return None

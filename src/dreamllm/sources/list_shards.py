"""Write the list of some shards, with their documents counted and their digests: `dreamllm list-shards ... --out FILE`.

    dreamllm list-shards data/pairs/pairs-*.tar --base s3://bucket/pairs --out data/web_pairs/pairs.json
    dreamllm list-shards "https://example.org/pairs-{00000..09999}.tar" --out data/web_pairs/pairs.json

A training reads the listed shards over the network (docs/data.md). Each shard is read once here: list those on a disk
of yours before you upload them, with the address of their folder as --base. Others are fetched, one after the other on
each thread, and deleted again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from braceexpand import braceexpand

from dreamllm.atomic import new_file
from dreamllm.data import shards
from dreamllm.data.remote import RemoteShardProblem, address_problem, fetch_file
from dreamllm.digests import sha256_of_file
from dreamllm.output_paths import file_to_write
from dreamllm.progress import counted


def list_shards(addresses: Sequence[str], base: str, out: Path, threads: int = 4) -> dict[str, Any]:
    """Write the list of some shards to the file `out`, and return its content.

    addresses: paths or addresses, in the order of the list.  base: address or folder in place of that of their folder;
    "" = where they are, a path made absolute
    Raises RemoteShardProblem, ShardProblem, FileNotFoundError.
    """
    for address in addresses:
        if problem := address_problem(address):
            raise RemoteShardProblem(problem)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".shards-") as folder, ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(_entry, address, base, Path(folder) / f"{number}.tar")
            for number, address in enumerate(addresses)
        ]
        try:
            entries = [jobs[number].result() for number in counted("listing", len(jobs), "shard")]
        finally:
            pool.shutdown(cancel_futures=True)
    content = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": out.stem, "shardlist": entries}
    with new_file(out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def _entry(address: str, base: str, copy: Path) -> dict[str, Any]:
    """The entry of one shard. copy: where it is fetched to, if it is remote"""
    remote = "://" in address
    path = copy if remote else Path(address)
    if remote:
        fetch_file(address, copy)
    found = shards.index(path)
    if not found:
        raise RemoteShardProblem(f"{address}: has no documents; leave it out")
    where = address if remote else str(path.resolve())
    entry = {
        "url": f"{base.rstrip('/')}/{address.rpartition('/')[2]}" if base else where,
        "nsamples": len(found),
        "filesize": path.stat().st_size,
        "sha256": sha256_of_file(path),
    }
    if remote:
        copy.unlink()
    return entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `dreamllm list-shards`."""
    parser.add_argument("shards", nargs="+", help="paths or addresses of shards; {00000..00099} stands for a hundred")
    parser.add_argument("--base", default="", help="address of the folder that they are or will be in, if another one")
    parser.add_argument("--threads", type=int, default=4, help="shards that are read at once (default: %(default)s)")
    parser.add_argument("--out", required=True, type=file_to_write, help="the list, NAME.json")


def main(arguments: argparse.Namespace) -> None:
    """Run `dreamllm list-shards`."""
    addresses = [address for pattern in arguments.shards for address in braceexpand(pattern)]
    content = list_shards(addresses, arguments.base, arguments.out, arguments.threads)
    documents = sum(entry["nsamples"] for entry in content["shardlist"])
    print(f"{arguments.out}: {len(addresses):,} shards, {documents:,} documents")

"""Downloads one entry of paper/released.yaml at its pinned revision and checks every file: `dreamllm fetch-released`.

    dreamllm fetch-released --manifest paper/released.yaml --name NAME --out data/released/NAME

A file must have the sha256 of the manifest. Where the manifest has none, it must have the one that the hub gives for
that revision; small files have none there and are trusted on first download. `download.json` in the folder records all
digests and by what each was checked. A download that breaks off goes on where it was; the folder appears whole.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, RevisionResolutionError

from dreamllm.digests import sha256_of_file

RECORD = "download.json"
KEYS = {"repo": str, "revision": (str, type(None)), "patterns": list, "sha256": dict}


class ReleasedProblem(ValueError):
    """A release that is not described well enough to be fetched, cannot be had, or is not what it should be."""


def read_entry(manifest: Path, name: str) -> dict[str, Any]:
    """One entry of the manifest: repo, revision, patterns of the files to fetch, sha256 by file name.

    Raises ReleasedProblem for an unknown name, a malformed entry, and a revision that is not a commit of the hub.
    """
    content = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    if name not in content:
        raise ReleasedProblem(f"{manifest}: no entry {name!r}; there are {', '.join(content)}")
    entry = content[name]
    if not isinstance(entry, dict) or entry.keys() != KEYS.keys():
        raise ReleasedProblem(f"{manifest}: {name} must have exactly the keys {', '.join(KEYS)}")
    for key, type_ in KEYS.items():
        if not isinstance(entry[key], type_):
            raise ReleasedProblem(f"{manifest}: {name}.{key} is {entry[key]!r}")
    if entry["revision"] is None:
        raise ReleasedProblem(
            f"{manifest}: {name} has no revision yet. Look it up on the page of {entry['repo']} (Files, History) and "
            "write its 40 hex digits there; or put the files in place yourself"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", entry["revision"]):
        raise ReleasedProblem(f"{manifest}: {name}.revision is {entry['revision']!r}, not a commit of 40 hex digits")
    return entry


def fetch(entry: dict[str, Any], out: Path, endpoint: str | None = None) -> dict[str, Any]:
    """Download an entry of the manifest to the folder `out`; returns what download.json says.

    endpoint: address of the hub, if it is another. A token comes from the environment (HF_TOKEN), by huggingface_hub.
    Raises ReleasedProblem when the repository, the revision or a file cannot be had, or a digest is wrong; a wrong file
    is deleted, so that the next call fetches it again.
    """
    api = HfApi(endpoint=endpoint)
    where = f"{entry['repo']} at {entry['revision'][:12]}"
    partial = out.with_name(f".{out.name}.{entry['revision'][:12]}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        siblings = api.model_info(entry["repo"], revision=entry["revision"], files_metadata=True).siblings or []
        api.snapshot_download(
            entry["repo"], revision=entry["revision"], local_dir=partial, allow_patterns=entry["patterns"]
        )
    except (HTTPError, RevisionResolutionError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ReleasedProblem(f"{where} cannot be fetched: {reason}. Call again to go on") from None
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    by_hub = {sibling.rfilename: sibling.lfs.sha256 for sibling in siblings if sibling.lfs}
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        name = path.relative_to(partial).as_posix()
        digest = sha256_of_file(path)
        expected = entry["sha256"].get(name) or by_hub.get(name)
        if expected not in (None, digest):
            path.unlink()
            raise ReleasedProblem(f"{where}: {name} has sha256 {digest}, should have {expected}; it is deleted")
        checked = "manifest" if name in entry["sha256"] else "hub" if name in by_hub else "trusted on first download"
        files[name] = {"sha256": digest, "checked": checked}
    if absent := sorted(entry["sha256"].keys() - files.keys()):
        raise ReleasedProblem(f"{where}: {', '.join(absent)} of the manifest is not there")
    if not files:
        raise ReleasedProblem(f"{where}: no file fits {', '.join(entry['patterns'])}")
    record = {"repo": entry["repo"], "revision": entry["revision"], "files": files}
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm fetch-released`."""
    parser.add_argument("--manifest", type=Path, required=True, help="paper/released.yaml, or one like it")
    parser.add_argument("--name", required=True, help="entry of the manifest")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm fetch-released`."""
    record = fetch(read_entry(args.manifest, args.name), args.out)
    trusted = {name: file["sha256"] for name, file in record["files"].items() if file["checked"].startswith("trusted")}
    print(f"{args.out}: {len(record['files'])} files of {record['repo']} at {record['revision']}")
    if trusted:
        print(f"trusted on first download; to have them checked, write this under {args.name} in {args.manifest}:")
        print(yaml.safe_dump({"sha256": trusted}), end="")

"""Download one entry of paper/released.yaml at its pinned revision and check every file: `dreamllm fetch-released`.

    dreamllm fetch-released --manifest paper/released.yaml --name NAME --out data/released/NAME

Each file must have the sha256 of the manifest and the one that the Hub states for that revision. The Hub states none
for small files: without a digest in the manifest they are trusted on first download. `download.json` in the folder
records all digests and how each was checked. An interrupted download resumes; the folder appears when it is complete.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml

from dreamllm.config.reading import read_yaml
from dreamllm.output_paths import folder_to_write
from dreamllm.sources.fetch import RemoteFile, assembled, fetch_files
from dreamllm.sources.services import hub
from dreamllm.sources.services.http import FetchProblem

RECORD = "download.json"
KEYS: dict[str, Any] = {"repo": str, "revision": (str, type(None)), "patterns": list, "sha256": dict}


def read_entry(manifest: Path, name: str) -> dict[str, Any]:
    """One entry of the manifest: repo, revision, patterns of the files to fetch, sha256 by file name.

    Raises FetchProblem for an unknown name, a malformed entry, and a revision that is not a commit.
    """
    content = read_yaml(manifest)
    if name not in content:
        raise FetchProblem(f"{manifest}: no entry {name!r}; there are {', '.join(content)}")
    entry = content[name]
    if not isinstance(entry, dict) or entry.keys() != KEYS.keys():
        raise FetchProblem(f"{manifest}: {name} must have exactly the keys {', '.join(KEYS)}")
    for key, type_ in KEYS.items():
        if not isinstance(entry[key], type_):
            raise FetchProblem(f"{manifest}: {name}.{key} is {entry[key]!r}, of the wrong type")
    if entry["revision"] is None:
        raise FetchProblem(
            f"{manifest}: {name} has no revision yet. Look it up on the page of {entry['repo']} (Files, History) and "
            "write its 40 hex digits there; or put the files in place yourself"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", entry["revision"]):
        raise FetchProblem(f"{manifest}: {name}.revision is {entry['revision']!r}, not a commit of 40 hex digits")
    return entry


def fetch(entry: dict[str, Any], out: Path) -> dict[str, Any]:
    """Download an entry of the manifest to the folder `out`; returns the content of download.json.

    Raises FetchProblem when the repository, the revision or a file does not exist, or a digest is wrong. A file with a
    wrong digest is deleted, so that the next call fetches it again.
    """
    pinned, files = entry["sha256"], hub.list_files(f"models/{entry['repo']}", entry["patterns"], entry["revision"])
    if absent := sorted(pinned.keys() - {file.path for file in files}):
        raise FetchProblem(f"{entry['repo']}@{entry['revision']}: {', '.join(absent)} of the manifest is not there")
    remote = [RemoteFile(file.path, file.origin, pinned.get(file.path, ""), file) for file in files]
    with assembled(out, entry["revision"][:12]) as partial:
        found = fetch_files(remote, partial)
        checked = {file.path: "hub" if file.sha256 else "trusted on first download" for file in files}
        checked |= dict.fromkeys(pinned, "manifest")
        described = {name: {"sha256": one["sha256"], "checked": checked[name]} for name, one in found.items()}
        record = {"repo": entry["repo"], "revision": entry["revision"], "files": described}
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm fetch-released`."""
    parser.add_argument("--manifest", type=Path, required=True, help="paper/released.yaml, or a file like it")
    parser.add_argument("--name", required=True, help="entry of the manifest")
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder to write")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm fetch-released`."""
    record = fetch(read_entry(args.manifest, args.name), args.out)
    trusted = {name: file["sha256"] for name, file in record["files"].items() if file["checked"].startswith("trusted")}
    print(f"{args.out}: {len(record['files'])} files of {record['repo']} at {record['revision']}")
    if trusted:
        print(f"trusted on first download; to have them checked, write this under {args.name} in {args.manifest}:")
        print(yaml.safe_dump({"sha256": trusted}), end="")

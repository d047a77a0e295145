"""List the addresses of a set's pictures for img2dataset: `dreamllm list-urls`.

    dreamllm list-urls --source laion_coco --raw data/raw/laion_coco --config FILE --out data/urls/laion_coco

writes OUT/urls.jsonl.gz with {"url", "caption"} for each picture (addresses without captions are listed once), and
OUT/files.json with the number of records taken of each file; in all they are the first `candidates` records of the set.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

from dreamllm.atomic import new_folder
from dreamllm.config.reading import load
from dreamllm.config.sources import SourceSettings
from dreamllm.output_paths import folder_to_write
from dreamllm.sources import manifest, readers
from dreamllm.sources.addresses import PRIVATE, refusal
from dreamllm.sources.manifest import Source
from dreamllm.sources.records import RecordProblem, Rejected, members

LIST, FILES = "urls.jsonl.gz", "files.json"
LONGEST = 100_000  # bytes of a line; img2dataset reads blocks of a megabyte, and a longer line makes it refuse the list


def list_urls(source: Source, settings: SourceSettings, raw: Path, out: Path) -> dict[str, int]:
    """Write the list to the folder `out`; returns the numbers of records, addresses, and records left out by reason.

    Raises RecordProblem when there is no address.
    """
    if not source.holds_addresses:
        raise RecordProblem(f"{source.title}: files of format {source.format} hold no addresses of pictures")
    counts: Counter[str] = Counter()
    taken: dict[str, int] = {}
    examples: dict[str, str] = {}  # by reason: where it was met first
    reader = readers.module(source.format)
    seen: set[bytes] = set()
    with new_folder(out) as folder:
        with gzip.GzipFile(folder / LIST, "wb", mtime=0) as file:
            for member in members(raw, reader.SUFFIX):
                left = settings.candidates - counts["records"] if settings.candidates else None
                if left == 0:
                    break
                before = counts["records"]
                for lines in itertools.islice(reader.addresses(member, source, settings), left):
                    counts["records"] += 1
                    if isinstance(lines, Rejected):
                        counts[f"left out: {lines.why}"] += 1
                        examples.setdefault(lines.why, lines.where)
                        continue
                    for line in lines:
                        encoded = json.dumps(line).encode()
                        why = refusal(line["url"], settings.private_hosts)
                        if len(encoded) > LONGEST:
                            why = "address or caption is too long"
                        if why:
                            counts[f"left out: {why}"] += 1
                            examples.setdefault(why, str(member))
                            continue
                        if not reader.CAPTIONS:
                            if (key := _digest(line["url"])) in seen:
                                continue
                            seen.add(key)
                        counts["addresses"] += 1
                        file.write(encoded + b"\n")
                taken[str(member)] = counts["records"] - before
        (folder / FILES).write_text(json.dumps(taken, indent=1) + "\n", encoding="utf-8")
        if not counts["addresses"]:
            reasons = "".join(f"; {why}, first in {where}" for why, where in examples.items())
            hint = "; `private_hosts: true` of the set allows them" if f"left out: {PRIVATE}" in counts else ""
            raise RecordProblem(
                f"{raw}: no address in {counts['records']} records of {len(taken)} files *{reader.SUFFIX}{reasons}"
                f"{hint}"
            )
    return dict(counts)


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode(), digest_size=8).digest()  # short, so that all of them fit into memory


def records_taken(urls: Path) -> dict[str, int]:
    """How many records `list_urls` took of each file."""
    return json.loads((urls / FILES).read_text(encoding="utf-8"))


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm list-urls`."""
    manifest.add_arguments(parser)
    parser.add_argument("--config", type=Path, help="experiment, for the settings in its section `sources`")
    parser.add_argument("--raw", type=Path, required=True, help="fetched files, data/raw/NAME")
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder to write to")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm list-urls`."""
    source = manifest.chosen(args)
    sources = load(args.config).sources if args.config else {}
    settings = sources.get(args.source, SourceSettings())
    print(json.dumps(list_urls(source, settings, args.raw, args.out), indent=1))

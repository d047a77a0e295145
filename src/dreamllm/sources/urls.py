"""List the addresses of a set's pictures for img2dataset: `dreamllm list-urls`.

    dreamllm list-urls --source laion_coco --raw data/raw/laion_coco --config FILE --out data/urls/laion_coco

writes OUT/urls.jsonl.gz with {"url", "caption"} per picture (pages have no captions, an address stands once), and
OUT/files.json, which tells how many records of each file were taken: the first `candidates` ones.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_folder
from dreamllm.config.reading import load
from dreamllm.config.sources import SourceUse
from dreamllm.sources import manifest, pages
from dreamllm.sources.manifest import Source
from dreamllm.sources.records import Member, RecordProblem, Rejected, members, read_list

LIST, FILES = "urls.jsonl.gz", "files.json"


def list_urls(source: Source, use: SourceUse, raw: Path, out: Path) -> dict[str, int]:
    """Write the list to the folder `out`. Returns counts of records, addresses, and records left out by reason.

    Raises RecordProblem when there is nothing to list.
    """
    counts: Counter[str] = Counter()
    taken: dict[str, int] = {}
    suffix = {"url_json": ".json", "url_parquet": ".parquet", "mmc4": ".jsonl", "obelics": ".parquet"}[source.format]
    read = _page_urls if source.format in manifest.INTERLEAVED else _pair_urls
    seen: set[bytes] = set()
    with new_folder(out) as folder:
        with gzip.GzipFile(folder / LIST, "wb", mtime=0) as file:
            for member in members(raw, suffix):
                left = use.candidates - counts["records"] if use.candidates else None
                if left == 0:
                    break
                before = counts["records"]
                for lines in itertools.islice(read(member, source, use), left):
                    counts["records"] += 1
                    if isinstance(lines, Rejected):
                        counts[f"left out: {lines.why}"] += 1
                        continue
                    for line in lines:
                        if read is _page_urls:
                            if (key := _digest(line["url"])) in seen:
                                continue
                            seen.add(key)
                        counts["addresses"] += 1
                        file.write(json.dumps(line).encode() + b"\n")
                taken[str(member)] = counts["records"] - before
        (folder / FILES).write_text(json.dumps(taken, indent=1) + "\n", encoding="utf-8")
        if not counts["addresses"]:
            raise RecordProblem(f"{raw}: no address in {counts['records']} records of {len(taken)} files *{suffix}")
    return dict(counts)


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode(), digest_size=8).digest()  # a set of these fits into memory


def used_pages(urls: Path) -> dict[str, int]:
    """How many records of each file `list_urls` took."""
    return json.loads((urls / FILES).read_text(encoding="utf-8"))


def _pair_urls(member: Member, source: Source, use: SourceUse) -> Iterator[list[dict[str, str]] | Rejected]:
    url_key, caption_key = source.columns["url"], source.columns["caption"]
    for where, record in _rows(member, [url_key, caption_key]):
        if isinstance(record, Rejected):
            yield record
            continue
        url, caption = record.get(url_key), record.get(caption_key)
        if not isinstance(url, str) or not url.strip():
            yield Rejected("no address", where)
        elif not isinstance(caption, str) or not caption.strip():
            yield Rejected("caption is empty", where)
        else:
            yield [{"url": url.strip(), "caption": caption}]


def _rows(member: Member, columns: list[str]) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    if not member.name.endswith(".parquet"):
        yield from read_list(member)
        return
    import pyarrow.parquet

    with member.open() as opened:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(opened).iter_batches(10_000, columns=columns):
            for record in batch.to_pylist():
                yield f"{member}, row {number}", record
                number += 1


def _page_urls(member: Member, source: Source, use: SourceUse) -> Iterator[list[dict[str, str]] | Rejected]:
    for _, page, _ in pages.pages(member, use):
        yield page if isinstance(page, Rejected) else [{"url": part[0]} for part in page if not isinstance(part, str)]


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm list-urls`."""
    manifest.add_arguments(parser)
    parser.add_argument("--config", type=Path, help="experiment whose section `sources` says how it is used")
    parser.add_argument("--raw", type=Path, required=True, help="fetched files, data/raw/NAME")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm list-urls`."""
    source = manifest.chosen(args)
    uses = load(args.config).sources if args.config else {}
    print(json.dumps(list_urls(source, uses.get(args.source, SourceUse()), args.raw, args.out), indent=1))

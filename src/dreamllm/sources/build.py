"""Turn a fetched public data set, or your own files, into Document shards: `dreamllm build-shards`.

    dreamllm build-shards --source gqa --raw data/raw/gqa --config FILE --out data/shards/gqa

writes OUT/NAME-00000.tar ... and OUT/report.json, which counts what was kept and what was left out, by reason. The key
`format` of the set names the module of `dreamllm.sources.readers` that reads it. The number of processes does not
change what is written.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from dreamllm.atomic import new_folder
from dreamllm.config.reading import load
from dreamllm.config.sources import SourceSettings
from dreamllm.data import shards
from dreamllm.data.document import Document
from dreamllm.output_paths import folder_to_write
from dreamllm.sources import manifest, own, readers
from dreamllm.sources.manifest import Source
from dreamllm.sources.picture_files import Folders, folders_of
from dreamllm.sources.readers import shard_list
from dreamllm.sources.records import BuildProblem, Rejected

EXAMPLES = 3  # places reported for each reason
PER_SHARD = 1000
Documents = Iterator[Document | Rejected]


@dataclass
class Counted:
    """Numbers of documents made, and of records and pictures left out, of a set or of a part of it."""

    documents: int = 0
    pictures: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    pictures_left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def reject(self, rejected: Rejected) -> None:
        """Count a record or picture that was left out."""
        (self.rejected if rejected.whole else self.pictures_left_out)[rejected.why] += 1
        places = self.examples.setdefault(rejected.why, [])
        if len(places) < EXAMPLES:
            places.append(rejected.where)

    def count(self, found: Iterable[Document | Rejected]) -> Iterator[Document]:
        """Pass the documents on and count all that is found."""
        for document in found:
            if isinstance(document, Rejected):
                self.reject(document)
            else:
                self.documents += 1
                self.pictures += len(document.pictures)
                yield document

    def add(self, other: Counted) -> None:
        """Add the numbers of another part."""
        self.documents += other.documents
        self.pictures += other.pictures
        self.rejected += other.rejected
        self.pictures_left_out += other.pictures_left_out
        for why, places in other.examples.items():
            self.examples[why] = (self.examples.get(why, []) + places)[:EXAMPLES]

    def report(self) -> dict[str, Any]:
        """The numbers as JSON, the most frequent reasons first."""
        return {
            "documents": self.documents,
            "pictures": self.pictures,
            "records left out": dict(self.rejected.most_common()),
            "pictures left out": dict(self.pictures_left_out.most_common()),
            "examples": self.examples,
        }


def build(
    name: str,
    source: Source,
    settings: SourceSettings,
    out: Path,
    *,
    raw: Path,
    pictures: Path | None = None,
    pictures_from: Folders = (),
    urls: Path | None = None,
    processes: int = 1,
    files: str = "",
) -> Counted:
    """Write the shards of a set to the folder `out`, which appears when it is complete.

    raw: the fetched files.  pictures: shards of img2dataset, for formats that hold addresses.  pictures_from: other
    sets that hold its pictures, as (prefix of their names, folder).  urls: what `list-urls` wrote, for interleaved
    documents.  files: digest of people's own files, for the report. Raises BuildProblem when no document can be made of
    the set, RecordProblem for a damaged file.
    """
    if source.format == "shard_list":
        return _take_list(name, settings, out, raw, files)
    reader, counted = readers.module(source.format), Counted()
    if settings.candidates and not source.holds_addresses:
        raise BuildProblem(
            f"{name}: `candidates` limits the addresses of pictures, and this set has none; use `documents` here"
        )
    with new_folder(out) as folder, TemporaryDirectory(dir=folder, prefix=".parts-") as temporary:
        parts = Path(temporary)
        write_unit = partial(_write_unit, reader.documents, settings, parts)
        written: list[Path] = []
        work = enumerate(reader.units(readers.Inputs(raw, (("", raw), *pictures_from), pictures, urls, parts)))
        for number, unit, (paths, part) in _in_order(write_unit, work, processes):
            if settings.documents and counted.documents + part.documents > settings.documents:
                for path in paths:
                    path.unlink()
                paths, part = write_unit(number, unit, limit=settings.documents - counted.documents)
            written += paths
            counted.add(part)
            if settings.documents and counted.documents >= settings.documents:
                break
        for number, path in enumerate(written):
            path.rename(folder / f"{name}-{number:05d}.tar")
        report = {"source": name, "settings": settings.model_dump(mode="json"), **counted.report()}
        report |= {"files": files} if files else {}
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if not counted.documents:
            raise BuildProblem(f"{name}: no document could be made: {json.dumps(counted.report())}")
    return counted


def _take_list(name: str, settings: SourceSettings, out: Path, raw: Path, files: str) -> Counted:
    """Write the shard list of the folder `raw` to OUT/NAME.json. Raises BuildProblem, RemoteShardProblem."""
    if changed := sorted(settings.model_fields_set - {"path", "format", "licence", "folder"}):
        raise BuildProblem(f"{name}: remote shards are read as they are; remove {', '.join(changed)} from its settings")
    listed = shard_list.shards_of(raw)
    counted = Counted(documents=sum(documents for _, documents in listed))
    report = {"source": name, "settings": settings.model_dump(mode="json"), "documents": counted.documents}
    report |= {"shards": len(listed), **({"files": files} if files else {})}
    with new_folder(out) as folder:
        (folder / f"{name}.json").write_bytes(shard_list.only_list(raw).read_bytes())
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return counted


def _in_order(write_unit: Callable, work: Iterable[tuple[int, Any]], processes: int) -> Iterator[tuple]:
    """(number, unit, result) in the order of the work, whichever process is faster, with few units waiting."""
    if processes == 1:
        for number, unit in tqdm(work, unit="part", mininterval=30):
            yield number, unit, write_unit(number, unit)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting: deque = deque()
        try:
            for number, unit in tqdm(work, unit="part", mininterval=30):
                waiting.append((number, unit, pool.submit(write_unit, number, unit)))
                if len(waiting) > 2 * processes:
                    *one, result = waiting.popleft()
                    yield *one, result.result()
            for *one, result in waiting:
                yield *one, result.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_unit(
    documents: Callable[[Any, SourceSettings], Documents],
    settings: SourceSettings,
    folder: Path,
    number: int,
    unit: Any,
    limit: int | None = None,
) -> tuple[list[Path], Counted]:
    """Write the shards of one unit of a set; returns their paths and the numbers."""
    counted = Counted()
    kept = islice(counted.count(documents(unit, settings)), limit)
    paths = shards.write(kept, folder / f"{number:06d}", PER_SHARD, settings.jpeg_quality)
    return paths, counted


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm build-shards`."""
    manifest.add_arguments(parser)
    parser.add_argument("--config", type=Path, help="experiment, for the settings in its section `sources`")
    parser.add_argument("--raw", type=Path, required=True, help="fetched files, data/raw/NAME")
    parser.add_argument("--pictures", type=Path, help="shards of img2dataset, for sets that hold addresses")
    parser.add_argument(
        "--pictures-from", nargs="*", default=[], metavar="PREFIX=FOLDER", help="other sets that hold its pictures"
    )
    parser.add_argument("--urls", type=Path, help="what list-urls wrote, for interleaved documents")
    parser.add_argument("--processes", type=int, default=1, help="number of processes (default: %(default)s)")
    parser.add_argument(
        "--out", type=folder_to_write, required=True, help="folder of shards and report.json, replaced if there"
    )


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm build-shards`."""
    source = manifest.chosen(args)
    if not args.raw.exists():
        raise BuildProblem(f"{args.raw}: no such folder; `dreamllm fetch-source` makes that of a public set")
    sources = load(args.config).sources if args.config else {}
    known = own.KNOWN / f"{args.source}.json"
    counted = build(
        args.source,
        source,
        sources.get(args.source, SourceSettings()),
        args.out,
        raw=args.raw,
        pictures=args.pictures,
        pictures_from=folders_of(args.pictures_from),
        urls=args.urls,
        processes=args.processes,
        files=own.remember(args.raw, known) if source.availability == "own" else "",
    )
    print(json.dumps(counted.report(), indent=1))

"""Turn a fetched public data set into Document shards: `dreamllm build-shards`.

    dreamllm build-shards --source gqa --raw data/raw/gqa --config FILE --out data/shards/gqa

writes OUT/NAME-00000.tar ... and OUT/report.json, which counts what was kept and what was left out, and why. The set's
format says which module reads it; several processes work on it, and their number changes nothing in what is written.
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
from dreamllm.config.sources import SourceUse
from dreamllm.data import shards
from dreamllm.data.document import Document
from dreamllm.sources import fetched, llava, manifest, pages, pairs
from dreamllm.sources.annotations import coco_units, gqa_documents, gqa_units, narrative_units, pair_documents
from dreamllm.sources.manifest import Source
from dreamllm.sources.records import Folders, Rejected, folders_of
from dreamllm.sources.urls import used_pages

EXAMPLES = 3  # places told per reason
PER_SHARD = 1000
Documents = Iterator[Document | Rejected]

READERS: dict[str, tuple[Callable[..., Iterator[Any]], Callable[[Any, SourceUse], Documents]]] = {
    # format: (parts of the set that can be read on their own, the documents of one)
    "url_json": (pairs.units, pairs.documents),
    "url_parquet": (pairs.units, pairs.documents),
    "mmc4": (pages.units, pages.documents),
    "obelics": (pages.units, pages.documents),
    "llava": (llava.units, llava.documents),
    "llava_pairs": (llava.units, llava.pair_documents),
    "coco": (coco_units, pair_documents),
    "narratives": (narrative_units, pair_documents),
    "gqa": (gqa_units, gqa_documents),
}


class BuildProblem(ValueError):
    """A set that gives no documents, or cannot be read as what the manifest says."""


@dataclass
class Counted:
    """What became of the records of a set or of a part of it."""

    documents: int = 0
    pictures: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    pictures_left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def reject(self, rejected: Rejected) -> None:
        """Count one more."""
        (self.rejected if rejected.whole else self.pictures_left_out)[rejected.why] += 1
        places = self.examples.setdefault(rejected.why, [])
        if len(places) < EXAMPLES:
            places.append(rejected.where)

    def passing(self, found: Iterable[Document | Rejected]) -> Iterator[Document]:
        """The documents among what was found, counting all of it as it passes."""
        for document in found:
            if isinstance(document, Rejected):
                self.reject(document)
            else:
                self.documents += 1
                self.pictures += len(document.pictures)
                yield document

    def add(self, other: Counted) -> None:
        """Count those of another part too."""
        self.documents += other.documents
        self.pictures += other.pictures
        self.rejected += other.rejected
        self.pictures_left_out += other.pictures_left_out
        for why, places in other.examples.items():
            self.examples[why] = (self.examples.get(why, []) + places)[:EXAMPLES]

    def report(self) -> dict[str, Any]:
        """As JSON, the most frequent reasons first."""
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
    use: SourceUse,
    out: Path,
    *,
    raw: Path,
    pictures: Path | None = None,
    pictures_from: Folders = (),
    urls: Path | None = None,
    processes: int = 1,
) -> Counted:
    """Write the shards of a set to the folder `out`, which appears whole or not at all.

    raw: the fetched files.  pictures: what img2dataset wrote, for formats that hold addresses.  pictures_from: other
    sets that hold its pictures, as (name that theirs begin with, folder).  urls: what `list-urls` wrote, for pages.
     Raises BuildProblem when nothing can be made of the set, RecordProblem for a damaged file.
    """
    if source.format not in READERS:
        raise BuildProblem(f"{name}: format {source.format} is not built into shards")
    if use.candidates and source.format not in manifest.BY_URL:
        raise BuildProblem(
            f"{name}: candidates are of sets whose pictures are fetched one by one; use `documents` here"
        )
    units, documents = READERS[source.format]
    counted = Counted()
    with new_folder(out) as folder, TemporaryDirectory(dir=folder, prefix=".parts-") as temporary:
        parts = Path(temporary)
        options: dict[str, Any] = {}
        if source.format in manifest.INTERLEAVED:
            if pictures is None or urls is None:
                raise BuildProblem(f"{name}: pages need --pictures and --urls")
            listed = fetched.write_index(pictures, parts / fetched.INDEX)
            print(f"{name}: {listed}", flush=True)
            options = {"index": parts / fetched.INDEX, "used": used_pages(urls)}
        write_unit = partial(_write_unit, documents, use, parts)
        written: list[Path] = []
        work = enumerate(units(raw, pictures, (("", raw), *pictures_from), **options))
        for number, unit, (paths, part) in _in_order(write_unit, work, processes):
            if use.documents and counted.documents + part.documents > use.documents:
                for path in paths:
                    path.unlink()
                paths, part = write_unit(number, unit, limit=use.documents - counted.documents)
            written += paths
            counted.add(part)
            if use.documents and counted.documents >= use.documents:
                break
        for place, path in enumerate(written):
            path.rename(folder / f"{name}-{place:05d}.tar")
        report = {"source": name, "use": use.model_dump(mode="json"), **counted.report()}
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if not counted.documents:
            raise BuildProblem(f"{name}: not one document could be made: {json.dumps(counted.report())}")
    return counted


def _in_order(write_unit: Callable, work: Iterable[tuple[int, Any]], processes: int) -> Iterator[tuple]:
    """Results in the order of the work, whatever process is quicker, with little work waiting at a time."""
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
    documents: Callable[[Any, SourceUse], Documents],
    use: SourceUse,
    folder: Path,
    number: int,
    unit: Any,
    limit: int | None = None,
) -> tuple[list[Path], Counted]:
    """The shards of one part of a set, under names of their own."""
    counted = Counted()
    kept = islice(counted.passing(documents(unit, use)), limit)
    paths = shards.write(kept, folder / f"{number:06d}", PER_SHARD, use.jpeg_quality)
    return paths, counted


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm build-shards`."""
    manifest.add_arguments(parser)
    parser.add_argument("--config", type=Path, help="experiment whose section `sources` says how it is used")
    parser.add_argument("--raw", type=Path, required=True, help="fetched files, data/raw/NAME")
    parser.add_argument("--pictures", type=Path, help="shards of img2dataset, for sets of addresses")
    parser.add_argument(
        "--pictures-from", nargs="*", default=[], metavar="PREFIX=FOLDER", help="sets that hold its pictures"
    )
    parser.add_argument("--urls", type=Path, help="what list-urls wrote, for MMC4 and OBELICS")
    parser.add_argument("--processes", type=int, default=1, help="how many work on it (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of shards and report.json, replaced if there")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm build-shards`."""
    source = manifest.chosen(args)
    uses = load(args.config).sources if args.config else {}
    use = uses.get(args.source, SourceUse())
    counted = build(
        args.source,
        source,
        use,
        args.out,
        raw=args.raw,
        pictures=args.pictures,
        pictures_from=folders_of(args.pictures_from),
        urls=args.urls,
        processes=args.processes,
    )
    print(json.dumps(counted.report(), indent=1))

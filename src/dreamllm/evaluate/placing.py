"""Convert a fetched evaluation set to the files that the benchmark readers read: `dreamllm place-benchmark`.

    dreamllm place-benchmark --source okvqa --raw data/raw/okvqa --pictures-from =data/raw/coco_val2014 --out DIR

Each set becomes the files that the modules in `evaluate/tasks` read, split test, and is read by it before the folder
appears. Data of lm-evaluation-harness are placed as they came. Pictures stay in their archive where their names can
stay: the archive is linked, not copied.
"""

from __future__ import annotations

import argparse
import os
import shutil
import zipfile
from pathlib import Path

from dreamllm.atomic import new_folder
from dreamllm.evaluate import tasks
from dreamllm.evaluate.placing_writers import WRITERS, write_json
from dreamllm.output_paths import folder_to_write
from dreamllm.safe_join import NameProblem, checked
from dreamllm.sources import manifest
from dreamllm.sources.manifest import Source
from dreamllm.sources.picture_files import Folders, PictureFiles, folders_of
from dreamllm.sources.records import Member, RecordProblem, files_below


def place(source: Source, raw: Path, pictures_from: Folders, out: Path) -> None:
    """Write a set's benchmark files to the folder `out`, which appears whole or not at all.

    Raises RecordProblem for a file that is not as its format says, BenchmarkProblem when the readers refuse the result.
    """
    with new_folder(out) as folder:
        if source.format in ("as_is", "harness"):
            for path in files_below(raw):
                _link(path, folder / path.relative_to(raw))
            return
        benchmark, write = manifest.TASKS[source.format], WRITERS[source.format]
        names = write(raw, folder)
        if source.answers_on and benchmark == "vqa":  # written down: a lost file of answers is not mistaken for this
            write_json(folder / "vqa_test_annotations.json", {"external": source.answers_on})
        if names:  # MMBench's pictures are in its table
            _write_pictures(names, PictureFiles((("", raw), *pictures_from)), folder / "images_test.zip")
        items = tasks.load(benchmark, folder, "test")
        print(f"{out}: {len(items)} items of {benchmark}, {len(names)} pictures")


# ---- pictures ------------------------------------------------------------------------------------------------------


def _write_pictures(names: dict[str, str], files: PictureFiles, out: Path) -> None:
    """The pictures as a zip file. names: of each picture in the archive -> in `files`.

    Raises RecordProblem for pictures that are missing, and for names that lead out of a folder.
    """
    try:
        for name in names:
            checked(name)
    except NameProblem as problem:
        raise RecordProblem(f"a picture of the set: {problem}") from None
    if missing := [name for name in names.values() if not files.has(name)]:
        raise RecordProblem(f"{len(missing)} of {len(names)} pictures are missing, first {missing[0]}")
    holders = {holder for name in names.values() for holder in files.holders(name)}
    if len(holders) == 1 and (only := holders.pop()).suffix == ".zip" and all(a == b for a, b in names.items()):
        _link(only, out)
        return
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, source in names.items():
            with Member(files.holders(source)[0], (source,)).damage():
                archive.writestr(zipfile.ZipInfo(name), files.read_by_name(source))


def _link(path: Path, out: Path) -> None:
    """A second name for a file; a copy where the disk has no such links."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), out)  # a link of a link would lead elsewhere from here
    except OSError:
        shutil.copyfile(path, out)


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm place-benchmark`."""
    manifest.add_arguments(parser)
    parser.add_argument("--config", type=Path, help="experiment, for your own sets in its section `sources`")
    parser.add_argument("--raw", type=Path, required=True, help="fetched files, data/raw/NAME")
    parser.add_argument(
        "--pictures-from", nargs="*", default=[], metavar="PREFIX=FOLDER", help="sets that hold its pictures"
    )
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder to write to, replaced if there")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm place-benchmark`."""
    source = manifest.chosen(args)
    if source.format not in manifest.BENCHMARK_FORMATS:
        raise RecordProblem(f"{args.source} (format {source.format}) is no evaluation set")
    place(source, args.raw, folders_of(args.pictures_from), args.out)

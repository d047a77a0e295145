"""Convert a fetched evaluation set to the files that the benchmark readers read: `dreamllm place-benchmark`.

    dreamllm place-benchmark --source okvqa --raw data/raw/okvqa --pictures-from =data/raw/coco_val2014 --out DIR

Each set becomes the files that the modules in `evaluate/tasks` read, split test, and is read by it before the folder
appears. Data of lm-evaluation-harness are placed as they came. Pictures stay in their archive where their names can
stay: the archive is linked, not copied.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import csv
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_folder
from dreamllm.evaluate import tasks
from dreamllm.evaluate.tasks import mmbench, pope, vqa
from dreamllm.seeds import seed_of
from dreamllm.sources import manifest
from dreamllm.sources.manifest import Source
from dreamllm.sources.records import (
    Folders,
    Member,
    PictureFiles,
    RecordProblem,
    Rejected,
    folders_of,
    members,
    one,
    read_json,
    read_jsonl,
)

FID_PICTURES = 30_000  # of COCO val2014 (paper Table 2, as all of the literature)
LARGEST_FIELD = 100_000_000  # characters of a field of MMBench's table, a picture in base64
LONGEST_INDEX = 64  # characters; a shorter "picture" is the index of the row that has it (VLMEvalKit)


def place(source: Source, raw: Path, pictures_from: Folders, out: Path) -> None:
    """Write a set's benchmark files to the folder `out`, which appears whole or not at all.

    Raises RecordProblem for a file that is not as its format says, BenchmarkProblem when the readers refuse the result.
    """
    with new_folder(out) as folder:
        if source.format in ("as_is", "harness"):
            for path in sorted(path for path in raw.rglob("*") if path.is_file()):
                _link(path, folder / path.relative_to(raw))
            return
        benchmark, write = manifest.TASKS[source.format], WRITERS[source.format]
        names = write(raw, folder)
        if (
            source.answers_on and benchmark == "vqa"
        ):  # written down, so that a lost file of answers is not mistaken for this
            external = json.dumps({"external": source.answers_on})
            (folder / "vqa_test_annotations.json").write_text(external + "\n", encoding="utf-8")
        if names:  # MMBench's pictures are in its table
            _write_pictures(names, PictureFiles((("", raw), *pictures_from)), folder / "images_test.zip")
        items = tasks.load(benchmark, folder, "test")
        print(f"{out}: {len(items)} items of {benchmark}, {len(names)} pictures")


# ---- one writer per set; each returns the names of its pictures: in the benchmark -> in the fetched files ----------


def _coco_karpathy(raw: Path, folder: Path) -> dict[str, str]:
    """Karpathy's test split of COCO 2014: {"images": [{"split", "filename", "cocoid", "sentences"}]}."""
    images = [image for image in read_json(one(raw, "dataset_coco.json"))["images"] if image["split"] == "test"]
    _captions(
        folder,
        [
            (image["cocoid"], image["filename"], [sentence["raw"].strip() for sentence in image["sentences"]])
            for image in images
        ],
    )
    return {image["filename"]: image["filename"] for image in images}


def _image_paragraphs(raw: Path, folder: Path) -> dict[str, str]:
    """Stanford's image paragraphs: a list of {"image_id", "paragraph"}, and the ids of the test split."""
    test = set(read_json(one(raw, "test_split.json")))
    paragraphs: dict[int, str] = {}
    for record in read_json(one(raw, "paragraphs_v1.json")):
        if record["image_id"] in test:
            paragraphs.setdefault(record["image_id"], " ".join(record["paragraph"].split()))
    _captions(folder, [(id_, f"{id_}.jpg", [paragraph]) for id_, paragraph in sorted(paragraphs.items())])
    return {f"{id_}.jpg": f"{id_}.jpg" for id_ in paragraphs}


def _nocaps(raw: Path, folder: Path) -> dict[str, str]:
    """NoCaps: a COCO captions file, whose pictures are of Open Images."""
    content = read_json(one(raw, "captions.json"))
    (folder / "captions_test.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    return {image["file_name"]: image["file_name"] for image in content["images"]}


def _coco_fid(raw: Path, folder: Path) -> dict[str, str]:
    """30,000 pictures of COCO val2014 with one caption each to draw, both drawn by a named seed and written down.

    The official script draws them anew for each of its eight seeds and records none (bug B11).
    """
    content = read_json(one(raw, "captions_val2014.json"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    captions: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        if annotation["caption"].strip():
            captions.setdefault(annotation["image_id"], []).append(annotation)
    rng = random.Random(seed_of("COCO FID", "pictures and captions"))
    ids = sorted(rng.sample(sorted(captions), min(FID_PICTURES, len(captions))))
    records = []
    for id_ in ids:
        chosen = rng.choice(sorted(captions[id_], key=lambda annotation: annotation["id"]))
        texts = [" ".join(annotation["caption"].split()) for annotation in captions[id_]]
        prompt = " ".join(chosen["caption"].split())
        about = {"annotation_id": chosen["id"], "captions": texts}
        records.append({"id": id_, "prompt": prompt, "image_id": id_, **about})
    _jsonl(folder / "draw_test.jsonl", records)
    return {names[id_]: names[id_] for id_ in ids}


def _ln_coco(raw: Path, folder: Path) -> dict[str, str]:
    """All Localized Narratives of COCO val2017, one drawing each."""
    records = []
    for number, (where, record) in enumerate(read_jsonl(one(raw, "coco_val_localized_narratives.jsonl"))):
        if isinstance(record, Rejected):
            raise RecordProblem(f"{where}: {record.why}")
        prompt = " ".join(record["caption"].split())
        records.append({"id": number, "prompt": prompt, "image_id": int(record["image_id"])})
    _jsonl(folder / "draw_test.jsonl", records)
    names = {f"{record['image_id']:012d}.jpg" for record in records}
    return {name: name for name in sorted(names)}


def _vqav2(raw: Path, folder: Path) -> dict[str, str]:
    """VQAv2 and OK-VQA: questions and annotations are what the reader wants; pictures are those of COCO.

    The archive of VQAv2's test split holds the questions of test and of test-dev, and no annotations: test-dev is read,
    and the ids of the others are written down for the submission, which its server wants for all of them.
    """
    files = members(raw, "questions.json")
    dev = [file for file in files if "test-dev" in file.name]
    questions = read_json(dev[0] if len(files) > 1 and len(dev) == 1 else one(raw, "questions.json"))
    (folder / "vqa_test_questions.json").write_text(json.dumps(questions) + "\n", encoding="utf-8")
    if dev:
        every = {question["question_id"] for file in files for question in read_json(file)["questions"]}
        not_asked = sorted(every - {question["question_id"] for question in questions["questions"]})
        (folder / vqa.NOT_ASKED).write_text(json.dumps({"question_ids": not_asked}) + "\n", encoding="utf-8")
    subtype = questions.get("data_subtype", "val2014").replace("test-dev", "test")
    if not subtype.startswith("test"):
        annotations = read_json(one(raw, "annotations.json"))
        (folder / "vqa_test_annotations.json").write_text(json.dumps(annotations) + "\n", encoding="utf-8")
    names = {f"COCO_{subtype}_{question['image_id']:012d}.jpg" for question in questions["questions"]}
    return {name: name for name in sorted(names)}


def _vizwiz(raw: Path, folder: Path) -> dict[str, str]:
    """VizWiz: a list of {"image": "VizWiz_val_00000042.jpg", "question", "answers", "answer_type"}.

    One archive holds the records of all splits; val is read, or test where only its pictures are there.
    """
    questions, annotations, names = [], [], {}
    pictures = [file.name for file in members(raw, ".jpg")]
    only_test = bool(pictures) and all(name.startswith("VizWiz_test_") for name in pictures)
    for record in read_json(_member_named(raw, "test.json" if only_test else "val.json")):
        name = record["image"]
        id_ = int(name.rsplit("_", 1)[-1].split(".")[0])
        questions.append({"question_id": id_, "image_id": id_, "question": record["question"]})
        if not only_test:
            about = {"question_type": record.get("answer_type", ""), "answers": record["answers"]}
            annotations.append({"question_id": id_, "image_id": id_, **about})
        names[name] = name
    _vqa(folder, questions, annotations)
    return names


def _textvqa(raw: Path, folder: Path) -> dict[str, str]:
    """TextVQA val: {"data": [{"question_id", "image_id": hexadecimal, "question", "answers": ten strings}]}.

    The reader finds pictures by number, so they are numbered in the order of the file.
    """
    numbers: dict[str, int] = {}
    questions, annotations = [], []
    for record in read_json(one(raw, "TextVQA_0.5.1_val.json"))["data"]:
        number = numbers.setdefault(record["image_id"], len(numbers))
        key = {"question_id": record["question_id"], "image_id": number}
        questions.append({**key, "question": record["question"]})
        annotations.append({**key, "question_type": "", "answers": [{"answer": text} for text in record["answers"]]})
    _vqa(folder, questions, annotations)
    return {f"{number:012d}.jpg": f"{name}.jpg" for name, number in numbers.items()}


def _pope(raw: Path, folder: Path) -> dict[str, str]:
    """POPE: three files of JSON lines {"question_id", "image", "text", "label"}."""
    names = set()
    for subset in pope.SUBSETS:
        lines = one(raw, f"coco_pope_{subset}.json").open().read()
        (folder / f"pope_{subset}_test.jsonl").write_bytes(lines)
        names |= {json.loads(line)["image"] for line in lines.splitlines() if line.strip()}
    return {name: name for name in sorted(names)}


def _mm_vet(raw: Path, folder: Path) -> dict[str, str]:
    """MM-Vet: mm-vet.json, beside its pictures."""
    content = read_json(one(raw, "mm-vet.json"))
    (folder / "mm_vet_test.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    return {record["imagename"]: record["imagename"] for record in content.values()}


def _mmbench(raw: Path, folder: Path) -> dict[str, str]:
    """MMBench: a table with the pictures in base64. Rotations of the options are added where the table has none.

    A rotation has its question's picture; instead of a picture there may be the index of the row that holds it.
    """
    csv.field_size_limit(LARGEST_FIELD)
    table = one(raw, ".tsv")
    with table.open() as file:
        reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""), delimiter="\t")
        names = [name for name in reader.fieldnames or [] if name != "image"]
        if missing := {"index", "question", "A", "B", "category", "image"} - {*(reader.fieldnames or [])}:
            raise RecordProblem(f"{table}: has no column {', '.join(sorted(missing))}")
        rows = []
        with zipfile.ZipFile(folder / "images_test.zip", "w", zipfile.ZIP_STORED) as archive:
            for row in reader:
                picture = row.pop("image")
                rows.append(row)
                where = f"{table}: question {row['index']}"
                if not row["index"].isdecimal():
                    raise RecordProblem(f"{where}: its index is no number")
                index, known = int(row["index"]), archive.namelist()
                if index >= mmbench.ROTATION:
                    continue
                if f"{index}.jpg" in known:
                    raise RecordProblem(f"{where}: occurs twice")
                if len(picture) > LONGEST_INDEX:
                    content = _decoded(picture, where)
                elif f"{picture}.jpg" in known:
                    content = archive.read(f"{picture}.jpg")
                else:
                    raise RecordProblem(f"{where}: its picture {picture!r} is neither base64 nor an earlier index")
                archive.writestr(zipfile.ZipInfo(f"{index}.jpg"), content)
    if all(int(row["index"]) < mmbench.ROTATION for row in rows):
        rows += [rotation for row in rows for rotation in _rotations(row)]
    with (folder / "mmbench_test.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return {}


def _decoded(picture: str, where: str) -> bytes:
    try:
        return base64.b64decode(picture, validate=True)
    except binascii.Error as error:
        raise RecordProblem(f"{where}: its picture is no base64 ({error})") from None


def _rotations(row: dict[str, str]) -> list[dict[str, str]]:
    letters = [letter for letter in mmbench.LETTERS if row.get(letter)]
    texts, answer = [row[letter] for letter in letters], row.get("answer") or ""
    rotations = []
    for by in range(1, len(letters)):
        moved, place = mmbench.rotated(texts, letters.index(answer) if answer in letters else 0, by)
        new = row | dict(zip(letters, moved, strict=True)) | {"index": str(int(row["index"]) + by * mmbench.ROTATION)}
        rotations.append(new | ({"answer": letters[place]} if answer in letters else {}))
    return rotations


WRITERS: dict[str, Callable[[Path, Path], dict[str, str]]] = {
    "coco_karpathy": _coco_karpathy,
    "nocaps": _nocaps,
    "image_paragraphs": _image_paragraphs,
    "coco_fid": _coco_fid,
    "ln_coco": _ln_coco,
    "vqav2": _vqav2,
    "vizwiz": _vizwiz,
    "textvqa": _textvqa,
    "pope": _pope,
    "mmbench": _mmbench,
    "mm_vet": _mm_vet,
}


def _member_named(raw: Path, name: str) -> Member:
    """The one member with exactly this name."""
    found = [member for member in members(raw, name) if member.name == name]
    if len(found) != 1:
        raise RecordProblem(f"{raw}: {len(found)} files have the name {name}, expected 1")
    return found[0]


def _captions(folder: Path, records: list[tuple[int, str, list[str]]]) -> None:
    """COCO captions file of (image id, file name, references)."""
    images = [{"id": id_, "file_name": name} for id_, name, _ in records]
    captions = [(id_, caption) for id_, _, references in records for caption in references]
    annotations = [{"id": n, "image_id": id_, "caption": caption} for n, (id_, caption) in enumerate(captions)]
    content = {"info": {}, "images": images, "annotations": annotations}
    (folder / "captions_test.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def _vqa(folder: Path, questions: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    for name, records in (("questions", questions), ("annotations", annotations)):
        (folder / f"vqa_test_{name}.json").write_text(json.dumps({name: records}) + "\n", encoding="utf-8")


def _jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


# ---- pictures ------------------------------------------------------------------------------------------------------


def _write_pictures(names: dict[str, str], files: PictureFiles, out: Path) -> None:
    """The pictures as a zip file. names: of each picture in the archive -> in `files`."""
    if missing := [name for name in names.values() if not files.has(name)]:
        raise RecordProblem(f"{len(missing)} of {len(names)} pictures are missing, first {missing[0]}")
    holders = {files.place(name)[0] for name in names.values()}
    if len(holders) == 1 and (only := holders.pop()).suffix == ".zip" and all(a == b for a, b in names.items()):
        _link(only, out)
        return
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, source in names.items():
            archive.writestr(zipfile.ZipInfo(name), files.read_by_name(source))


def _link(path: Path, out: Path) -> None:
    """A second name for a file; a copy where the disk has no such links."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, out)
    except OSError:
        shutil.copyfile(path, out)


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm place-benchmark`."""
    manifest.add_arguments(parser)
    parser.add_argument("--raw", type=Path, required=True, help="fetched files, data/raw/NAME")
    parser.add_argument(
        "--pictures-from", nargs="*", default=[], metavar="PREFIX=FOLDER", help="sets that hold its pictures"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, replaced if there")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm place-benchmark`."""
    source = manifest.chosen(args)
    if source.format not in manifest.BENCHMARK_FORMATS:
        raise RecordProblem(f"{args.source} (format {source.format}) is no evaluation set")
    place(source, args.raw, folders_of(args.pictures_from), args.out)

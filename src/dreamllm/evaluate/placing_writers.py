"""Writers of public evaluation sets: from the fetched files to those that the modules in `evaluate/tasks` read.

`WRITERS` has one for each format of data/sources.yaml; each returns the names of its pictures: in the benchmark -> in
the fetched files. `placing.py` calls them.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dreamllm.evaluate import placing_prompts
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, field
from dreamllm.evaluate.tasks import mmbench, pope, vqa
from dreamllm.seeds import seed_of
from dreamllm.sources.readers.narratives import COCO_ID
from dreamllm.sources.records import Member, RecordProblem, Rejected, members, one, read_json, read_jsonl

FID_PICTURES = 30_000  # of COCO val2014 (paper Table 2, as all of the literature)
ANNOTATORS = 10  # of a question of VQAv2
LARGEST_FIELD = 100_000_000  # characters of a field of MMBench's table, a picture in base64
VIZWIZ_NAME = re.compile(r".*_([0-9]{1,18})\.[^_]*")
LONGEST_INDEX = 64  # characters; a shorter "picture" is the index of the row that has it (VLMEvalKit)


def _coco_karpathy(raw: Path, folder: Path) -> dict[str, str]:
    """Karpathy's test split of COCO 2014: {"images": [{"split", "filename", "cocoid", "sentences"}]}."""
    told = []
    for where, image in _records(one(raw, "dataset_coco.json"), "images"):
        if field(image, "split", str, *where) == "test":
            sentences = field(image, "sentences", list, *where)
            texts = [field(sentence, "raw", str, *where).strip() for sentence in sentences]
            told.append((field(image, "cocoid", int, *where), field(image, "filename", str, *where), texts))
    _captions(folder, told)
    return {name: name for _, name, _ in told}


def _image_paragraphs(raw: Path, folder: Path) -> dict[str, str]:
    """Stanford's image paragraphs: a list of {"image_id", "paragraph"}, and the ids of the test split."""
    split = one(raw, "test_split.json")
    ids = read_json(split)
    if not isinstance(ids, list) or not all(isinstance(id_, int) for id_ in ids):
        raise RecordProblem(f"{split}: is no list of image ids")
    test = set(ids)
    told: dict[int, str] = {}
    for where, record in _records(one(raw, "paragraphs_v1.json")):
        if (id_ := field(record, "image_id", int, *where)) in test:
            told.setdefault(id_, " ".join(field(record, "paragraph", str, *where).split()))
    _captions(folder, [(id_, f"{id_}.jpg", [paragraph]) for id_, paragraph in sorted(told.items())])
    return {f"{id_}.jpg": f"{id_}.jpg" for id_ in told}


def _nocaps(raw: Path, folder: Path) -> dict[str, str]:
    """NoCaps: a COCO captions file, whose pictures are of Open Images."""
    file = one(raw, "captions.json")
    content = _object(file)
    write_json(folder / "captions_test.json", content)
    names = [field(image, "file_name", str, *where) for where, image in _records(file, "images", content)]
    return {name: name for name in names}


def _coco_fid(raw: Path, folder: Path) -> dict[str, str]:
    """30,000 pictures of COCO val2014 with one caption each to draw, both drawn by a named seed and written down.

    The official script draws them anew for each of its eight seeds and records none (bug B11).
    """
    file = one(raw, "captions_val2014.json")
    content = _object(file)
    names: dict[int, str] = {}
    for where, image in _records(file, "images", content):
        names[field(image, "id", int, *where)] = field(image, "file_name", str, *where)
    captions: dict[int, list[dict[str, Any]]] = {}
    for where, annotation in _records(file, "annotations", content):
        id_ = field(annotation, "image_id", int, *where)
        field(annotation, "id", int, *where)
        if id_ not in names:
            raise BenchmarkProblem(*where, f'is about picture {id_}, which is not among "images"')
        if field(annotation, "caption", str, *where).strip():
            captions.setdefault(id_, []).append(annotation)
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
    file = one(raw, "coco_val_localized_narratives.jsonl")
    for number, (where, record) in enumerate(_lines(file)):
        prompt = " ".join(field(record, "caption", str, *where).split())
        image_id = str(field(record, "image_id", (str, int), *where))
        if not COCO_ID.fullmatch(image_id):
            raise BenchmarkProblem(*where, f"image id {image_id!r} is no number of COCO")
        records.append({"id": number, "prompt": prompt, "image_id": int(image_id)})
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
    file = dev[0] if len(files) > 1 and len(dev) == 1 else one(raw, "questions.json")
    questions = _object(file)
    write_json(folder / "vqa_test_questions.json", questions)
    if dev:
        every, asked = (
            {
                field(question, "question_id", int, *where)
                for one_file in chosen
                for where, question in _records(one_file, "questions")
            }
            for chosen in (files, [file])
        )
        write_json(folder / vqa.NOT_ASKED, {"question_ids": sorted(every - asked)})
    subtype = field({"data_subtype": "val2014"} | questions, "data_subtype", str, str(file), "")
    subtype = subtype.replace("test-dev", "test")
    if not subtype.startswith("test"):
        write_json(folder / "vqa_test_annotations.json", _object(one(raw, "annotations.json")))
    ids = {field(question, "image_id", int, *where) for where, question in _records(file, "questions", questions)}
    names = {f"COCO_{subtype}_{id_:012d}.jpg" for id_ in ids}
    return {name: name for name in sorted(names)}


def _vizwiz(raw: Path, folder: Path) -> dict[str, str]:
    """VizWiz: a list of {"image": "VizWiz_val_00000042.jpg", "question", "answers", "answer_type"}.

    One archive holds the records of all splits; val is read, or test where only its pictures are there.
    """
    questions, annotations, names = [], [], {}
    pictures = [file.name for file in members(raw, ".jpg")]
    only_test = bool(pictures) and all(name.startswith("VizWiz_test_") for name in pictures)
    for where, record in _records(_member_named(raw, "test.json" if only_test else "val.json")):
        name = field(record, "image", str, *where)
        if not (number := VIZWIZ_NAME.fullmatch(name)):
            raise BenchmarkProblem(*where, f"picture {name!r} has no number behind its last _")
        id_ = int(number[1])
        questions.append({"question_id": id_, "image_id": id_, "question": field(record, "question", str, *where)})
        if not only_test:
            answers = field(record, "answers", list, *where)
            about = {"question_type": record.get("answer_type", ""), "answers": answers}
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
    for where, record in _records(one(raw, "TextVQA_0.5.1_val.json"), "data"):
        number = numbers.setdefault(field(record, "image_id", str, *where), len(numbers))
        key = {"question_id": field(record, "question_id", (int, str), *where), "image_id": number}
        questions.append({**key, "question": field(record, "question", str, *where)})
        answers = [{"answer": text} for text in field(record, "answers", list, *where)]
        annotations.append({**key, "question_type": "", "answers": answers})
    _vqa(folder, questions, annotations)
    return {f"{number:012d}.jpg": f"{name}.jpg" for name, number in numbers.items()}


def _pope(raw: Path, folder: Path) -> dict[str, str]:
    """POPE: three files of JSON lines {"question_id", "image", "text", "label"}; people's own may end in .jsonl."""
    names = set()
    lines = any(members(raw, f"pope_{subset}.jsonl") for subset in pope.SUBSETS)
    for subset in pope.SUBSETS:
        records = list(_lines(one(raw, f"pope_{subset}.json{'l' if lines else ''}")))
        _jsonl(folder / f"pope_{subset}_test.jsonl", [record for _, record in records])
        names |= {field(record, "image", str, *where) for where, record in records}
    return {name: name for name in sorted(names)}


# ---- people's own sets (docs/your-data.md) ---------------------------------------------------------------------------


def _coco_captions(raw: Path, folder: Path) -> dict[str, str]:
    """A COCO captions file under any name: {"images": [{"id", "file_name"}], "annotations": [...]}."""
    file = one(raw, ".json")
    content = _object(file)
    names = {}
    for where, image in _records(file, "images", content):
        path = field(image, "file_name", str, *where)
        image["file_name"] = path.rpartition("/")[2]
        names[image["file_name"]] = image["file_name"]
    write_json(folder / "captions_test.json", content)
    return names


def _own_vqa(raw: Path, folder: Path) -> dict[str, str]:
    """VQAv2's two files under any names that end in questions.json and annotations.json.

    A question names its picture by `image`, the name of a file, or by `image_id`, the number in such a name. One answer
    alone counts for all ten annotators, since the challenge's rule asks for three equal ones.
    """
    asked, answered = one(raw, "questions.json"), one(raw, "annotations.json")
    shown: Pictures | None = None
    numbers: dict[str, int] = {}
    questions = _object(asked)
    for where, question in _records(asked, "questions", questions):
        if isinstance(question, dict) and "image" in question:
            name = field(question, "image", str, *where).rpartition("/")[2]
        else:
            shown = shown or Pictures(raw)
            name = shown.name_of(field(question, "image_id", int, *where), Path(where[0]), where[1])
        question["image_id"] = numbers.setdefault(name, len(numbers))
    annotations = _object(answered)
    for where, annotation in _records(answered, "annotations", annotations):
        answers = field(annotation, "answers", list, *where)
        told = [{"answer": answer} if isinstance(answer, str) else answer for answer in answers]
        annotation["answers"] = told * ANNOTATORS if len(told) == 1 else told
    write_json(folder / "vqa_test_questions.json", questions)
    write_json(folder / "vqa_test_annotations.json", annotations)
    return {f"{number:012d}{Path(name).suffix}": name for name, number in numbers.items()}


def _mm_vet(raw: Path, folder: Path) -> dict[str, str]:
    """MM-Vet: mm-vet.json, beside its pictures."""
    file = one(raw, "mm-vet.json")
    content = _object(file)
    write_json(folder / "mm_vet_test.json", content)
    names = [field(record, "imagename", str, str(file), f"question {id_}") for id_, record in content.items()]
    return {name: name for name in names}


def _mmbench(raw: Path, folder: Path) -> dict[str, str]:
    """MMBench: a table with the pictures in base64. Rotations of the options are added where the table has none.

    A rotation has its question's picture; instead of a picture there may be the index of the row that holds it.
    """
    csv.field_size_limit(LARGEST_FIELD)
    table = one(raw, ".tsv")
    table.verify()
    with table.open() as file, table.damage():
        reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), delimiter="\t")
        names = [name for name in reader.fieldnames or [] if name != "image"]
        if missing := {"index", "question", "A", "B", "category", "image"} - {*(reader.fieldnames or [])}:
            raise RecordProblem(f"{table}: has no column {', '.join(sorted(missing))}")
        rows = []
        with zipfile.ZipFile(folder / "images_test.zip", "w", zipfile.ZIP_STORED) as archive:
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    raise RecordProblem(f"{table}: row {number}: has more or fewer columns than the heading")
                picture = row.pop("image")
                rows.append(row)
                where = f"{table}: question {row['index']}"
                if not mmbench.INDEX.fullmatch(row["index"]):
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
    "coco_captions": _coco_captions,
    "vqa": _own_vqa,
    **placing_prompts.WRITERS,
}


def _object(file: Member) -> dict[str, Any]:
    """A JSON file that holds an object. Raises RecordProblem."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise RecordProblem(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def _records(file: Member, key: str = "", content: Any = None) -> list[tuple[tuple[str, str], Any]]:
    """The records of a JSON file that is a list, or of its list `key`, each with (file, place) for messages.

    content: of the file, if it was read before. Raises RecordProblem and BenchmarkProblem.
    """
    content = read_json(file) if content is None else content
    records = field(content, key, list, str(file), "") if key else content
    if not isinstance(records, list):
        raise RecordProblem(f"{file}: expected a JSON list, found {type(content).__name__}")
    return [((str(file), f"{key}[{number}]"), record) for number, record in enumerate(records)]


def _lines(file: Member) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """The records of a JSON lines file, each with (file, place). Raises RecordProblem for a line that is none."""
    for where, record in read_jsonl(file):
        if isinstance(record, Rejected):
            raise RecordProblem(f"{record.why}: {record.where}")
        yield (where, ""), record


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
    write_json(folder / "captions_test.json", {"info": {}, "images": images, "annotations": annotations})


def _vqa(folder: Path, questions: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    for name, records in (("questions", questions), ("annotations", annotations)):
        write_json(folder / f"vqa_test_{name}.json", {name: records})


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

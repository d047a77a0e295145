"""Pictures with annotations in files of their own: COCO captions, Localized Narratives, GQA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.config.sources import SourceUse
from dreamllm.data.document import Document, Kind, Part, Picture, Text
from dreamllm.sources.chunks import Chunk, chunks
from dreamllm.sources.pairs import reason
from dreamllm.sources.records import (
    Folders,
    Member,
    RecordProblem,
    Rejected,
    members,
    picture,
    picture_files,
    read_json,
    read_jsonl,
    read_table,
)

Records = Iterator[tuple[str, dict[str, Any] | Rejected]]


def coco_units(raw: Path, fetched: Path | None, folders: Folders) -> Iterator[Chunk]:
    """COCO captions: runs of {"picture", "caption"}."""
    for file in members(raw, ".json"):
        if file.name.startswith("captions_train"):  # the other captions are of benchmarks
            yield from chunks(coco_records(file), file.name.removesuffix(".json"), folders)


def coco_records(file: Member) -> Records:
    """One record per caption of {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.

    Raises RecordProblem when the file is no COCO file or an image id stands twice: its captions would belong to two.
    """
    content = read_json(file)
    try:
        names = [(image["id"], image["file_name"]) for image in content["images"]]
        captions = [(annotation["image_id"], annotation["caption"]) for annotation in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise RecordProblem(f"{file}: is no file of COCO captions: {error!r}") from None
    by_id = dict(names)
    if len(by_id) < len(names):
        raise RecordProblem(f"{file}: an image id stands twice")
    for number, (image_id, caption) in enumerate(captions):
        where = f"{file}, annotations[{number}]"
        if image_id not in by_id:
            yield where, Rejected("caption of an unknown picture", where)
        else:
            yield where, {"picture": by_id[image_id], "caption": caption, "id": image_id}


def narrative_units(raw: Path, fetched: Path | None, folders: Folders) -> Iterator[Chunk]:
    """Localized Narratives of COCO: runs of {"picture", "caption"}."""
    for file in members(raw, ".jsonl"):
        yield from chunks(narrative_records(file), file.name.removesuffix(".jsonl"), folders)


def narrative_records(file: Member) -> Records:
    """One record per line {"dataset_id": "mscoco_val2017", "image_id": "137576", "caption": ...}."""
    for where, record in read_jsonl(file):
        if isinstance(record, Rejected):
            yield where, record
            continue
        image_id = str(record.get("image_id", ""))
        if not image_id.isdigit():
            yield where, Rejected("no COCO image id", where)
        else:
            yield where, {"picture": f"{int(image_id):012d}.jpg", "caption": record.get("caption"), "id": int(image_id)}


def pair_documents(unit: Chunk, use: SourceUse) -> Iterator[Document | Rejected]:
    """Records {"picture", "caption"} as pairs. Pictures are found by their own name, in whatever archive."""

    def parts(record: dict[str, Any], image: Image.Image) -> tuple[Part, ...] | str:
        caption = record["caption"] if isinstance(record["caption"], str) else ""
        caption = " ".join(caption.split())
        return (Picture(image), Text(caption)) if caption else "caption is empty"

    return _documents(unit, use, "pair", parts)


def gqa_units(raw: Path, fetched: Path | None, folders: Folders) -> Iterator[Chunk]:
    """GQA: runs of {"picture", "question", "answer"} of the training questions, train_*.json."""
    for file in members(raw, ".json"):
        if file.name.startswith("train_"):
            yield from chunks(gqa_records(file), file.name.removesuffix(".json"), folders)


def gqa_records(file: Member) -> Records:
    """One record per question of a GQA file {question id: {"imageId", "question", "answer"}}."""
    seen: set[str] = set()
    for where, key, record in read_table(file):
        if isinstance(record, Rejected):
            yield where, record
        elif key in seen:
            yield where, Rejected("key stands twice", f"{where}: {key}")
        elif not all(isinstance(record.get(name), str) for name in ("imageId", "question", "answer")):
            yield where, Rejected("question is not whole", f"{where}: {key}")
        else:
            name, question, answer = record["imageId"], record["question"], record["answer"]
            yield where, {"picture": f"{name}.jpg", "question": question, "answer": answer, "id": key}
        seen.add(key)


def gqa_documents(unit: Chunk, use: SourceUse) -> Iterator[Document | Rejected]:
    """Questions with their short answers as conversations of one turn."""

    def parts(record: dict[str, Any], image: Image.Image) -> tuple[Part, ...] | str:
        question, answer = record["question"].strip(), record["answer"].strip()
        if not question or not answer:
            return "question or answer is empty"
        return Picture(image, "user"), Text(question, "user"), Text(answer, "assistant")

    return _documents(unit, use, "conversation", parts)


def _documents(
    unit: Chunk, use: SourceUse, kind: Kind, parts_of: Callable[[dict[str, Any], Image.Image], tuple[Part, ...] | str]
) -> Iterator[Document | Rejected]:
    """One document per record. parts_of: record and picture -> the document's parts, or why there are none."""
    for number, where, record in unit:
        if isinstance(record, Rejected):
            yield record
            continue
        image = _picture(unit, where, record, use)
        if isinstance(image, Rejected):
            yield image
            continue
        parts = parts_of(record, image)
        if isinstance(parts, str):
            yield Rejected(parts, where)
        else:
            yield Document(f"{unit.name}-{number:08d}", kind, parts, {"id": record["id"]})


def _picture(unit: Chunk, where: str, record: dict[str, Any], use: SourceUse) -> Image.Image | Rejected:
    try:
        data = picture_files(unit.folders).read_by_name(record["picture"])
        return picture(data, use.picture_side, use.smallest_picture)
    except KeyError:
        return Rejected("picture is not there", f"{where}: {record['picture']}")
    except ValueError as error:
        return Rejected(reason(error), f"{where}: {error}")

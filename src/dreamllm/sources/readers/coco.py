"""COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}, training split only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dreamllm.sources.annotated_pictures import Chunk, Records, chunks, pair_documents
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import Member, RecordProblem, Rejected, members, read_json

documents = pair_documents


def units(inputs: Inputs) -> Iterator[Chunk]:
    """Runs of captions."""
    for file in members(inputs.raw, ".json"):
        if file.name.startswith("captions_train"):  # the other captions belong to benchmarks
            yield from chunks(records(file), file.name.removesuffix(".json"), inputs.folders)


def records(file: Member) -> Records:
    """One record for each caption. A caption of an image whose own entry is malformed is one of an unknown picture.

    Raises RecordProblem when the file has another form or a duplicate image id, whose captions would be ambiguous.
    """
    content = read_json(file)
    images, captions = (content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(captions, list):
        raise RecordProblem(f"{file}: is no file of COCO captions: it needs the lists images and annotations")
    named: dict[Any, str] = {}
    for image in images:
        id_, name = (image.get(key) if isinstance(image, dict) else None for key in ("id", "file_name"))
        if isinstance(id_, (int, str)) and isinstance(name, str):
            if id_ in named:
                raise RecordProblem(f"{file}: duplicate image id {id_}")
            named[id_] = name
    for number, annotation in enumerate(captions):
        where = f"{file}, annotations[{number}]"
        id_ = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(id_, (int, str)) or id_ not in named:
            yield where, Rejected("caption of an unknown picture", where)
        else:
            yield where, {"picture": named[id_], "caption": annotation.get("caption"), "id": id_}

"""COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}, training split only."""

from __future__ import annotations

from collections.abc import Iterator

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
    """One record for each caption.

    Raises RecordProblem when the file has another form or a duplicate image id, whose captions would be ambiguous.
    """
    content = read_json(file)
    try:
        names = [(image["id"], image["file_name"]) for image in content["images"]]
        captions = [(annotation["image_id"], annotation["caption"]) for annotation in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise RecordProblem(f"{file}: is no file of COCO captions: {error!r}") from None
    by_id = dict(names)
    if len(by_id) < len(names):
        raise RecordProblem(f"{file}: duplicate image id")
    for number, (image_id, caption) in enumerate(captions):
        where = f"{file}, annotations[{number}]"
        if image_id not in by_id:
            yield where, Rejected("caption of an unknown picture", where)
        else:
            yield where, {"picture": by_id[image_id], "caption": caption, "id": image_id}

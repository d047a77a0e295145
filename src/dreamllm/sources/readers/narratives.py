"""Localized Narratives of COCO: JSON lines {"dataset_id": "mscoco_val2017", "image_id": "137576", "caption": ...}."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dreamllm.sources.annotated_pictures import Chunk, Records, chunks, pair_documents
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import Member, Rejected, members, read_jsonl

COCO_ID = re.compile(r"[0-9]{1,12}")

documents = pair_documents


def units(inputs: Inputs) -> Iterator[Chunk]:
    """Runs of narratives."""
    for file in members(inputs.raw, ".jsonl"):
        yield from chunks(records(file), file.name.removesuffix(".jsonl"), inputs.folders)


def records(file: Member) -> Records:
    """One record for each line."""
    for where, record in read_jsonl(file):
        if isinstance(record, Rejected):
            yield where, record
            continue
        image_id = str(record.get("image_id", ""))
        if not COCO_ID.fullmatch(image_id):
            yield where, Rejected("no COCO image id", where)
        else:
            yield where, {"picture": f"{int(image_id):012d}.jpg", "caption": record.get("caption"), "id": int(image_id)}

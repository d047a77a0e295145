"""LLaVA's JSON: a list of conversations about at most one picture, or in .jsonl one of them on each line.

    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}, ...]}

Ids are not unique in these files: the id of a document is its number in the file; the record's own id is in `meta`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from dreamllm.config.sources import SourceSettings
from dreamllm.data.document import Document, Part, Picture, Role, Text
from dreamllm.sources.annotated_pictures import Chunk, chunks, load_picture
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import Rejected, members, read_jsonl, read_list

PLACEHOLDER = "<image>"
SPEAKERS: dict[str, Role] = {"human": "user", "gpt": "assistant"}


def units(inputs: Inputs) -> Iterator[Chunk]:
    """Runs of records of the JSON files."""
    for file in members(inputs.raw, ".json", ".jsonl"):
        records = read_jsonl(file) if file.name.endswith(".jsonl") else read_list(file)
        yield from chunks(records, file.name.rpartition(".")[0], inputs.folders)


def documents(unit: Chunk, settings: SourceSettings) -> Iterator[Document | Rejected]:
    """The conversations of a run of records."""
    for number, where, record in unit:
        if isinstance(record, Rejected):
            yield record
            continue
        image = load_picture(unit, where, record["image"], settings) if record.get("image") else None
        parts = image if isinstance(image, Rejected) else conversation(record, image, where)
        if isinstance(parts, Rejected):
            yield parts
        else:
            id_ = record.get("id", "")
            meta = {"id": str(id_) if isinstance(id_, (str, int, float)) else ""}
            yield Document(f"{unit.name}-{number:08d}", "conversation", tuple(parts), meta)


def conversation(record: dict[str, Any], image: Image.Image | None, where: str = "") -> list[Part] | Rejected:
    """The turns of a record as parts, with the picture in the place of <image>.

    Rejected are turns that do not alternate, starting with the human's; empty turns; and another number of <image> than
    of pictures (the official code matches them by counting and would take the picture of another document).
    """
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        return Rejected("no conversation", where)
    parts: list[Part] = []
    placeholders = 0
    for number, turn in enumerate(turns):
        speaker, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(text, str) or SPEAKERS.get(str(speaker)) != ("user", "assistant")[number % 2]:
            return Rejected("turns do not alternate", where)
        role = SPEAKERS[str(speaker)]
        if not text.strip():
            return Rejected("empty turn", where)
        for place, piece in enumerate(text.split(PLACEHOLDER)):
            if place:
                placeholders += 1
                if image is not None:
                    parts.append(Picture(image, role))
            if piece.strip():
                parts.append(Text(piece.strip(), role))
    if len(turns) % 2:
        return Rejected("turns do not alternate", where)
    if placeholders != (image is not None):
        return Rejected("number of <image> is not that of the pictures", where)
    return parts

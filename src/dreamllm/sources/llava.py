"""LLaVA's JSON: conversations about at most one picture, or (LLaVA-Pretrain) captions asked for in a conversation.

    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}, ...]}

Ids are not unique in these files: a document's id is its place, the file's own id stays in `meta`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamllm.config.sources import SourceUse
from dreamllm.data.document import Document, Part, Picture, Role, Text
from dreamllm.sources.chunks import Chunk, chunks
from dreamllm.sources.pairs import reason
from dreamllm.sources.records import Folders, Rejected, members, picture, picture_files, read_list

PLACEHOLDER = "<image>"
SPEAKERS: dict[str, Role] = {"human": "user", "gpt": "assistant"}


def units(raw: Path, fetched: Path | None, folders: Folders) -> Iterator[Chunk]:
    """Runs of records, with the folder of their pictures."""
    for file in members(raw, ".json"):
        yield from chunks(read_list(file), file.name.removesuffix(".json"), folders)


def documents(unit: Chunk, use: SourceUse) -> Iterator[Document | Rejected]:
    """The conversations of a run of records."""
    for number, where, record in unit:
        if isinstance(record, Rejected):
            yield record
            continue
        try:
            name = record.get("image")
            shown = picture(_data(unit.folders, name), use.picture_side, use.smallest_picture) if name else None
        except KeyError:
            yield Rejected("picture is not there", f"{where}: {record['image']}")
        except (ValueError, TypeError) as error:
            yield Rejected(reason(ValueError(error)), f"{where}: {error}")
        else:
            made = conversation(record, shown, where)
            if isinstance(made, Rejected):
                yield made
            else:
                yield Document(
                    f"{unit.name}-{number:08d}", "conversation", tuple(made), {"id": str(record.get("id", ""))}
                )


def pair_documents(unit: Chunk, use: SourceUse) -> Iterator[Document | Rejected]:
    """LLaVA-Pretrain as pairs: the picture and the caption that is the one answer; the question is left out."""
    for document in documents(unit, use):
        if isinstance(document, Rejected):
            yield document
            continue
        pictures = [part for part in document.parts if isinstance(part, Picture)]
        captions = [part for part in document.parts if isinstance(part, Text) and part.role == "assistant"]
        if (len(pictures), len(captions)) != (1, 1):
            yield Rejected("not one picture with one caption", document.id)
        else:
            parts = (Picture(pictures[0].image), Text(captions[0].text))
            yield Document(document.id, "pair", parts, document.meta)


def _data(folders: Folders, name: Any) -> bytes:
    if not isinstance(name, str):
        raise ValueError(f"the field image holds {name!r}")
    files = picture_files(folders)
    return files.read(name) if "/" in name else files.read_by_name(name)


def conversation(record: dict[str, Any], shown: Any, where: str = "") -> list[Part] | Rejected:
    """The turns of a record as parts, the picture `shown` in the place of its <image>.

    Rejected are: turns that do not alternate, beginning with the human one; empty turns; another number of <image> than
    of pictures (the official code pairs pictures by counting and would take another document's, bugs B5 and B14).
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
                if shown is not None:
                    parts.append(Picture(shown, role))
            if piece.strip():
                parts.append(Text(piece.strip(), role))
    if len(turns) % 2:
        return Rejected("turns do not alternate", where)
    if placeholders != (shown is not None):
        return Rejected("number of <image> is not that of the pictures", where)
    return parts

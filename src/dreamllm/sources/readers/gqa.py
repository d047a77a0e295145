"""GQA: {question id: {"imageId", "question", "answer"}}, the training questions in train_*.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from dreamllm.config.sources import SourceSettings
from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.sources import annotated_pictures
from dreamllm.sources.annotated_pictures import Chunk, Records, chunks
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import Member, Rejected, members, read_table


def units(inputs: Inputs) -> Iterator[Chunk]:
    """Runs of questions."""
    for file in members(inputs.raw, ".json"):
        if file.name.startswith("train_"):
            yield from chunks(records(file), file.name.removesuffix(".json"), inputs.folders)


def records(file: Member) -> Records:
    """One record for each question."""
    seen: set[str] = set()
    for where, key, record in read_table(file):
        if isinstance(record, Rejected):
            yield where, record
        elif key in seen:
            yield where, Rejected("duplicate key", f"{where}: {key}")
        elif not all(isinstance(record.get(name), str) for name in ("imageId", "question", "answer")):
            yield where, Rejected("question is incomplete", f"{where}: {key}")
        else:
            name, question, answer = record["imageId"], record["question"], record["answer"]
            yield where, {"picture": f"{name}.jpg", "question": question, "answer": answer, "id": key}
        seen.add(key)


def documents(unit: Chunk, settings: SourceSettings) -> Iterator[Document | Rejected]:
    """Conversations of one turn, with the short answer."""

    def parts(record: dict[str, Any], image: Image.Image) -> tuple[Part, ...] | str:
        question, answer = record["question"].strip(), record["answer"].strip()
        if not question or not answer:
            return "question or answer is empty"
        return Picture(image, "user"), Text(question, "user"), Text(answer, "assistant")

    return annotated_pictures.documents(unit, settings, "conversation", parts)

"""LLaVA-Pretrain: the JSON of format llava, in which the one answer is a caption of the picture."""

from __future__ import annotations

from collections.abc import Iterator

from dreamllm.config.sources import SourceSettings
from dreamllm.data.document import Document, Picture, Text
from dreamllm.sources.annotated_pictures import Chunk
from dreamllm.sources.readers import llava
from dreamllm.sources.records import Rejected

units = llava.units


def documents(unit: Chunk, settings: SourceSettings) -> Iterator[Document | Rejected]:
    """Pairs of the picture and the answer; the question is left out."""
    for document in llava.documents(unit, settings):
        if isinstance(document, Rejected):
            yield document
            continue
        captions = [part for part in document.parts if isinstance(part, Text) and part.role == "assistant"]
        if (len(document.pictures), len(captions)) != (1, 1):
            yield Rejected("not one picture with one caption", document.id)
        else:
            parts = (Picture(document.pictures[0]), Text(captions[0].text))
            yield Document(document.id, "pair", parts, document.meta)

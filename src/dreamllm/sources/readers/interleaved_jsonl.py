"""Interleaved documents as OBELICS has them, with names of files: JSON lines {"images": [...], "texts": [...]}.

The two lists have one length, and exactly one of them has a value at each place:

    {"images": [null, "a.jpg", null], "texts": ["First chop the onions.", null, "Then fry them."]}

Names are relative to the set's folder.
"""

from __future__ import annotations

from collections.abc import Iterator

from dreamllm.config.sources import SourceSettings
from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.sources.annotated_pictures import Chunk, chunks, load_picture
from dreamllm.sources.interleaved import complete
from dreamllm.sources.readers import Inputs
from dreamllm.sources.readers.obelics import page
from dreamllm.sources.records import BuildProblem, Rejected, members, read_jsonl


def units(inputs: Inputs) -> Iterator[Chunk]:
    """Runs of lines. Raises BuildProblem when there is no file of them."""
    files = members(inputs.raw, ".jsonl")
    if not files:
        raise BuildProblem(f"{inputs.raw}: has no file of documents; its name ends in .jsonl")
    for file in files:
        yield from chunks(read_jsonl(file), file.name.removesuffix(".jsonl"), inputs.folders)


def documents(unit: Chunk, settings: SourceSettings) -> Iterator[Document | Rejected]:
    """The documents of a run of lines, and what was left out."""
    for number, where, record in unit:
        read = record if isinstance(record, Rejected) else page(record, where)
        if isinstance(read, Rejected):
            yield read
            continue
        parts: list[Part] = []
        for part in read:
            if isinstance(part, str):
                parts.append(Text(part))
                continue
            image = load_picture(unit, where, part[0], settings)
            if isinstance(image, Rejected):
                yield Rejected(image.why, image.where, whole=False)
            else:
                parts.append(Picture(image))
        yield complete(f"{unit.name}-{number:08d}", parts, where, {})

"""The one data type of the project: an interleaved document of texts and pictures (paper section 3.1).

A caption pair, an MMC4 page, a chat with pictures, a VQA item and a text-to-image prompt are all Documents.
This module knows nothing of tokens (`layout.py`), of files (`shards.py`) or of models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from PIL import Image

Kind = Literal["text", "pair", "interleaved", "conversation"]
Role = Literal["", "user", "assistant"]


@dataclass(frozen=True)
class Text:
    """A run of text. `role` is "" outside conversations; user text is prompt, all other text is target."""

    text: str
    role: Role = ""


@dataclass(frozen=True)
class Picture:
    """A picture in RGB. Whether it is read, drawn or both is decided by the layout, not by the data."""

    image: Image.Image
    role: Role = ""


Part = Text | Picture


@dataclass(frozen=True)
class Document:
    """An interleaved document.

    kind:
        text          only Text parts
        pair          exactly one Text and one Picture: read as picture -> text, drawn as text -> picture
        interleaved   any order; a picture illustrates the text on its left
        conversation  every part has a role; an instruction is a conversation of one turn
    meta: whatever the source knows (scene, url, similarity); carried along, never used for training.

    Raises ValueError, naming the document, when the parts do not fit the kind.
    """

    id: str
    kind: Kind
    parts: tuple[Part, ...]
    meta: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if problem := _misfit(self.kind, self.parts):
            raise ValueError(f"document {self.id!r}: {problem}")

    @property
    def pictures(self) -> list[Image.Image]:
        """The document's pictures in reading order."""
        return [part.image for part in self.parts if isinstance(part, Picture)]


def _misfit(kind: str, parts: tuple[Part, ...]) -> str | None:
    """Say what is wrong with these parts for this kind, or None."""
    texts = [part for part in parts if isinstance(part, Text)]
    pictures = [part for part in parts if isinstance(part, Picture)]
    roles = {part.role for part in parts}
    if kind not in get_args(Kind):
        return f"unknown kind {kind!r}, expected one of {', '.join(get_args(Kind))}"
    if not parts:
        return "it has no parts"
    if kind == "text" and pictures:
        return f"a text document cannot hold pictures, it has {len(pictures)}"
    if kind == "pair" and (len(texts), len(pictures)) != (1, 1):
        return f"a pair needs one text and one picture, it has {len(texts)} and {len(pictures)}"
    if kind == "conversation" and not roles <= {"user", "assistant"}:
        return "every part of a conversation needs a role, user or assistant"
    if kind == "conversation" and parts[0].role != "user":
        return "a conversation starts with the user"
    if kind != "conversation" and roles != {""}:
        return f"roles belong to conversations, not to kind {kind!r}"
    return None

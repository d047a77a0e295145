"""The one data type of the project: an interleaved document of texts and pictures (paper section 3.1).

A caption pair, an MMC4 page, a chat with pictures, a VQA item and a text-to-image prompt are all Documents.
Elsewhere: tokens (`layout.py`), files (`shards.py`), models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from PIL import Image

Kind = Literal["text", "pair", "interleaved", "conversation"]
Role = Literal["", "user", "assistant"]


@dataclass(frozen=True)
class Text:
    """A text. `role` is "" outside conversations. The user's text is prompt, all other text is a training target."""

    text: str
    role: Role = ""


@dataclass(frozen=True)
class Picture:
    """An RGB picture. The layout decides whether it is read, drawn or both."""

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
    meta: further data of the source (scene, url, similarity); stored, but never used for training.

    Raises ValueError naming the document when its parts do not fit its kind.
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
    """What is wrong with these parts for this kind; None if nothing is."""
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

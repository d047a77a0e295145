"""Prompts of the benchmarks, as Documents to be continued.

official   the prompts of the official evaluation code (omni/eval/vqa): a conversation with a system sentence before the
           picture, an instruction after the question and the beginning of the answer already written. With its
           mistakes: nothing stands between question and instruction; a missing hint of MMBench reads "nan"; its
           options are all numbered (0); "no" is looked for in the middle of words
corrected  the same without these mistakes
emoji      the forms in which the emoji world's training documents are written

Pictures are drawn, and stories continued, from their bare text in all of them, as in the official code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from dreamllm.data.document import Document, Part, Picture, Text

PromptSet = Literal["emoji", "official", "corrected"]
Shot = tuple[Image.Image, str, str]  # picture, question, answer


@dataclass(frozen=True)
class Wording:
    """The text around an image and a question: system PICTURE question+instruction, then the answer's beginning.

    first: asked before, in a conversation of its own: can the question be answered at all?
    """

    system: str = ""
    instruction: str = ""
    answer: str = ""
    first: str = ""


def about_picture(
    id_: str,
    picture: Image.Image | None,
    question: str,
    wording: Wording,
    prompts: PromptSet,
    shots: Sequence[Shot] = (),
) -> Document:
    """A picture to describe (without a question) or to answer a question about, after worked examples of the same.

    Without a picture the question is asked alone, as a control.

    An example is a turn of the conversation before, worded alike; the system sentence stands once. (The official code
    has no examples; this is how its conversations go on.)
    """
    if prompts == "emoji" and wording == Wording() and not question and picture:
        return Document(id_, "interleaved", (Picture(picture),))  # its caption follows, as in a pair
    glue = " " if prompts != "official" and question and wording.instruction else ""
    parts: list[Part] = [Text(wording.system, "user")]
    for shown_picture, asked, answered in shots:
        asked_glue = glue if asked else ""
        answer = f"{wording.answer} {answered}".strip()
        parts += [Picture(shown_picture, "user"), Text(asked + asked_glue + wording.instruction, "user")]
        parts += [Text(answer, "assistant")]
    parts += [Picture(picture, "user")] if picture else []
    parts += [Text(question + glue + wording.instruction, "user")]
    parts += [Text(wording.answer, "assistant")]
    return Document(id_, "conversation", tuple(part for part in parts if isinstance(part, Picture) or part.text))


def whether_known(
    id_: str, picture: Image.Image | None, question: str, wording: Wording, prompts: PromptSet
) -> Document:
    """The first of two passes: whether the question can be answered at all."""
    asked = f"{question} {wording.first}" if prompts == "corrected" else question + wording.first
    return Document(id_, "conversation", (*([Picture(picture, "user")] if picture else []), Text(asked, "user")))


def first_word_is_no(reply: str) -> bool:
    """Whether a reply begins with the word "no"."""
    return re.match(r"\W*no\b", reply.lower()) is not None


def plain_text(id_: str, text: str) -> Document:
    """A text to generate an image from, or an opening to be continued."""
    return Document(id_, "text", (Text(text),))


def rewrite_request(id_: str, prompt: str, prompts: PromptSet) -> Document:
    """A request to put the description of a picture into other words, in the form of an instruction of training."""
    request = "{} describe the picture." if prompts == "emoji" else "Describe the picture of this in one sentence: {}"
    return Document(id_, "conversation", (Text(request.format(prompt), "user"),))


def as_text(document: Document) -> str:
    """The prompt in words for a prediction record, pictures as <image>."""
    return " ".join(part.text if isinstance(part, Text) else "<image>" for part in document.parts)

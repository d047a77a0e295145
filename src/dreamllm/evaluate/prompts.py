"""The words put to a model for each benchmark, as Documents to be continued.

official  the prompts of the official evaluation code (omni/eval): a conversation with a system sentence before the
          picture, an instruction after the question and the beginning of the answer already written
emoji     the forms in which the emoji world's training documents are written

Pictures are drawn, and stories continued, from their bare text in both, as in the official code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from dreamllm.document import Document, Picture, Text
from dreamllm.evaluate.benchmarks import ChoiceItem

PromptSet = Literal["emoji", "official"]


@dataclass(frozen=True)
class Wording:
    """What stands around a picture and a question: system PICTURE question+instruction, then the answer's beginning."""

    system: str = ""
    instruction: str = ""
    answer: str = ""


OFFICIAL = {
    "captions": Wording(
        system="Based on the image, give the image caption briefly.",
        instruction="Please summarize object in one sentence within 10 words.",
        answer="The image depicts",
    ),
    "vqa": Wording(
        system="Based on the image, please answer the question.",
        instruction="Please provide an accurate answer within one word.",
        answer="The short answer (one word) is:",
    ),
    "pope": Wording(
        system="Based on the image, please objectively and accurately indicate whether the object exists.",
        answer="The answer is:",
    ),
}


def about_picture(benchmark: str, id_: str, picture: Image.Image, question: str, prompts: PromptSet) -> Document:
    """A picture to describe (captions, without a question) or to answer a question about (vqa, pope)."""
    if prompts == "emoji" and not question:
        return Document(id_, "interleaved", (Picture(picture),))  # its caption follows, as in a pair
    wording = OFFICIAL[benchmark] if prompts == "official" else Wording()
    parts = [
        Text(wording.system, "user"),
        Picture(picture, "user"),
        Text(question + wording.instruction, "user"),
        Text(wording.answer, "assistant"),
    ]
    return Document(id_, "conversation", tuple(part for part in parts if isinstance(part, Picture) or part.text))


def opening(id_: str, text: str) -> Document:
    """A text to be drawn, or an opening to be continued."""
    return Document(id_, "text", (Text(text),))


def rewriting(id_: str, prompt: str, prompts: PromptSet) -> Document:
    """A request to put the description of a picture into other words, in the form of an instruction of training."""
    request = "{} describe the picture." if prompts == "emoji" else "Describe the picture of this in one sentence: {}"
    return Document(id_, "conversation", (Text(request.format(prompt), "user"),))


def choices(item: ChoiceItem, prompts: PromptSet) -> tuple[Document, list[Document]]:
    """A language-only question, and the same with each of its options as the answer.

    Raises KeyError for a set without a prompt here.
    """
    if prompts == "official":
        question = {
            "piqa": "Question: {goal}\nAnswer:",
            "boolq": "Choose yes or no to answer the question.\n\n{passage}\n\n{question}?\nAnswer:",
        }[item.task].format(**item.fields)
        return opening(item.id, question), [opening(item.id, f"{question} {option}") for option in item.options]
    question = {"piqa": "{goal} describe the picture.", "boolq": "{passage} {question}?"}[item.task].format(
        **item.fields
    )
    asked = Text(question, "user")
    answers = [Text(option if item.task == "piqa" else option.lower(), "assistant") for option in item.options]
    return Document(item.id, "conversation", (asked,)), [
        Document(item.id, "conversation", (asked, answer)) for answer in answers
    ]


def shown(document: Document) -> str:
    """The prompt in words for a prediction record, pictures as <image>."""
    return " ".join(part.text if isinstance(part, Text) else "<image>" for part in document.parts)

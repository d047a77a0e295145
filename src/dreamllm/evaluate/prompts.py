"""The words put to a model for each benchmark, as Documents to be continued.

official   the prompts of the official evaluation code (omni/eval/vqa): a conversation with a system sentence before the
           picture, an instruction after the question and the beginning of the answer already written. With its slips:
           nothing stands between question and instruction; a missing hint of MMBench reads "nan"; its options are all
           numbered (0); "no" is looked for in the middle of words
corrected  the same without these slips
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
from dreamllm.evaluate.benchmarks import ChoiceItem
from dreamllm.evaluate.mmbench import MmbenchItem

PromptSet = Literal["emoji", "official", "corrected"]
Shot = tuple[Image.Image, str, str]  # picture, question, answer


@dataclass(frozen=True)
class Wording:
    """What stands around a picture and a question: system PICTURE question+instruction, then the answer's beginning.

    first: what is asked before, in a conversation of its own, to find out whether the question can be answered at all
    """

    system: str = ""
    instruction: str = ""
    answer: str = ""
    first: str = ""


_QUESTION = "Based on the image, please answer the question."
_ONE_WORD = "Please provide an accurate answer within one word."
OFFICIAL = {  # by task, and by source where the official code has other words for it
    "captions": Wording(
        system="Based on the image, give the image caption briefly.",
        instruction="Please summarize object in one sentence within 10 words.",
        answer="The image depicts",
    ),
    "nocaps": Wording(instruction="Please summarize object briefly in one sentence within 5 words."),
    "image_paragraphs": Wording(
        system="Based on the image, please describe the image in detail.",
        instruction="Please describe the image in detail.",
        answer="The image depicts",
    ),
    "vqa": Wording(system=_QUESTION, instruction=_ONE_WORD, answer="The short answer (one word) is:"),
    "okvqa": Wording(
        instruction="Please provide an accurate and brief answer within one word.",
        answer="The short answer (one word) is:",
    ),
    "textvqa": Wording(system=_QUESTION, instruction=_ONE_WORD, answer="The answer is:"),
    "vizwiz": Wording(
        system=_QUESTION, instruction=_ONE_WORD, answer="The answer is:", first="Is the answer can be known?"
    ),
    "pope": Wording(
        system="Based on the image, please objectively and accurately indicate whether the object exists.",
        answer="The answer is:",
    ),
    "mmbench": Wording(
        system="This is an exam, please answer according to the image, hint and question.",
        instruction="Please provide an accurate and detailed answer.",
        first="Is the answer can be known?",
    ),
    "mm_vet": Wording(
        system="This is an exam, please answer according to the image and question.",
        instruction="Please provide an accurate, detailed and comprehensive answer.",
    ),
}


def wording_of(task: str, source: str | None, prompts: PromptSet) -> Wording:
    """The words for a task, or for a source that has its own: vizwiz_test has those of vizwiz."""
    if prompts == "emoji":
        return Wording()
    own = [name for name in OFFICIAL if source and (source == name or source.startswith(f"{name}_"))]
    return OFFICIAL[own[0] if own else task]


def about_picture(
    id_: str,
    picture: Image.Image,
    question: str,
    wording: Wording,
    prompts: PromptSet,
    shots: Sequence[Shot] = (),
) -> Document:
    """A picture to describe (without a question) or to answer a question about, after worked examples of the same.

    An example is a turn of the conversation before, worded alike; the system sentence stands once. (The official code
    has no examples; this is how its conversations go on.)
    """
    if prompts == "emoji" and not question:
        return Document(id_, "interleaved", (Picture(picture),))  # its caption follows, as in a pair
    glue = " " if prompts == "corrected" and question and wording.instruction else ""
    parts: list[Part] = [Text(wording.system, "user")]
    for shown_picture, asked, answered in shots:
        asked_glue = glue if asked else ""
        answer = f"{wording.answer} {answered}".strip()
        parts += [Picture(shown_picture, "user"), Text(asked + asked_glue + wording.instruction, "user")]
        parts += [Text(answer, "assistant")]
    parts += [Picture(picture, "user"), Text(question + glue + wording.instruction, "user")]
    parts += [Text(wording.answer, "assistant")]
    return Document(id_, "conversation", tuple(part for part in parts if isinstance(part, Picture) or part.text))


def whether_known(id_: str, picture: Image.Image, question: str, wording: Wording, prompts: PromptSet) -> Document:
    """The first of two passes: whether the question can be answered at all."""
    asked = f"{question} {wording.first}" if prompts == "corrected" else question + wording.first
    return Document(id_, "conversation", (Picture(picture, "user"), Text(asked, "user")))


def says_unknown(reply: str, task: str, prompts: PromptSet) -> bool:
    """Whether a reply to `whether_known` is a no.

    Official: "no" anywhere in the reply for VizWiz, so that "known" and "not" count; at its beginning for MMBench, so
    that "not" and "nothing" count. Corrected: the first word is "no".
    """
    if prompts == "corrected":
        return re.match(r"\W*no\b", reply.lower()) is not None
    return reply.lower().startswith("no") if task == "mmbench" else "no" in reply.lower()


def exam_question(item: MmbenchItem, prompts: PromptSet, *, with_options: bool) -> str:
    """A question of MMBench with its hint and, when they are to be seen, its options."""
    if prompts == "official":
        hint = item.hint or "nan"  # what pandas makes of an empty cell
        options = "".join(f"(0). {text} " for text in item.options.values())  # the counter never counts
        return f"Hint:{hint}Question:{item.question}" + (f"Options: {options}" if with_options else "")
    lines = [f"Hint: {item.hint}" if item.hint else "", f"Question: {item.question}" if item.hint else item.question]
    if with_options:
        lines.append("Options: " + " ".join(f"{letter}. {text}" for letter, text in item.options.items()))
    return " ".join(line for line in lines if line)


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
    if prompts != "emoji":
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

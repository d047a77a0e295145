"""Answers in words about images: captions, questions in one or two passes, questions after worked examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dreamllm.data.document import Document
from dreamllm.evaluate import prompts
from dreamllm.evaluate.few_shot import Examples, most_common_answer
from dreamllm.evaluate.job import PredictionJob, batches, record

if TYPE_CHECKING:
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor


def answer(
    job: PredictionJob,
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    items: Sequence[Any],
    examples: Examples | None = None,
    *,
    question_of: Callable[[Any, bool], str] = lambda item, with_options: getattr(item, "question", ""),
    says_unknown: Callable[[str], bool] = lambda reply: False,
    if_unknown: str = "",
) -> list[dict[str, Any]]:
    """Write an answer to each item; returns the records of the prediction file.

    Where the wording asks first whether a question can be answered, `first` is the reply. If it `says_unknown`, the
    answer is `if_unknown` without being asked again, or the question is asked with its options where that is empty.
    question_of: an item's question, with its options if it has any and they are to be seen
    """
    from dreamllm.model import generate

    wording, settings = job.wording, job.settings
    shown = job.pictures

    def write(documents: list[Document]) -> list[str]:
        most, beams = settings.text.max_new_tokens, settings.text.num_beams
        return generate.write(model, processor, documents, max_new_tokens=most, num_beams=beams) if documents else []

    records = []
    for batch in batches(items, settings.text.batch_size, job.use.task):
        pictures = [shown.read(item.picture) for item in batch]
        firsts: list[str | None] = [None] * len(batch)
        if wording.first:
            asked = [
                prompts.whether_known(item.id, picture, question_of(item, False), wording, settings.prompts)
                for item, picture in zip(batch, pictures, strict=True)
            ]
            firsts = list(write(asked))
        unknown = [first is not None and says_unknown(first) for first in firsts]
        documents = []
        for item, picture, is_unknown in zip(batch, pictures, unknown, strict=True):
            question = question_of(item, is_unknown or not wording.first)
            before = []
            if examples is not None:
                before = [
                    (examples.pictures.read(one.picture), one.question, most_common_answer(one))
                    for one in examples.by_question[item.id]
                ]
            documents.append(prompts.about_picture(item.id, picture, question, wording, settings.prompts, before))
        given_up = [is_unknown and bool(if_unknown) for is_unknown in unknown]
        outputs = iter(write([document for document, done in zip(documents, given_up, strict=True) if not done]))
        for document, first, done in zip(documents, firsts, given_up, strict=True):
            one = record(document.id, prompts.as_text(document), settings.seed)
            one |= {} if first is None else {"first": first}
            one |= {} if examples is None else {"shots": [example.id for example in examples.by_question[document.id]]}
            records.append(one | {"output": if_unknown if done else next(outputs)})
    return records

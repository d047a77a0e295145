"""Answers in words about images: captions, questions in one or two passes, questions after worked examples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dreamllm.data.document import Document
from dreamllm.evaluate import prompts
from dreamllm.evaluate.few_shot import Examples, most_common_answer
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.job import PredictionJob, record
from dreamllm.seeds import seed_of

if TYPE_CHECKING:
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor


def shown_pictures(job: PredictionJob, items: Sequence[Any]) -> dict[str, str | None]:
    """The image that is shown for each image of the items: itself, or with `picture` none or other a control's.

    other: the next one in an order that is shuffled by the evaluation's seed, so that each image is shown for one other
    and never for itself. Raises BenchmarkProblem where all items have the same image.
    """
    names = list(dict.fromkeys(item.picture for item in items))
    if job.use.picture == "own":
        return {name: name for name in names}
    if job.use.picture == "none":
        return dict.fromkeys(names)
    if len(names) < 2:
        raise BenchmarkProblem(job.folder, "", "`picture: other` needs items about two images at least")
    random.Random(seed_of(job.settings.seed, "another picture")).shuffle(names)
    return dict(zip(names, [*names[1:], names[0]], strict=True))


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
    name: str = "answers",
) -> list[dict[str, Any]]:
    """Write an answer to each item; returns the records of the prediction file.

    Where the wording asks first whether a question can be answered, `first` is the reply. If it `says_unknown`, the
    answer is `if_unknown` without being asked again, or the question is asked with its options where that is empty.
    question_of: an item's question, with its options if it has any and they are to be seen
    name: of the answers, where a job answers its items several times
    """
    from dreamllm.model import generate

    wording, settings = job.wording, job.settings
    shown, chosen = job.pictures, shown_pictures(job, items)

    def write(documents: list[Document]) -> list[str]:
        most, beams = settings.text.max_new_tokens, settings.text.num_beams
        return generate.write(model, processor, documents, max_new_tokens=most, num_beams=beams) if documents else []

    def answer_batch(batch: Sequence[Any]) -> list[dict[str, Any]]:
        records = []
        pictures = [shown.read(file) if (file := chosen[item.picture]) else None for item in batch]
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
        for item, document, first, done in zip(batch, documents, firsts, given_up, strict=True):
            one = record(document.id, prompts.as_text(document), settings.seed)
            one |= {} if job.use.picture == "own" else {"picture": chosen[item.picture]}
            one |= {} if first is None else {"first": first}
            one |= {} if examples is None else {"shots": [example.id for example in examples.by_question[document.id]]}
            records.append(one | {"output": if_unknown if done else next(outputs)})
        return records

    return job.in_batches(name, items, settings.text.batch_size, answer_batch)

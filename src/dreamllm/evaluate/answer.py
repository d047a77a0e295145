"""Answers in words about pictures (for `predict.py`): captions, questions in one or two passes, few-shot examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamllm.config.benchmarks import BenchmarkUse
from dreamllm.config.evaluation import EvaluationSettings
from dreamllm.data.document import Document
from dreamllm.evaluate import benchmarks, prompts, shots

if TYPE_CHECKING:
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor

UNANSWERABLE = "unanswerable"  # VizWiz's own word
Examples = Mapping[str, Sequence[benchmarks.VqaItem]]  # by id of the question


def answer(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    use: BenchmarkUse,
    items: Sequence[Any],
    shown: benchmarks.Pictures,
    settings: EvaluationSettings,
    examples: Examples | None = None,
    shown_examples: benchmarks.Pictures | None = None,
) -> list[dict[str, Any]]:
    """A record with the model's words for each item.

    Where the wording asks first whether a question can be answered, `first` is the reply: after a no VizWiz gets
    "unanswerable" without being asked again, and MMBench is asked with its options.
    """
    from tqdm import tqdm

    from dreamllm.model import generate

    wording = prompts.wording_of(use.task, use.source, settings.prompts)
    options = {"max_new_tokens": settings.text.max_new_tokens, "num_beams": settings.text.num_beams}

    def write(documents: list[Document]) -> list[str]:
        return generate.write(model, processor, documents, **options) if documents else []

    def question_of(item: Any, with_options: bool) -> str:
        if use.task == "mmbench":
            return prompts.exam_question(item, settings.prompts, with_options=with_options)
        return getattr(item, "question", "")

    records = []
    size = settings.text.batch_size
    for start in tqdm(range(0, len(items), size), desc=use.task, unit="batch", mininterval=5):
        batch = items[start : start + size]
        pictures = [shown.read(item.picture) for item in batch]
        firsts: list[str | None] = [None] * len(batch)
        if wording.first:
            asked = [
                prompts.whether_known(item.id, picture, question_of(item, False), wording, settings.prompts)
                for item, picture in zip(batch, pictures, strict=True)
            ]
            firsts = list(write(asked))
        unknown = [first is not None and prompts.says_unknown(first, use.task, settings.prompts) for first in firsts]
        documents = []
        for item, picture, is_unknown in zip(batch, pictures, unknown, strict=True):
            question = question_of(item, is_unknown or not wording.first)
            before = [
                (shown_examples.read(example.picture), example.question, shots.answer_of(example))  # type: ignore[union-attr]
                for example in (examples or {}).get(item.id, ())
            ]
            documents.append(prompts.about_picture(item.id, picture, question, wording, settings.prompts, before))
        given_up = [is_unknown and use.task == "vqa" for is_unknown in unknown]
        outputs = iter(write([document for document, done in zip(documents, given_up, strict=True) if not done]))
        for document, first, done in zip(documents, firsts, given_up, strict=True):
            record = {"id": document.id, "prompt": prompts.shown(document), "seed": settings.seed}
            record |= {} if first is None else {"first": first}
            record |= {"shots": [example.id for example in examples[document.id]]} if examples else {}
            records.append(record | {"output": UNANSWERABLE if done else next(outputs)})
    return records


def answer_with_examples(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    use: BenchmarkUse,
    items: Sequence[benchmarks.VqaItem],
    shown: benchmarks.Pictures,
    settings: EvaluationSettings,
    folder: Path,
    split: str,
    clip: Path,
) -> list[dict[str, Any]]:
    """Every question with each number of worked examples, which are from the benchmark files of `folder`.

    Raises BenchmarkProblem when there are too few examples, PromptProblem or LayoutProblem when so many pictures do
    not fit the context of the model.
    """
    pool, shown_pool = benchmarks.load("vqa", folder, split), benchmarks.pictures(folder, split)
    shots.check_pool(pool, max(use.shots), folder)
    alike = shots.similarities(items, shown, pool, shown_pool, clip) if use.shots_by == "similarity" else None
    records = []
    for number in use.shots:
        if alike is None:
            chosen = shots.at_random(items, pool, number, settings.seed)
        else:
            chosen = shots.by_similarity(items, pool, number, alike)
        examples = {item.id: row for item, row in zip(items, chosen, strict=True)}
        for record in answer(model, processor, use, items, shown, settings, examples, shown_pool):
            records.append(record | {"id": shots.item_id(number, record["id"])})
    return records

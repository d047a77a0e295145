"""Language alone: PIQA and BoolQ, by the log-likelihood of each option after the question.

piqa_SPLIT.jsonl        {"goal", "sol1", "sol2"}, with piqa_SPLIT-labels.lst: 0 or 1 per line
boolq_SPLIT.jsonl       {"passage", "question", "answer": true or false}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.data.document import Document, Text
from dreamllm.evaluate import prompts, tasks
from dreamllm.evaluate.files import BenchmarkProblem, field, read_jsonl, read_text
from dreamllm.evaluate.groups import by_group
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.tasks import Task

TASK = Task(
    files=("piqa_{split}.jsonl", "piqa_{split}-labels.lst", "boolq_{split}.jsonl"),
    in_public_sets=False,  # the public sets are taken by lm-evaluation-harness (harness.py)
    foundations=("llm",),
)


@dataclass(frozen=True)
class ChoiceItem:
    """A language-only question: fields as in its set, the options to compare, the index of the right one."""

    id: str
    task: str
    fields: dict[str, str]
    options: tuple[str, ...]
    answer: int

    @property
    def groups(self) -> list[str]:
        """Groups under which the item is reported."""
        return [self.task]


def read(folder: Path, split: str) -> list[list[ChoiceItem]]:
    """Both sets."""
    piqa, labels, boolq = tasks.files("language", folder, split)
    return [read_piqa(piqa, labels), read_boolq(boolq)]


def read_piqa(path: Path, labels_path: Path) -> list[ChoiceItem]:
    """PIQA: goals with two solutions, and a file with 0 or 1 per line."""
    records = read_jsonl(path)
    labels = read_text(labels_path).split()
    if len(labels) != len(records):
        raise BenchmarkProblem(labels_path, "", f"has {len(labels)} labels for the {len(records)} questions of {path}")
    items = []
    for number, ((place, record), label) in enumerate(zip(records, labels, strict=True)):
        if label not in ("0", "1"):
            raise BenchmarkProblem(labels_path, f"label {number + 1}", f"{label!r} is neither 0 nor 1")
        options = field(record, "sol1", str, path, place), field(record, "sol2", str, path, place)
        if not all(option.strip() for option in options):
            raise BenchmarkProblem(path, place, "an empty solution has no likelihood")
        goal = field(record, "goal", str, path, place)
        items.append(ChoiceItem(f"piqa-{number}", "piqa", {"goal": goal}, options, int(label)))
    return items


def read_boolq(path: Path) -> list[ChoiceItem]:
    """BoolQ: a passage, a question, true or false. The options are No and Yes (official code)."""
    items = []
    for number, (place, record) in enumerate(read_jsonl(path)):
        fields = {name: field(record, name, str, path, place) for name in ("passage", "question")}
        answer = field(record, "answer", bool, path, place)
        items.append(ChoiceItem(f"boolq-{number}", "boolq", fields, ("No", "Yes"), int(answer)))
    return items


def choices(item: ChoiceItem, wording: prompts.PromptSet) -> tuple[Document, list[Document]]:
    """A question, and the same with each of its options as the answer. Raises KeyError for a set without a prompt."""
    if wording != "emoji":
        question = {
            "piqa": "Question: {goal}\nAnswer:",
            "boolq": "Choose yes or no to answer the question.\n\n{passage}\n\n{question}?\nAnswer:",
        }[item.task].format(**item.fields)
        options = [prompts.plain_text(item.id, f"{question} {option}") for option in item.options]
        return prompts.plain_text(item.id, question), options
    question = {"piqa": "{goal} describe the picture.", "boolq": "{passage} {question}?"}[item.task].format(
        **item.fields
    )
    asked = Text(question, "user")
    answers = [Text(option if item.task == "piqa" else option.lower(), "assistant") for option in item.options]
    return Document(item.id, "conversation", (asked,)), [
        Document(item.id, "conversation", (asked, answer)) for answer in answers
    ]


def predict(job: PredictionJob, items: Sequence[ChoiceItem], header: dict[str, Any]) -> None:
    """Write the log-likelihood of each option after its question, by the language model alone or inside a DreamLLM."""
    from dreamllm.evaluate.likelihoods import choose, language_model

    if job.model == "llm":
        model, vocabulary, context = language_model(job)
    else:
        whole, processor = job.load()
        model, vocabulary, context = whole.language_model, processor.vocabulary, processor.context
    job.write(header, choose(job, model, vocabulary, context, items, choices))


def score(job: ScoringJob, items: Sequence[ChoiceItem], predictions: Predictions) -> dict[str, Any]:
    """Multiple-choice accuracy over all questions and for each set."""
    from dreamllm.evaluate.metrics.intervals import mean_share
    from dreamllm.evaluate.metrics.multiple_choice import RULES, choose

    right = []
    for item in items:
        values = predictions.get(item.id, "loglikelihoods", list)
        try:
            right.append(choose(values, item.options, RULES[item.task]) == item.answer)
        except (TypeError, ValueError) as error:
            raise BenchmarkProblem(predictions.path, f"item {item.id}", str(error)) from None
    result = by_group(lambda chosen: {"accuracy": mean_share([right[i] for i in chosen])}, items)
    return result | {"items": {"accuracy": right}}

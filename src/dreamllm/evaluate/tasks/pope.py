"""POPE: does the model claim to see objects that are not there? One file per way of choosing the absent objects.

pope_SUBSET_SPLIT.jsonl     {"question_id", "image", "text", "label"}, label yes or no
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.evaluate import tasks
from dreamllm.evaluate.answering import answer
from dreamllm.evaluate.files import BenchmarkProblem, field, keyed, pictures_of, read_jsonl
from dreamllm.evaluate.groups import Metrics, by_group
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.prompts import Wording
from dreamllm.evaluate.tasks import Task

SUBSETS = ("random", "popular", "adversarial")

TASK = Task(
    files=tuple(f"pope_{subset}_{{split}}.jsonl" for subset in SUBSETS),
    keys=("picture", "wording"),
    wording={
        "": Wording(
            system="Based on the image, please objectively and accurately indicate whether the object exists.",
            answer="The answer is:",
        )
    },
)


@dataclass(frozen=True)
class PopeItem:
    """A question for an object's presence; label is yes or no."""

    id: str
    subset: str
    picture: str
    question: str
    label: str

    @property
    def groups(self) -> list[str]:
        """Groups under which the item is reported."""
        return [self.subset]


def read(folder: Path, split: str) -> list[list[PopeItem]]:
    """The three files. Ids get the subset in front: the files count from the same number."""
    shown = pictures_of(folder, split)
    paths = tasks.files("pope", folder, split)
    return [_read_subset(path, subset, shown) for path, subset in zip(paths, SUBSETS, strict=True)]


def _read_subset(path: Path, subset: str, shown: Any) -> list[PopeItem]:
    items = []
    for place, record in read_jsonl(path):
        id_ = f"{subset}-{field(record, 'question_id', (int, str), path, place)}"
        name = shown.check(field(record, "image", str, path, place), path, place)
        question, label = field(record, "text", str, path, place), field(record, "label", str, path, place)
        if label not in ("yes", "no"):
            raise BenchmarkProblem(path, place, f"label {label!r} is neither yes nor no")
        items.append((id_, PopeItem(id_, subset, name, question, label)))
    return list(keyed(items, path, "question").values())


def predict(job: PredictionJob, items: Sequence[PopeItem], header: dict[str, Any]) -> None:
    """Write an answer to each question."""
    job.write(header, answer(job, *job.load(), items))


def score(job: ScoringJob, items: Sequence[PopeItem], predictions: Predictions) -> dict[str, Any]:
    """POPE's five numbers over all questions and for each way of choosing the absent objects."""
    from dreamllm.evaluate.metrics import yes_no

    outputs = [predictions.get(item.id, "output", str) for item in items]

    def measure(chosen: Sequence[int]) -> Metrics:
        return yes_no.score([outputs[i] for i in chosen], [items[i].label for i in chosen])

    right = [yes_no.says_yes(output) == (item.label == "yes") for output, item in zip(outputs, items, strict=True)]
    return by_group(measure, items) | {"items": {"accuracy": right}}

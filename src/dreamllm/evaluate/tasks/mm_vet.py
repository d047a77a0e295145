"""MM-Vet (arXiv 2308.02490): free answers, judged by a language model with numbers from 0 to 1, by six capabilities.

mm_vet_SPLIT.json     {"v1_0": {"imagename", "question", "answer", "capability": [...]}}
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamllm.evaluate.answering import answer
from dreamllm.evaluate.files import BenchmarkProblem, field, pictures_of, read_json
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.prompts import Wording
from dreamllm.evaluate.tasks import Task

NO_JUDGE = "no judge: answer_judge.endpoint is not set"
CAPABILITIES = {  # as in the file: as in the tables
    "rec": "recognition",
    "ocr": "ocr",
    "know": "knowledge",
    "gen": "generation",
    "spat": "spatial",
    "math": "math",
}

TASK = Task(
    files=("mm_vet_{split}.json",),
    in_world=False,
    keys=("wording",),
    judged=True,
    wording={
        "": Wording(
            system="This is an exam, please answer according to the image and question.",
            instruction="Please provide an accurate, detailed and comprehensive answer.",
        )
    },
)


@dataclass(frozen=True)
class MmVetItem:
    """A question that wants a free answer; answer: the reference of `answer_judge`, with <AND> and <OR>."""

    id: str
    picture: str
    question: str
    answer: str
    capabilities: tuple[str, ...]


def read(folder: Path, split: str) -> list[list[MmVetItem]]:
    """The questions in the order of the file. Raises BenchmarkProblem for a capability that is none of the six."""
    path, shown = folder / f"mm_vet_{split}.json", pictures_of(folder, split)
    items = []
    content = read_json(path)
    for id_ in content:
        record = field(content, id_, dict, path, "")
        place = f"question {id_}"
        capabilities = tuple(field(record, "capability", list, path, place))
        if not capabilities or not all(name in [*CAPABILITIES] for name in capabilities):
            what = f"capability {list(capabilities)} should be some of {', '.join(CAPABILITIES)}"
            raise BenchmarkProblem(path, place, what)
        name = shown.check(field(record, "imagename", str, path, place), path, place)
        question, answer = field(record, "question", str, path, place), field(record, "answer", str, path, place)
        items.append(MmVetItem(id_, name, question, answer, capabilities))
    return [items]


def predict(job: PredictionJob, items: Sequence[MmVetItem], header: dict[str, Any]) -> None:
    """Write an answer to each question."""
    job.write(header, answer(job, *job.load(), items))


def score(job: ScoringJob, items: Sequence[MmVetItem], predictions: Predictions) -> dict[str, Any]:
    """Mean score over the answers and over the judgings, in all and by capability, with the deviation of the judgings.

    Metrics are undefined, with the reason, without an `answer_judge` and when it gives no number for some answer.
    """
    from dreamllm.evaluate.metrics.intervals import mean_share, undefined
    from dreamllm.evaluate.metrics.mm_vet_judge import judge

    outputs = [predictions.get(item.id, "output", str) for item in items]
    members = {"total": list(range(len(items)))}
    for short, name in CAPABILITIES.items():
        members[name] = [place for place, item in enumerate(items) if short in item.capabilities]
    if (chat := job.chat) is None:
        return {"metrics": dict.fromkeys(members, undefined(NO_JUDGE)), "groups": {}}
    requests = [(place, judging) for judging in range(job.judgings) for place in range(len(items))]
    with ThreadPoolExecutor(chat.settings.parallel) as threads:
        judged = list(
            threads.map(
                lambda place, judging: judge(chat, items[place], outputs[place], judging), *zip(*requests, strict=True)
            )
        )
    unread = [items[place].id for (place, _), score in zip(requests, judged, strict=True) if score is None]
    if unread:
        reason = f"the judge gave no number in {len(unread)} of {len(judged)} judgings, first for {unread[0]}"
        return {"metrics": dict.fromkeys(members, undefined(reason)), "groups": {}}
    scores = np.array(judged, dtype=np.float64).reshape(job.judgings, len(items))

    def measured(places: list[int]) -> dict[str, Any]:
        if not places:
            return undefined("no question wants this capability")
        means = scores[:, places].mean(axis=1)
        spread = {"std": float(means.std()), "judgings": means.tolist()}
        return mean_share(scores[:, places].mean(axis=0).tolist()) | spread

    return {"metrics": {name: measured(places) for name, places in members.items()}, "groups": {}}

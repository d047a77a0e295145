"""Scores of MMBench and MM-Vet (for `score.py`), whose free answers are read by rules or by a language model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dreamllm.evaluate import mm_vet, mmbench
from dreamllm.evaluate.groups import Metrics, by_group
from dreamllm.evaluate.intervals import mean_share, undefined
from dreamllm.evaluate.predictions import Predictions
from dreamllm.sources.services.chat import Chat

EXTERNAL = "external: a server has the answers, submit the file in results/submissions"
NO_JUDGE = "no judge: answer_judge.endpoint is not set"
TRIES = 3  # as in VLMEvalKit, which then guesses; here the answer is wrong then


def score_mmbench(items: Sequence[mmbench.MmbenchItem], predictions: Predictions, chat: Chat | None) -> dict[str, Any]:
    """Circular accuracy over questions, by category and by the six abilities, and plain accuracy over all rotations.

    unread: share of the answers that neither the rules nor the judge could read, or that were not shown to the judge
    because another rotation of the question is wrong anyway. All of them count as wrong.
    """
    if not all(item.answer for item in items):
        return {"metrics": dict.fromkeys(("accuracy", "accuracy_plain"), undefined(EXTERNAL)), "groups": {}}
    outputs = [predictions.get(item.id, "output", str) for item in items]
    letters = [mmbench.read_answer(output, item.options) for item, output in zip(items, outputs, strict=True)]
    if chat:
        lost = {
            item.question_id
            for item, letter in zip(items, letters, strict=True)
            if letter is not None and letter != item.answer
        }
        asked = [place for place, item in enumerate(items) if letters[place] is None and item.question_id not in lost]
        with ThreadPoolExecutor(chat.settings.parallel) as threads:
            judged = threads.map(lambda place: _judged_letter(chat, items[place], outputs[place]), asked)
            for place, letter in zip(asked, judged, strict=True):
                letters[place] = letter
    right = mmbench.circular(items, letters)
    rotations: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        rotations.setdefault(item.question_id, []).append(place)
    questions = list(rotations)

    def measure(chosen: Sequence[int]) -> Metrics:
        places = [place for number in chosen for place in rotations[questions[number]]]
        return {
            "accuracy": mean_share([right[questions[number]] for number in chosen]),
            "accuracy_plain": mean_share([letters[place] == items[place].answer for place in places]),
            "unread": mean_share([letters[place] is None for place in places]),
        }

    first = [items[places[0]] for places in rotations.values()]
    abilities = [mmbench.ABILITIES.get(item.ability, item.ability) for item in first]
    return by_group(measure, [[item.category, *filter(None, [a])] for item, a in zip(first, abilities, strict=True)])


def _judged_letter(chat: Chat, item: mmbench.MmbenchItem, output: str) -> str | None:
    prompt = mmbench.judge_prompt(item, output)
    for number in range(TRIES):
        letter = mmbench.read_answer(chat.ask([{"role": "user", "content": prompt}], repeat=number), item.options)
        if letter is not None:
            return letter
    return None


def score_mm_vet(
    items: Sequence[mm_vet.MmVetItem], predictions: Predictions, chat: Chat | None, judgings: int
) -> dict[str, Any]:
    """Mean score over the answers and over the judgings, in all and by capability, with the deviation of the judgings.

    Without a judge, and when the judge does not give a number for every answer, the cells say so and are empty.
    """
    outputs = [predictions.get(item.id, "output", str) for item in items]
    members = {"total": list(range(len(items)))}
    for short, name in mm_vet.CAPABILITIES.items():
        members[name] = [place for place, item in enumerate(items) if short in item.capabilities]
    if chat is None:
        return {"metrics": dict.fromkeys(members, undefined(NO_JUDGE)), "groups": {}}
    wanted = [(place, judging) for judging in range(judgings) for place in range(len(items))]
    with ThreadPoolExecutor(chat.settings.parallel) as threads:
        judged = list(threads.map(lambda w: mm_vet.judge(chat, items[w[0]], outputs[w[0]], w[1]), wanted))
    unread = [items[place].id for (place, _), score in zip(wanted, judged, strict=True) if score is None]
    if unread:
        reason = f"the judge gave no number in {len(unread)} of {len(judged)} judgings, first for {unread[0]}"
        return {"metrics": dict.fromkeys(members, undefined(reason)), "groups": {}}
    scores = np.array(judged, dtype=np.float64).reshape(judgings, len(items))

    def measured(places: list[int]) -> dict[str, Any]:
        if not places:
            return undefined("no question wants this capability")
        means = scores[:, places].mean(axis=1)
        spread = {"std": float(means.std()), "judgings": means.tolist()}
        return mean_share(scores[:, places].mean(axis=0).tolist()) | spread

    return {"metrics": {name: measured(places) for name, places in members.items()}, "groups": {}}

"""Scores of single items: `dreamllm item-scores`.

Two models that answered the same items are compared item by item: what makes an item hard for both does not widen the
interval of their difference. Their metrics hold no single scores, so these are written beside them, from the same
predictions by the same functions. Covers the tasks whose metric is a mean over items: captions, vqa, pope, language.

    results/items/NAME/MODEL/BENCHMARK.json     {"model", "benchmark", "split", "items": {metric: {id: score}},
                                                 "groups": {group: [id, ...]}}
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_folder
from dreamllm.emoji.grammar import parse_caption
from dreamllm.emoji.scenes import Scene
from dreamllm.evaluate import attributes, benchmarks, captions, choice, pope, vqa
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.predictions import Predictions, check_complete, read

TASKS = ("captions", "vqa", "pope", "language")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm item-scores`."""
    parser.add_argument("--predictions", nargs="*", default=[], type=Path, help="files written by `dreamllm predict`")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; an old one is replaced")


def main(args: argparse.Namespace) -> None:
    """Write MODEL/BENCHMARK.json for every prediction file into a folder, whole or not at all."""
    with new_folder(args.out) as folder:
        for path in args.predictions:
            predictions = read(path)
            header = predictions.header
            content = {name: header[name] for name in ("model", "benchmark", "split")}
            content |= score_items(predictions, args.benchmarks)
            file = folder / header["model"] / f"{header['benchmark']}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def score_items(predictions: Predictions, folder: Path) -> dict[str, Any]:
    """Scores by metric and item, and the items of each group. Their means are the metrics of `dreamllm score`.

    Raises BenchmarkProblem for a task without such scores, and when predictions are not exactly one per item.
    """
    benchmark = predictions.header["benchmark"]
    if benchmark not in TASKS:
        raise BenchmarkProblem(predictions.path, "header", f"{benchmark} has no score of a single item")
    items = benchmarks.load(benchmark, folder, predictions.header["split"], predictions.header.get("limit"))
    check_complete(predictions, [item.id for item in items])
    scores = {"captions": _captions, "vqa": _vqa, "pope": _pope, "language": _language}[benchmark](items, predictions)
    groups: dict[str, list[str]] = {}
    for item in items:
        for group in _groups(item):
            groups.setdefault(group, []).append(item.id)
    ids = [item.id for item in items]
    by_id = {metric: dict(zip(ids, map(float, of_items), strict=True)) for metric, of_items in scores.items()}
    return {"items": by_id, "groups": groups}


def _captions(items: list[benchmarks.CaptionItem], predictions: Predictions) -> dict[str, list[float]]:
    texts = {item.id: predictions.get(item.id, "output", str) for item in items}
    ciders = captions.cider(texts, {item.id: item.references for item in items})
    scores = {"cider": [ciders[item.id] for item in items]}
    if all(item.scene for item in items):
        wanted = [Scene.from_json(item.scene.scene) for item in items]  # type: ignore[union-attr]
        scores["exact"] = attributes.compare_each([parse_caption(texts[item.id]) for item in items], wanted)["all"]
    return scores


def _vqa(items: list[benchmarks.VqaItem], predictions: Predictions) -> dict[str, list[float]]:
    outputs = [vqa.clip(predictions.get(item.id, "output", str)) for item in items]
    pairs = zip(outputs, items, strict=True)
    return {"accuracy": [vqa.accuracy(output, item.answers, "official") for output, item in pairs]}


def _pope(items: list[benchmarks.PopeItem], predictions: Predictions) -> dict[str, list[float]]:
    said = [pope.says_yes(predictions.get(item.id, "output", str)) for item in items]
    return {"accuracy": [yes == (item.label == "yes") for yes, item in zip(said, items, strict=True)]}


def _language(items: list[benchmarks.ChoiceItem], predictions: Predictions) -> dict[str, list[float]]:
    chosen = [
        choice.choose(predictions.get(item.id, "loglikelihoods", list), item.options, choice.RULES[item.task])
        for item in items
    ]
    return {"accuracy": [index == item.answer for index, item in zip(chosen, items, strict=True)]}


def _groups(item: Any) -> list[str]:
    """Names of the groups of an item, as in the metrics."""
    named = {benchmarks.PopeItem: "subset", benchmarks.ChoiceItem: "task"}
    if type(item) in named:
        return [getattr(item, named[type(item)])]
    of_type = [f"type/{item.question_type}"] if getattr(item, "question_type", "") else []
    return of_type + (item.scene.groups if item.scene else [])

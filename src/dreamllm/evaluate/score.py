"""Compute metrics from predictions: `dreamllm score`.

Reads a prediction file and the files of its benchmark (`tasks/`). The evaluated model does not run; the scene
classifier and CLIP measure generated images. Shares are fractions of 1, CIDEr is in pycocoevalcap's unit, all numbers
have n and a 95 % interval.

    results/metrics/NAME/MODEL/BENCHMARK.json   {"model", "benchmark", "split", "metrics", "groups", "protocol"}
    results/items/NAME/MODEL/BENCHMARK.json     {"model", "benchmark", "split", "items": {metric: {id: score}},
                                                 "groups": {group: [id, ...]}}; image k of a story has the id STORY-k

The second file has the scores of single items for metrics that are means of them. With it, two models that answered the
same items are compared item by item, and an item that is hard for both does not widen the interval of the difference.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_file
from dreamllm.config.benchmarks import AnswerJudge
from dreamllm.config.pictures import Detection
from dreamllm.config.reading import load
from dreamllm.digests import digest, sha256_of_file
from dreamllm.evaluate import few_shot, tasks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.job import ScoringJob
from dreamllm.evaluate.predictions import Predictions, check_complete, read
from dreamllm.output_paths import file_to_write
from dreamllm.sources.services.chat import Chat

LIBRARIES = ("numpy", "pillow", "torch", "transformers", "pycocoevalcap", "clean-fid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm score`."""
    parser.add_argument("--benchmark", required=True, help="name of the benchmark that the predictions are for")
    parser.add_argument("--predictions", required=True, type=Path, help="file written by `dreamllm predict`")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--foundations", required=True, type=Path, help="folder with judge/ and clip/, for images")
    parser.add_argument(
        "--config", type=Path, help="experiment whose `answer_judge` (with --judgements) and detector are used"
    )
    parser.add_argument("--judgements", type=Path, help="folder that keeps the replies of `answer_judge`")
    parser.add_argument("--out", required=True, type=file_to_write, help="metrics file to write (JSON)")
    parser.add_argument("--items", type=file_to_write, help="file to write with the scores of single items (JSON)")


def main(args: argparse.Namespace) -> None:
    """Score one prediction file, write its metrics and the scores of its items."""
    experiment = load(args.config) if args.config else None
    judge = experiment.answer_judge if experiment and args.judgements else AnswerJudge()
    detection = experiment.evaluation.detection if experiment else None
    chat = Chat(judge, args.judgements, os.environ.get("OPENAI_API_KEY", "")) if judge.endpoint else None
    predictions = read(args.predictions)
    metrics, items = score_items(
        predictions,
        args.benchmark,
        args.benchmarks,
        args.foundations,
        chat=chat,
        judgings=judge.judgings,
        detection=detection,
    )
    if args.items:
        with new_file(args.items) as file:
            file.write_text(json.dumps(items, allow_nan=False) + "\n", encoding="utf-8")
    with new_file(args.out) as file:
        file.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def score(predictions: Predictions, benchmark: str, folder: Path, foundations: Path, **judging: Any) -> dict[str, Any]:
    """All metrics of a prediction file, ready for JSON; arguments and errors as of `score_items`."""
    return score_items(predictions, benchmark, folder, foundations, **judging)[0]


def score_items(
    predictions: Predictions,
    benchmark: str,
    folder: Path,
    foundations: Path,
    *,
    chat: Chat | None = None,
    judgings: int = 1,
    detection: Detection | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All metrics of a prediction file, and the scores of its items, both ready for JSON.

    chat: the language model that scores answers to MMBench and MM-Vet (these `judgings` times)
    detection: what finds the objects of GenEval's prompts in generated images
    Raises BenchmarkProblem when the predictions are for another benchmark, or not exactly one per item.
    """
    header = predictions.header
    if header["benchmark"] != benchmark:
        raise BenchmarkProblem(predictions.path, "header", f"is for {header['benchmark']!r}, not for {benchmark!r}")
    name = header.get("task", benchmark)
    task = tasks.module(name)
    items = tasks.load(name, folder, header["split"], header.get("limit"))
    if "shots" in header:  # every question was asked with several numbers of examples
        items = [replace(item, id=few_shot.item_id(n, item.id)) for n in header["shots"] for item in items]
    if task.TASK.files:
        check_complete(predictions, [item.id for item in items])
    job = ScoringJob(header, folder, foundations, chat, judgings, detection)
    result = task.score(job, items, predictions)
    scores = {
        metric: {id_: float(one) for id_, one in _with_ids(of_items, items)}
        for metric, of_items in result.pop("items", {}).items()
    }
    groups: dict[str, list[str]] = {}
    for item in items if scores else []:
        for group in getattr(item, "groups", []):
            groups.setdefault(group, []).append(item.id)
    inputs = {file.name: sha256_of_file(file) for file in tasks.files(name, folder, header["split"])}
    protocol = header.get("protocol", {}) | {
        "n": len(items) if task.TASK.files else len(predictions.records),
        "limit": header.get("limit"),
        "scorer": {library: version(library) for library in LIBRARIES},
        "inputs": {predictions.path.name: sha256_of_file(predictions.path)} | inputs,
    }
    protocol |= result.pop("protocol", {})
    if task.TASK.instruments and not job.public:  # those of public sets are measured apart
        protocol["instruments"] = {part: digest(foundations / part) for part in task.TASK.instruments}
    if chat:
        asked = {"models": sorted(chat.models), "options": [json.loads(options) for options in sorted(chat.sent)]}
        protocol["judge"] = asked | {"judgings": judgings, "cost": chat.cost()}
    about = {"model": header["model"], "benchmark": benchmark, "split": header["split"]}
    return {**about, **result, "protocol": protocol}, {**about, "items": scores, "groups": groups}


def _with_ids(scores: Sequence[float] | Mapping[str, float], items: Sequence[Any]) -> Iterable[tuple[str, float]]:
    """Scores with their ids: a benchmark gives one for each item, or names the parts of items that it scores."""
    if isinstance(scores, Mapping):
        return scores.items()
    return zip((item.id for item in items), scores, strict=True)

"""Scores of single items: their means are the metrics."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from dreamllm.config.world import World
from dreamllm.emoji.world import write_benchmarks
from dreamllm.evaluate import benchmarks, items, predictions, score
from dreamllm.evaluate.files import BenchmarkProblem

COUNTS = {"pictures": 6, "draw": 2, "stories": 2, "language": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world."""
    folder = tmp_path_factory.mktemp("world")
    write_benchmarks(World(picture_side=48, benchmarks=COUNTS), "test", folder)
    return folder


def answered(folder: Path, benchmark: str, path: Path) -> Path:
    """Predictions of which some are right."""
    records = []
    for number, item in enumerate(benchmarks.load(benchmark, folder, "test")):
        if benchmark == "language":
            said = {"loglikelihoods": [-float(number % 3), -1.0]}
        elif benchmark == "captions":
            said = {"output": item.references[0] if number % 2 else "a red cat on grass"}
        else:
            said = {"output": "yes" if number % 2 else "red"}
        records.append({"id": item.id, **said})
    predictions.write(path, {"model": "sft", "benchmark": benchmark, "split": "test"}, records)
    return path


@pytest.mark.parametrize("benchmark", items.TASKS)
def test_their_means_are_the_metrics_in_every_group(benchmark: str, folder: Path, tmp_path: Path) -> None:
    path = answered(folder, benchmark, tmp_path / f"{benchmark}.jsonl")
    items.main(argparse.Namespace(predictions=[path], benchmarks=folder, out=tmp_path / "items"))
    content = json.loads((tmp_path / "items" / "sft" / f"{benchmark}.json").read_text())
    metrics = score.score(predictions.read(path), benchmark, folder, tmp_path)
    assert content["groups"].keys() == metrics["groups"].keys()
    for metric, scores in content["items"].items():
        for group, measured in {"": metrics["metrics"], **metrics["groups"]}.items():
            chosen = content["groups"][group] if group else list(scores)
            mean = sum(scores[id_] for id_ in chosen) / len(chosen)
            assert mean == pytest.approx(measured[metric]["value"], abs=1e-12), (metric, group)


def test_a_missing_prediction_is_an_error(folder: Path, tmp_path: Path) -> None:
    whole = predictions.read(answered(folder, "vqa", tmp_path / "vqa.jsonl"))
    predictions.write(tmp_path / "less.jsonl", whole.header, list(whole.records.values())[1:])
    with pytest.raises(BenchmarkProblem, match="items have no prediction"):
        items.score_items(predictions.read(tmp_path / "less.jsonl"), folder)


def test_pictures_have_no_such_scores(folder: Path, tmp_path: Path) -> None:
    predictions.write(tmp_path / "draw.tar", {"model": "sd", "benchmark": "draw", "split": "test"}, [], {})
    with pytest.raises(BenchmarkProblem, match="draw has no score of a single item"):
        items.score_items(predictions.read(tmp_path / "draw.tar"), folder)

"""Scores of single items: their means are the metrics."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreamllm.config.world import World
from dreamllm.emoji.foundations import scene_classifier
from dreamllm.emoji.scenes import ALL_NAMES, Scene
from dreamllm.emoji.world import write_benchmarks
from dreamllm.evaluate import predictions, score, tasks
from dreamllm.evaluate.files import BenchmarkProblem

COUNTS = {"pictures": 6, "draw": 2, "stories": 4, "language": 6, "in_context": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world."""
    folder = tmp_path_factory.mktemp("world")
    write_benchmarks(World(picture_side=48, benchmarks=COUNTS), "test", folder)
    return folder


def answered(folder: Path, benchmark: str, path: Path) -> Path:
    """Predictions of which some are right."""
    records = []
    for number, item in enumerate(tasks.load(benchmark, folder, "test")):
        if benchmark == "language":
            said = {"loglikelihoods": [-float(number % 3), -1.0]}
        elif benchmark == "captions":
            said = {"output": item.references[0] if number % 2 else "a red cat on grass"}
        else:
            said = {"output": "yes" if number % 2 else "red"}
        records.append({"id": item.id, **said})
    predictions.write(path, {"model": "sft", "benchmark": benchmark, "split": "test"}, records)
    return path


@pytest.mark.parametrize("benchmark", ["captions", "vqa", "pope", "language"])
def test_their_means_are_the_metrics_in_every_group(benchmark: str, folder: Path, tmp_path: Path) -> None:
    path = answered(folder, benchmark, tmp_path / f"{benchmark}.jsonl")
    check_means(*score.score_items(predictions.read(path), benchmark, folder, tmp_path))


def check_means(metrics: dict[str, Any], content: dict[str, Any]) -> None:
    """The means of the scores are the metrics, of all items and of those of each group."""
    assert content["items"] and content["groups"].keys() == metrics["groups"].keys()
    for metric, scores in content["items"].items():
        for group, measured in {"": metrics["metrics"], **metrics["groups"]}.items():
            chosen = content["groups"][group] if group else list(scores)
            mean = sum(scores[id_] for id_ in chosen) / len(chosen)
            assert mean == pytest.approx(measured[metric]["value"], abs=1e-12), (metric, group)


class Classifier:
    """A scene classifier that sees the same scene in every image."""

    names = ALL_NAMES

    def __init__(self, seen: dict[str, Any]) -> None:
        self.seen = Scene.from_json(seen)

    def predict(self, pictures: list[Image.Image], names: list[str] | None = None) -> list[Scene]:
        return [self.seen] * len(pictures)


@pytest.mark.parametrize("benchmark", ["in_context", "stories"])
def test_their_means_are_the_metrics_of_generated_images(
    benchmark: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of a story has a score of its own, by the story's id and its place in it."""
    items, image = tasks.load(benchmark, folder, "test"), {"image": "0.png"}
    records = [{"id": item.id, **image} for item in items]
    seen = items[0].scene.scene if benchmark == "in_context" else items[0].scenes[1]
    if benchmark == "stories":
        told = [[image, *(part for text in item.sentences[1:] for part in ({"text": text}, image))] for item in items]
        told[-1] += [{"text": "the end"}, image]  # cannot be followed, and is no sentence
        records = [{"id": i.id, "parts": parts, "stopped": "end"} for i, parts in zip(items, told, strict=True)]
    header = {"model": "sft", "benchmark": benchmark, "split": "test"}
    predictions.write(tmp_path / "p.tar", header, records, {"0.png": Image.new("RGB", (48, 48))})
    monkeypatch.setattr(scene_classifier, "load", lambda path: Classifier(seen))
    for part in ("judge", "judge2"):
        (tmp_path / part).mkdir()
    metrics, content = score.score_items(predictions.read(tmp_path / "p.tar"), benchmark, folder, tmp_path)
    check_means(metrics, content)
    assert 0 < metrics["metrics"]["all"]["value"] < 1
    if benchmark == "stories":
        assert [content["items"]["all"][f"{items[0].id}-{place}"] for place in (0, 1)] == [0, 1]
        assert list(content["items"]["placement"].values()) == [1, 1, 1, 0]


def test_a_missing_prediction_is_an_error(folder: Path, tmp_path: Path) -> None:
    whole = predictions.read(answered(folder, "vqa", tmp_path / "vqa.jsonl"))
    predictions.write(tmp_path / "less.jsonl", whole.header, list(whole.records.values())[1:])
    with pytest.raises(BenchmarkProblem, match="items have no prediction"):
        score.score_items(predictions.read(tmp_path / "less.jsonl"), "vqa", folder, tmp_path)


def test_a_benchmark_without_such_scores_has_an_empty_file(folder: Path, tmp_path: Path) -> None:
    times = [{"id": item.id, "seconds": {"1": 0.5}} for item in tasks.load("latency", folder, "test")]
    predictions.write(tmp_path / "latency.jsonl", {"model": "sd", "benchmark": "latency", "split": "test"}, times)
    flags = {"benchmark": "latency", "benchmarks": folder, "foundations": tmp_path, "config": None, "judgements": None}
    files = {"out": tmp_path / "metrics.json", "items": tmp_path / "items.json"}
    score.main(argparse.Namespace(predictions=tmp_path / "latency.jsonl", **flags, **files))
    written = json.loads(files["items"].read_text())
    assert written == {"model": "sd", "benchmark": "latency", "split": "test", "items": {}, "groups": {}}
    assert json.loads(files["out"].read_text())["groups"]["steps/1"]["seconds"]["value"] == 0.5

"""Benchmark `in_context`: pictures and a sentence, gone on with by a drawn picture (paper Figure 5).

    in_context_SPLIT.jsonl   {"id", "kind", "held_out", "shown": [file name, ...], "sentence", "picture", "scene"}
    in_context_SPLIT.zip     the pictures: those that are shown, and a real one of what is wanted

Kinds are edit, subject and compose (`emoji/contexts.py`). Stable Diffusion, which reads no pictures, draws the sentence
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamllm.data.document import Document, Picture, Text
from dreamllm.emoji.scenes import Scene
from dreamllm.evaluate import attributes
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, field, keyed, read_jsonl
from dreamllm.evaluate.groups import Metrics, SceneRecord, by_group
from dreamllm.evaluate.intervals import mean_share
from dreamllm.evaluate.predictions import Predictions

if TYPE_CHECKING:
    from dreamllm.emoji.foundations.scene_classifier import SceneClassifier


@dataclass(frozen=True)
class InContextItem:
    """What is shown and said, the real picture of what is wanted, and its scene.

    prompt: the sentence.  scene: its kind is that of the context
    """

    id: str
    shown: tuple[str, ...]
    prompt: str
    picture: str
    scene: SceneRecord


def context_pictures(folder: Path, split: str) -> Pictures:
    """The pictures of the benchmark."""
    return Pictures(folder / f"in_context_{split}.zip")


def read_in_context(path: Path, shown: Pictures) -> list[InContextItem]:
    """The items. Raises BenchmarkProblem for one that shows nothing or says nothing."""
    items = []
    for place, record in read_jsonl(path):
        id_ = str(field(record, "id", (int, str), path, place))
        names = field(record, "shown", list, path, place)
        sentence = field(record, "sentence", str, path, place)
        if not names or not sentence.strip():
            raise BenchmarkProblem(path, place, "needs a picture that is shown, and a sentence")
        names = tuple(shown.check(str(name), path, place) for name in names)
        picture = shown.check(field(record, "picture", str, path, place), path, place)
        kind, held_out = field(record, "kind", str, path, place), field(record, "held_out", bool, path, place)
        scene = SceneRecord(field(record, "scene", dict, path, place), kind, held_out)
        items.append((id_, InContextItem(id_, names, sentence, picture, scene)))
    return list(keyed(items, path, "id").values())


def document(item: InContextItem, shown: Pictures) -> Document:
    """The item as a document to be gone on with, in the form of training."""
    pictures = [Picture(shown.read(name)) for name in item.shown]
    return Document(item.id, "interleaved", (*pictures, Text(item.prompt)))


def score(
    items: Sequence[InContextItem], predictions: Predictions, shown: Pictures, judging: SceneClassifier
) -> dict[str, Any]:
    """What the judge sees of the wanted scenes, by kind. judge_on_real: what a perfect model could reach."""
    drawn = [predictions.image(predictions.get(item.id, "image", str), f"item {item.id}") for item in items]
    wanted = [Scene.from_json(item.scene.scene) for item in items]
    right = attributes.compare_each(judging.predict(drawn), wanted)
    real = attributes.compare_each(judging.predict([shown.read(item.picture) for item in items]), wanted)["all"]

    def measure(chosen: Sequence[int]) -> Metrics:
        metrics = {name: mean_share([right[name][i] for i in chosen]) for name in attributes.ATTRIBUTES}
        return metrics | {"judge_on_real": mean_share([real[i] for i in chosen])}

    return by_group(measure, [item.scene.groups for item in items])

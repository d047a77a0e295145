"""In context: images and a sentence, continued with a generated image (paper Figure 5).

    in_context_SPLIT.jsonl   {"id", "kind", "held_out", "shown": [file name, ...], "sentence", "picture", "scene"}
    in_context_SPLIT.zip     the images: those in the prompts, and the real image of each expected scene

Kinds are edit, subject and compose (`emoji/contexts.py`). Stable Diffusion, which reads no images, draws the sentence
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.data.document import Document, Picture, Text
from dreamllm.evaluate import drawing
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, field, keyed, read_jsonl
from dreamllm.evaluate.groups import Metrics, SceneRecord, by_group, checked_scene
from dreamllm.evaluate.image_predictions import write_images, write_sd_images
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.tasks import Task

TASK = Task(
    files=("in_context_{split}.jsonl",),
    predictions="tar",
    settings=("drawing",),
    in_public_sets=False,
    foundations=("sd", "sd_finetuned"),
    instruments=("judge", "judge2"),
)


@dataclass(frozen=True)
class InContextItem:
    """Images and a sentence, the real image of the expected result, and its scene.

    prompt: the sentence.  scene: its kind is that of the context
    """

    id: str
    shown: tuple[str, ...]
    prompt: str
    picture: str
    scene: SceneRecord

    @property
    def groups(self) -> list[str]:
        """Groups under which the item is reported."""
        return self.scene.groups


def context_pictures(folder: Path, split: str) -> Pictures:
    """The pictures of the benchmark."""
    return Pictures(folder / f"in_context_{split}.zip")


def read(folder: Path, split: str) -> list[list[InContextItem]]:
    """The items. Raises BenchmarkProblem for one that shows nothing or says nothing."""
    path, shown = folder / f"in_context_{split}.jsonl", context_pictures(folder, split)
    items = []
    for place, record in read_jsonl(path):
        id_ = str(field(record, "id", (int, str), path, place))
        names = field(record, "shown", list, path, place)
        sentence = field(record, "sentence", str, path, place)
        if not names or not sentence.strip():
            raise BenchmarkProblem(path, place, "needs a sentence and at least one picture in 'shown'")
        names = tuple(shown.check(str(name), path, place) for name in names)
        picture = shown.check(field(record, "picture", str, path, place), path, place)
        kind, held_out = field(record, "kind", str, path, place), field(record, "held_out", bool, path, place)
        scene = SceneRecord(checked_scene(field(record, "scene", dict, path, place), path, place), kind, held_out)
        items.append((id_, InContextItem(id_, names, sentence, picture, scene)))
    return [list(keyed(items, path, "id").values())]


def document(item: InContextItem, shown: Pictures) -> Document:
    """The item as a document to be continued, in the form of training."""
    pictures = [Picture(shown.read(name)) for name in item.shown]
    return Document(item.id, "interleaved", (*pictures, Text(item.prompt)))


def predict(job: PredictionJob, items: Sequence[InContextItem], header: dict[str, Any]) -> None:
    """Generate an image from each item's images and sentence."""
    if job.model in TASK.foundations:
        return write_sd_images(job, items, header)
    model, processor = job.load()
    settings = job.settings.drawing
    shown = context_pictures(job.folder, job.split)

    def prompt(request: drawing.DrawRequest) -> Document:
        return document(request.item, shown)

    write_images(job, items, header, lambda pending, _: drawing.draw(model, processor, pending, settings, prompt))


def score(job: ScoringJob, items: Sequence[InContextItem], predictions: Predictions) -> dict[str, Any]:
    """What the classifier sees of the wanted scenes, by kind. judge_on_real: what a perfect model could reach."""
    from dreamllm.emoji.scenes import Scene
    from dreamllm.evaluate.metrics.intervals import mean_share
    from dreamllm.evaluate.metrics.scene_attributes import compare_each

    shown = context_pictures(job.folder, job.header["split"])
    expected = [Scene.from_json(item.scene.scene) for item in items]
    classifier = job.scene_classifier(expected)
    drawn = [predictions.image(predictions.get(item.id, "image", str), f"item {item.id}") for item in items]
    right = compare_each(classifier.predict(drawn, [item.id for item in items]), expected)
    second = job.scene_classifier(expected, "judge2").predict(drawn, [item.id for item in items])
    right["all_judge2"] = compare_each(second, expected)["all"]  # by the second scene classifier
    real = compare_each(classifier.predict([shown.read(item.picture) for item in items]), expected)["all"]

    def measure(chosen: Sequence[int]) -> Metrics:
        metrics = {name: mean_share([of_image[i] for i in chosen]) for name, of_image in right.items()}
        return metrics | {"judge_on_real": mean_share([real[i] for i in chosen])}

    return by_group(measure, items) | {"items": right}

"""Captions: describe an image. COCO's file format, several references per image; CIDEr.

captions_SPLIT.json     {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.evaluate.answering import answer
from dreamllm.evaluate.files import BenchmarkProblem, field, keyed, pictures_of, read_json
from dreamllm.evaluate.groups import Metrics, SceneRecord, by_group, scenes_of
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.prompts import Wording
from dreamllm.evaluate.tasks import Task

TASK = Task(
    files=("captions_{split}.json",),
    keys=("wording",),
    wording={
        "": Wording(
            system="Based on the image, give the image caption briefly.",
            instruction="Please summarize object in one sentence within 10 words.",
            answer="The image depicts",
        ),
        "nocaps": Wording(instruction="Please summarize object briefly in one sentence within 5 words."),
        "image_paragraphs": Wording(
            system="Based on the image, please describe the image in detail.",
            instruction="Please describe the image in detail.",
            answer="The image depicts",
        ),
    },
)


@dataclass(frozen=True)
class CaptionItem:
    """An image to describe, with its reference captions."""

    id: str
    picture: str
    references: tuple[str, ...]
    scene: SceneRecord | None

    @property
    def groups(self) -> list[str]:
        """Groups under which the item is reported."""
        return self.scene.groups if self.scene else []


def read(folder: Path, split: str) -> list[list[CaptionItem]]:
    """Items in the order of "images", references in the order of "annotations"."""
    path, shown, scenes = folder / f"captions_{split}.json", pictures_of(folder, split), scenes_of(folder, split)
    content = read_json(path)
    references: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    for number, image in enumerate(field(content, "images", list, path, "")):
        place = f"images[{number}]"
        image_id = field(image, "id", int, path, place)
        if image_id in names:
            raise BenchmarkProblem(path, f"{place}, id {image_id}", "occurs twice")
        names[image_id] = shown.check(field(image, "file_name", str, path, place), path, place)
        references[image_id] = []
    annotation_ids = []
    for number, annotation in enumerate(field(content, "annotations", list, path, "")):
        place = f"annotations[{number}]"
        annotation_ids.append((str(field(annotation, "id", int, path, place)), annotation))
        image_id = field(annotation, "image_id", int, path, place)
        if image_id not in references:
            raise BenchmarkProblem(path, place, f'is about picture {image_id}, which is not among "images"')
        references[image_id].append(field(annotation, "caption", str, path, place))
    keyed(annotation_ids, path, "annotation")
    for image_id, captions in references.items():
        if not captions:
            raise BenchmarkProblem(path, f"picture {image_id}", "has no caption")
    return [
        [
            CaptionItem(str(id_), name, tuple(references[id_]), scenes.of(id_, name, str(id_)))
            for id_, name in names.items()
        ]
    ]


def predict(job: PredictionJob, items: Sequence[CaptionItem], header: dict[str, Any]) -> None:
    """Write a caption for each image."""
    job.write(header, answer(job, *job.load(), items))


def score(job: ScoringJob, items: Sequence[CaptionItem], predictions: Predictions) -> dict[str, Any]:
    """CIDEr, and where scenes are known, the attributes of the scene that captions state correctly."""
    from dreamllm.emoji.grammar import parse_caption
    from dreamllm.emoji.scenes import Scene
    from dreamllm.evaluate.metrics.cider import cider
    from dreamllm.evaluate.metrics.intervals import mean_bootstrap, mean_share
    from dreamllm.evaluate.metrics.scene_attributes import compare_each

    texts = {item.id: predictions.get(item.id, "output", str) for item in items}
    by_id = cider(texts, {item.id: item.references for item in items})
    ciders = [by_id[item.id] for item in items]
    found = [parse_caption(texts[item.id]) for item in items]

    def measure(chosen: Sequence[int]) -> Metrics:
        metrics = {"cider": mean_bootstrap([ciders[i] for i in chosen])}
        expected = [Scene.from_json(scene.scene) for i in chosen if (scene := items[i].scene)]
        if len(expected) == len(chosen):
            right = compare_each([found[i] for i in chosen], expected)
            metrics["exact"] = mean_share(right["all"])
            metrics |= {name: mean_share(right[name]) for name in ("object", "colour", "bind")}
            metrics["readable"] = mean_share([found[i] is not None for i in chosen])
        return metrics

    scores: dict[str, Sequence[float]] = {"cider": ciders}
    expected = [Scene.from_json(item.scene.scene) for item in items if item.scene]
    if len(expected) == len(items):
        scores["exact"] = compare_each(found, expected)["all"]
    return by_group(measure, items) | {"items": scores}

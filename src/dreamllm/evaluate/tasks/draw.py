"""Text-to-image: one image per prompt, compared with the real image that the prompt describes.

draw_SPLIT.jsonl     {"id", "prompt", "image_id"}; "captions", if there, are all captions of that image. A set without
                     images (images_SPLIT) has no "image_id" either
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.evaluate import drawing
from dreamllm.evaluate.files import BenchmarkProblem, field, keyed, pictures_of, read_jsonl
from dreamllm.evaluate.groups import Metrics, SceneRecord, by_group, scenes_of
from dreamllm.evaluate.image_predictions import write_images, write_sd_images
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.tasks import Task

NOT_COMPARED = "these prompts have no real images to compare with"
MEASURED_APART = "pictures of public sets are measured by evaluation.pictures (docs/pictures.md)"

TASK = Task(
    files=("draw_{split}.jsonl",),
    predictions="tar",
    settings=("drawing",),
    foundations=("sd", "sd_finetuned"),
    instruments=("judge", "judge2", "clip"),
    image_metrics=True,
)


@dataclass(frozen=True)
class DrawItem:
    """A prompt, and the real image that it describes ("" where the set has none)."""

    id: str
    prompt: str
    picture: str
    scene: SceneRecord | None
    captions: tuple[str, ...] = ()

    @property
    def groups(self) -> list[str]:
        """Groups under which the item is reported."""
        return self.scene.groups if self.scene else []


def read(folder: Path, split: str, file: str = TASK.files[0]) -> list[list[DrawItem]]:
    """The prompts. file: of the benchmark, for those that have the same form."""
    path, scenes = folder / file.format(split=split), scenes_of(folder, split)
    records = read_jsonl(path)
    compared = any("image_id" in record for _, record in records) or any(folder.glob(f"images_{split}*"))
    shown = pictures_of(folder, split) if compared else None
    items = []
    for place, record in records:
        id_ = str(field(record, "id", (int, str), path, place))
        image_id = field(record, "image_id", int, path, place) if shown else 0
        name = shown.name_of(image_id, path, place) if shown else ""
        prompt = field(record, "prompt", str, path, place)
        captions = tuple(field(record, "captions", list, path, place)) if "captions" in record else ()
        if not all(isinstance(caption, str) and caption.strip() for caption in (prompt, *captions)):
            raise BenchmarkProblem(path, place, "has an empty prompt or caption")
        items.append((id_, DrawItem(id_, prompt, name, scenes.of(image_id, name, id_), captions)))
    return [list(keyed(items, path, "id").values())]


def predict(job: PredictionJob, items: Sequence[DrawItem], header: dict[str, Any]) -> None:
    """Generate an image for each prompt; with `rewrite`, from the model's rewriting of it (paper Table 10)."""
    if job.model in TASK.foundations:
        return write_sd_images(job, items, header)
    model, processor = job.load()
    settings = job.settings.drawing
    if not any(one.rewrite for one in job.experiment.evaluations if one.model == job.model):
        return write_images(job, items, header, lambda pending, _: drawing.draw(model, processor, pending, settings))
    texts = drawing.rewrite(job, model, processor, items)
    header["protocol"]["rewritten"] = {"prompts": len(texts), "empty": sum(not text for text in texts)}
    write_sd_images(job, items, header, texts)


def score(job: ScoringJob, items: Sequence[Any], predictions: Predictions) -> dict[str, Any]:
    """FID over all images (none by kind: too few), and where scenes are known the classifier's attributes by kind.

    FID by the mini CLIP's features; that of public sets is `score_pictures.py`'s.
    """
    from dreamllm.emoji.scenes import Scene
    from dreamllm.evaluate import features, networks
    from dreamllm.evaluate.metrics import fid
    from dreamllm.evaluate.metrics.intervals import mean_share, undefined
    from dreamllm.evaluate.metrics.scene_attributes import compare_each

    if job.public:
        reason = MEASURED_APART if all(item.picture for item in items) else NOT_COMPARED
        return {"metrics": {"fid": undefined(reason)}, "groups": {}}
    places = [(predictions.get(item.id, "image", str), f"item {item.id}") for item in items]
    real = job.pictures
    result: dict[str, Any] = {"metrics": {}, "groups": {}}
    expected = [Scene.from_json(item.scene.scene) for item in items if getattr(item, "scene", None)]
    if len(expected) == len(items):
        classifier = job.scene_classifier(expected)
        shown = [predictions.image(*place) for place in places]
        right = compare_each(classifier.predict(shown, [item.id for item in items]), expected)
        second = job.scene_classifier(expected, "judge2").predict(shown, [item.id for item in items])
        right["all_judge2"] = compare_each(second, expected)["all"]  # by the second scene classifier
        right_on_real = compare_each(classifier.predict([real.read(item.picture) for item in items]), expected)

        def measure(chosen: Sequence[int]) -> Metrics:
            return {name: mean_share([of_image[i] for i in chosen]) for name, of_image in right.items()}

        result = by_group(measure, items) | {"items": right}
        result["metrics"]["judge_on_real"] = mean_share(right_on_real["all"])  # what a perfect model could reach
    network = networks.clip_network(job.foundations / "clip")
    drawn = features.extract(lambda number: predictions.image(*places[number]), len(places), [network])
    about, known = features.real_statistics(items, real, [network])
    result["metrics"]["fid"] = fid.score(drawn["clip"], known["clip.mean"], known["clip.covariance"], about["n"])
    return result

"""GenEval: are the objects that a prompt names in the image, in their number, colours and positions (arXiv 2310.11513)?

geneval_SPLIT.jsonl     GenEval's evaluation_metadata.jsonl: {"tag", "prompt", "include": [{"class", "count", "color",
                        "position": [relation, number of an earlier condition]}], "exclude": [{"class", "count"}]}

Four images of each prompt are generated, as there. `evaluation.detection` names the detector (docs/pictures.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dreamllm.evaluate import drawing
from dreamllm.evaluate.files import BenchmarkProblem, field, read_jsonl
from dreamllm.evaluate.groups import Metrics, by_group
from dreamllm.evaluate.image_predictions import write_images, write_sd_images
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.tasks import Task

IMAGES = 4  # of each prompt
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
NO_DETECTOR = "evaluation.detection names no detector (docs/pictures.md)"

TASK = Task(
    files=("geneval_{split}.jsonl",),
    predictions="tar",
    settings=("drawing",),
    in_world=False,
    foundations=("sd", "sd_finetuned"),
    detects=True,
)


@dataclass(frozen=True)
class GenEvalItem:
    """One image of a prompt. include, exclude: conditions as in the file.  number: of the prompt, from 0"""

    id: str
    number: int
    prompt: str
    tag: str
    include: tuple[dict[str, Any], ...]
    exclude: tuple[dict[str, Any], ...]

    @property
    def groups(self) -> list[str]:
        """Groups under which the item is reported."""
        return [self.tag]


def read(folder: Path, split: str) -> list[list[GenEvalItem]]:
    """The images to generate: IMAGES of each line's prompt."""
    path = folder / TASK.files[0].format(split=split)
    items = []
    for number, (place, record) in enumerate(read_jsonl(path)):
        prompt, tag = field(record, "prompt", str, path, place), field(record, "tag", str, path, place)
        include = _conditions(record, "include", path, place)
        exclude = _conditions(record, "exclude", path, place) if "exclude" in record else ()
        if not prompt.strip() or not tag.strip() or not include:
            raise BenchmarkProblem(path, place, "has an empty prompt, tag or list `include`")
        ids = (f"{number}-{image}" for image in range(IMAGES))
        items += [GenEvalItem(id_, number, prompt, tag, include, exclude) for id_ in ids]
    return [items]


def first(items: list[GenEvalItem], limit: int | None) -> list[GenEvalItem]:
    """The images of the first `limit` prompts."""
    return items if limit is None else items[: limit * IMAGES]


def _conditions(record: Any, key: str, path: Path, place: str) -> tuple[dict[str, Any], ...]:
    """The conditions of a line, checked. Raises BenchmarkProblem."""
    conditions = field(record, key, list, path, place)
    for number, one in enumerate(conditions):
        where = f"{place}, {key}[{number}]"
        if not field(one, "class", str, path, where) or field(one, "count", int, path, where) < 1:
            raise BenchmarkProblem(path, where, "has an empty class, or a count below 1")
        if "color" in one and field(one, "color", str, path, where) not in COLOURS:
            raise BenchmarkProblem(path, where, f"color {one['color']!r} is none of {', '.join(COLOURS)}")
        match field(one, "position", list, path, where) if "position" in one else None:
            case None:
                pass
            case [relation, int(target)] if relation in RELATIONS and 0 <= target < number:
                pass
            case _:
                what = f"position should be [one of {', '.join(RELATIONS)}; number of an earlier condition]"
                raise BenchmarkProblem(path, where, what)
    return tuple(conditions)


def predict(job: PredictionJob, items: Sequence[GenEvalItem], header: dict[str, Any]) -> None:
    """Generate the images, each with a seed of its own."""
    if job.model in TASK.foundations:
        return write_sd_images(job, items, header)
    model, processor = job.load()
    settings = job.settings.drawing
    write_images(job, items, header, lambda pending, _: drawing.draw(model, processor, pending, settings))


def score(job: ScoringJob, items: Sequence[GenEvalItem], predictions: Predictions) -> dict[str, Any]:
    """`overall`, the mean over the tags of the share of right images; by tag the share of right `images`, and of
    `prompts` with one at least. Intervals are over prompts. Undefined without a detector."""
    import numpy as np

    from dreamllm.digests import digest
    from dreamllm.evaluate.metrics import object_checks
    from dreamllm.evaluate.metrics.intervals import mean_share, undefined

    if job.detection is None:
        return {"metrics": {name: undefined(NO_DETECTOR) for name in ("overall", "images", "prompts")}, "groups": {}}
    from dreamllm.evaluate.detection import ColourJudge, Detector
    from dreamllm.evaluate.networks import Clip

    detector_folder, clip_folder = Path(job.detection.detector), Path(job.detection.clip or job.foundations / "clip")
    detector, colours = Detector(detector_folder), ColourJudge(Clip(clip_folder))
    detector.check([one["class"] for item in items for one in (*item.include, *item.exclude)])
    right = []
    for item in items:
        image = predictions.image(predictions.get(item.id, "image", str), f"item {item.id}")
        names = list(dict.fromkeys(one["class"] for one in (*item.include, *item.exclude)))
        threshold = job.detection.counting_threshold if item.tag == "counting" else job.detection.threshold
        objects = object_checks.surest(detector.find(image, names, threshold), threshold)
        wanted, unwanted = (
            [object_checks.Wanted.from_file(one) for one in conditions] for conditions in (item.include, item.exclude)
        )
        right.append(not object_checks.wrong(objects, wanted, unwanted, partial(colours.colours, image)))

    def measure(chosen: Sequence[int]) -> Metrics:
        by_prompt: dict[int, list[bool]] = {}
        for i in chosen:
            by_prompt.setdefault(items[i].number, []).append(right[i])
        shares = [float(np.mean(one)) for one in by_prompt.values()]
        return {"images": mean_share(shares), "prompts": mean_share([any(one) for one in by_prompt.values()])}

    result = by_group(measure, items)
    prompts = {item.number: item.tag for item in items}
    shares = np.array([np.mean([right[i] for i, item in enumerate(items) if item.number == n]) for n in prompts])
    result["metrics"]["overall"] = object_checks.overall(shares, list(prompts.values()))
    instruments = {"detector": digest(detector_folder), "clip": digest(clip_folder)}
    used = job.detection.model_dump(include={"threshold", "counting_threshold"})
    return result | {"items": {"images": right}, "protocol": {"detection": used | instruments}}

"""Stories: free interleaving. Are images where they belong, and do they show the current scene?

stories_SPLIT.jsonl     {"id", "opening", "sentences", "scenes"}: a story to be continued from its opening
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.evaluate import prompts
from dreamllm.evaluate.files import BenchmarkProblem, field, keyed, read_jsonl
from dreamllm.evaluate.groups import checked_scene
from dreamllm.evaluate.image_predictions import ImageFolder
from dreamllm.evaluate.job import PredictionJob, ScoringJob, record
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.tasks import Task

TASK = Task(
    files=("stories_{split}.jsonl",),
    predictions="tar",
    settings=("text", "drawing", "stories"),
    in_public_sets=False,
    instruments=("judge", "judge2"),
)


@dataclass(frozen=True)
class StoryItem:
    """The beginning of an interleaved story, and the rest of its source."""

    id: str
    opening: str
    sentences: tuple[str, ...]
    scenes: tuple[dict[str, Any], ...]


def image_id(item: StoryItem, number: int) -> str:
    """The id under which the scores of an image of a story stand; the first drawn one has number 0."""
    return f"{item.id}-{number}"


def read(folder: Path, split: str) -> list[list[StoryItem]]:
    """Stories: as many scenes as sentences, the opening being the first sentence."""
    path = folder / f"stories_{split}.jsonl"
    items = []
    for place, line in read_jsonl(path):
        id_ = str(field(line, "id", (int, str), path, place))
        sentences, scenes = field(line, "sentences", list, path, place), field(line, "scenes", list, path, place)
        opening = field(line, "opening", str, path, place)
        if not sentences or sentences[0] != opening:
            raise BenchmarkProblem(path, place, "the opening is not the first of the sentences")
        if not all(isinstance(text, str) for text in sentences):
            raise BenchmarkProblem(path, place, "needs texts as sentences")
        if len(scenes) != len(sentences):
            raise BenchmarkProblem(path, place, f"has {len(scenes)} scenes for {len(sentences)} sentences")
        shown = tuple(checked_scene(scene, path, place) for scene in scenes)
        items.append((id_, StoryItem(id_, opening, tuple(sentences), shown)))
    return [list(keyed(items, path, "id").values())]


def predict(job: PredictionJob, items: Sequence[StoryItem], header: dict[str, Any]) -> None:
    """Continue each opening with text (greedily) and images; story k has the seed `settings.seed` + k."""
    from dreamllm.data.document import Text
    from dreamllm.evaluate.drawing import picture_sampling
    from dreamllm.model import generate

    model, processor = job.load()
    settings = job.settings
    limits = generate.TextSampling(
        max_new_tokens=settings.stories.max_new_tokens, max_pictures=settings.stories.max_pictures
    )
    number_of = {item.id: number for number, item in enumerate(items)}
    stored = ImageFolder(job.work, {})

    def tell_batch(batch: Sequence[StoryItem]) -> list[dict[str, Any]]:
        records = []
        seeds = [settings.seed + number_of[item.id] for item in batch]
        documents = [prompts.plain_text(item.id, item.opening) for item in batch]
        continuations = generate.interleave(
            model, processor, documents, seeds, limits, picture_sampling(settings.drawing)
        )
        for item, seed, continuation in zip(batch, seeds, continuations, strict=True):
            parts = []
            for part in continuation.parts:
                if isinstance(part, Text):
                    parts.append({"text": part.text})
                else:
                    name = f"{number_of[item.id]}-{len(parts)}.png"
                    stored.add(name, part.image)
                    parts.append({"image": name})
            more = {"parts": parts, "stopped": continuation.stopped}
            records.append(record(item.id, item.opening, seed) | more)
        return records

    records = job.in_batches("stories", items, settings.drawing.batch_size, tell_batch)
    images: dict[str, Path] = {}
    for part in (part for one in records for part in one["parts"] if "image" in part):
        name = f"{len(images):06d}.png"  # numbered through all stories
        images[name] = stored.folder / part["image"]
        part["image"] = name
    job.write(header, records, images)


def score(job: ScoringJob, items: Sequence[StoryItem], predictions: Predictions) -> dict[str, Any]:
    """Placement of the images, stories ended by the model, and by the scene classifier whether images are right."""
    from dreamllm.emoji.scenes import Scene
    from dreamllm.evaluate.metrics.intervals import mean_share
    from dreamllm.evaluate.metrics.scene_attributes import ATTRIBUTES, compare
    from dreamllm.evaluate.metrics.story_structure import expected_scenes, well_placed

    def parts_of(id_: str) -> list[dict[str, str]]:
        parts = predictions.get(id_, "parts", list)
        for number, part in enumerate(parts):
            if not isinstance(part, dict) or part.keys() not in ({"text"}, {"image"}):
                what = f"part {number} is neither a text nor an image"
                raise BenchmarkProblem(predictions.path, f"item {id_}", what)
        return parts

    parts = {item.id: parts_of(item.id) for item in items}
    ended = [predictions.get(item.id, "stopped", str) == "end" for item in items]
    placed = [well_placed(item.opening, parts[item.id]) for item in items]
    expected = [list(expected_scenes(Scene.from_json(item.scenes[0]), parts[item.id])) for item in items]
    names = [(item.id, part["image"]) for item in items for part in parts[item.id] if "image" in part]
    known = [Scene.from_json(scene) for item in items for scene in item.scenes]
    drawn = [predictions.image(name, f"item {id_}") for id_, name in names]
    seen, second = (
        job.scene_classifier(known, part).predict(drawn, [id_ for id_, _ in names]) for part in ("judge", "judge2")
    )
    followed = [scene for scenes in expected for scene in scenes]
    right = [compare(found, scene) if scene else {} for found, scene in zip(seen, followed, strict=True)]
    of_stories = {"placement": placed, "ended": ended, "followed": [None not in scenes for scenes in expected]}
    # An image in a story that cannot be followed is wrong.
    of_images = {name: [of_image.get(name, False) for of_image in right] for name in ATTRIBUTES}
    of_images["all_judge2"] = [found == scene for found, scene in zip(second, followed, strict=True)]
    metrics = {name: mean_share(scores) for name, scores in of_stories.items()}
    metrics |= {name: mean_share(scores, "no picture was drawn") for name, scores in of_images.items()}
    counted = zip(items, expected, strict=True)
    ids = [image_id(item, number) for item, scenes in counted for number in range(len(scenes))]
    by_image = {name: dict(zip(ids, scores, strict=True)) for name, scores in of_images.items()}
    return {"metrics": metrics, "groups": {}, "items": of_stories | by_image}

"""Items that the final model got wrong, for the page of failures: of each benchmark the first ones, in its order.

An item is wrong when its score in results/items is 0 (`BENCHMARKS` has the metric); a story also when one of its images
has that score. Nothing is scored here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.evaluate import tasks
from dreamllm.evaluate.few_shot import most_common_answer
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, field, pictures_of
from dreamllm.evaluate.predictions import Predictions, check_complete, read
from dreamllm.evaluate.tasks.captions import CaptionItem
from dreamllm.evaluate.tasks.in_context import context_pictures
from dreamllm.evaluate.tasks.pope import PopeItem
from dreamllm.evaluate.tasks.stories import StoryItem, image_id
from dreamllm.evaluate.tasks.vqa import VqaItem
from dreamllm.repro.report.gallery import FOLDER, ImageFile, save
from dreamllm.repro.report.report import Report
from dreamllm.results.pictures import story_panels

SHOWN = 12  # of each benchmark, at most
BENCHMARKS = {  # what the model makes, and the metric in which a wrong item has the score 0
    "draw": ("Images from captions", "all"),
    "draw_human": ("Images from human sentences", "all"),
    "narratives": ("Images from narratives", "all"),
    "in_context": ("Images from images and a sentence", "all"),
    "stories": ("Stories", "placement"),
    "captions": ("Captions", "exact"),
    "vqa": ("Answers to questions", "accuracy"),
    "pope": ("Answers to POPE", "accuracy"),
}

Scores = Mapping[str, Mapping[str, float]]  # metric -> id of an item, or of a story's image -> score


@dataclass(frozen=True)
class Panel:
    """An image of an item, and the words below it. wrong: whether the model generated it and it is wrong"""

    words: str
    image: ImageFile
    wrong: bool


@dataclass(frozen=True)
class Failure:
    """A wrong item.

    asked: prompt, question or opening.  note: kind of scene, and what is wrong.  texts: expected and answered
    """

    asked: str
    note: str
    panels: tuple[Panel, ...]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Failures:
    """The first wrong items of a benchmark. wrong, total: numbers of wrong items and of all items"""

    benchmark: str
    title: str
    wrong: int
    total: int
    shown: list[Failure]


def failures(report: Report, out: Path) -> list[Failures]:
    """The failures in each benchmark for which the final model has item scores; writes the images below `out`.

    Raises BenchmarkProblem for damaged predictions, and for scores of other items than those predicted.
    """
    run, name = report.run, report.final_model
    found = []
    for benchmark, (_, metric) in BENCHMARKS.items():
        scores = report.items.get((run.name, name, benchmark), {}).get("items", {})
        if scores.get(metric) and (path := run.predictions(name, benchmark)):
            folder = run.root / run.paths.benchmark_files(benchmark)
            found.append(_of_benchmark(benchmark, read(run.root / path), scores, folder, out))
    return found


def _of_benchmark(benchmark: str, model: Predictions, scores: Scores, folder: Path, out: Path) -> Failures:
    split = model.header["split"]
    items = tasks.load(benchmark, folder, split, model.header.get("limit"))
    check_complete(model, [item.id for item in items])
    images = {item.id: [id_ for id_, _, _ in _story_images(item, model)] for item in items}
    known = (images.keys(), {id_ for ids in images.values() for id_ in ids})
    for name in scores:
        if field(scores, name, dict, model.path, "item scores").keys() not in known:
            what = f"results/items has {name} of other items; score these predictions again"
            raise BenchmarkProblem(model.path, "", what)
    metric = BENCHMARKS[benchmark][1]
    wrong = [i for i in items if not scores[metric][i.id] or not all(scores["all"][id_] for id_ in images[i.id])]
    real = context_pictures(folder, split) if benchmark == "in_context" else pictures_of(folder, split)
    shown = []
    for number, item in enumerate(wrong[:SHOWN]):
        saved = []
        for place, (words, image, is_wrong) in enumerate(_images(item, model, scores, real)):
            file = f"{FOLDER}/failure-{benchmark}-{number:02d}-{place}.png"
            saved.append(Panel(words, save(image, out, file, f"{words}, item {item.id}"), is_wrong))
        asked = model.get(item.id, "prompt", str).replace("<image>", "").strip() or "(an image alone)"
        shown.append(Failure(asked, _note(item, scores), tuple(saved), _texts(item, model)))
    return Failures(benchmark, BENCHMARKS[benchmark][0], len(wrong), len(items), shown)


def _story_images(item: Any, model: Predictions) -> list[tuple[str, str, str]]:
    """Of each image of a story the id of its score, its words and its file; nothing of another item."""
    panels = story_panels(model, item.id) if isinstance(item, StoryItem) else []
    shown = [(words, image) for words, image in panels if image]
    return [(image_id(item, number), words, image) for number, (words, image) in enumerate(shown)]


def _images(item: Any, model: Predictions, scores: Scores, real: Pictures) -> Iterator[tuple[str, Image.Image, bool]]:
    """The images of an item with words, and whether they are wrong."""
    place = f"item {item.id}"
    match item:
        case StoryItem():
            for id_, words, image in _story_images(item, model):
                yield words, model.image(image, place), not scores["all"][id_]
        case CaptionItem() | VqaItem() | PopeItem():
            yield "given", real.read(item.picture), False
        case _:
            for name in getattr(item, "shown", ()):  # in context
                yield "given", real.read(name), False
            yield "expected", real.read(item.picture), False
            yield "generated", model.image(model.get(item.id, "image", str), place), True


def _texts(item: Any, model: Predictions) -> dict[str, str]:
    """The expected text and the model's; of a story the end that no image follows."""
    match item:
        case StoryItem():
            words, image = (story_panels(model, item.id) or [("", "none")])[-1]
            return {} if image else {"without an image": words}
        case CaptionItem():
            expected = item.references[0]
        case VqaItem():
            expected = most_common_answer(item)
        case PopeItem():
            expected = item.label
        case _:
            return {}
    return {"expected": expected, "answered": model.get(item.id, "output", str) or "(nothing)"}


def _note(item: Any, scores: Scores) -> str:
    """Kind of scene, and of generated images the attributes that the scene classifier finds wrong."""
    scene = getattr(item, "scene", None)
    notes = [scene.kind, "held-out combination" if scene.held_out else ""] if scene else []
    if scene and {"object", "colour", "bind"} <= scores.keys():
        names = {"object": "objects", "colour": "colours"}
        wrong = [word for metric, word in names.items() if not scores[metric].get(item.id)]
        wrong = wrong or [
            "background, places or number" if scores["bind"].get(item.id) else "which object has which colour"
        ]
        notes.append(f"wrong: {', '.join(wrong)}")
        if scores.get("all_judge2", {}).get(item.id):
            notes.append("right by the second scene classifier")
    elif "placement" in scores and not scores["placement"][item.id]:
        notes.append("an image is missing, doubled or misplaced")
    return " · ".join(filter(None, notes))

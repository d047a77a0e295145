"""Pictures and stories for the report site: read from prediction files, written as PNG files beside the page.

File names are made here and never taken from an archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.data.images import encode_png
from dreamllm.evaluate import benchmarks
from dreamllm.evaluate.predictions import Predictions, check_complete, read

PROMPTS_SHOWN = 24  # for which pictures are shown, at most
STORIES_SHOWN = 8  # of each model, at most
FOLDER = "pictures"


@dataclass(frozen=True)
class Shown:
    """A picture on the page. file: relative to the page.  alt: what it should show.  width: in pixels"""

    file: str
    alt: str
    width: int


@dataclass(frozen=True)
class Prompt:
    """A prompt with the real picture and those that models drew, in the order of the models."""

    text: str
    kind: str
    held_out: bool
    real: Shown
    drawn: tuple[Shown, ...]


@dataclass(frozen=True)
class Story:
    """A story as a model wrote it: its given opening, then words and pictures in the order in which they came."""

    opening: str
    parts: tuple[str | Shown, ...]
    stopped: str


def drawings(paths: Sequence[Path], folder: Path, out: Path) -> tuple[list[str], list[Prompt]]:
    """Names of the models, and the prompts with what each model drew; pictures are written below `out`.

    paths: predictions on the benchmark `draw`.  folder: of the benchmark files
    Raises BenchmarkProblem for predictions that are damaged or not one for each prompt.
    """
    models = [read(path) for path in paths]
    if not models:
        return [], []
    header = models[0].header
    items = benchmarks.load("draw", folder, header["split"], header.get("limit"))
    for model in models:
        check_complete(model, [item.id for item in items])
    real = benchmarks.pictures(folder, header["split"])
    prompts = []
    for number, item in enumerate(spread(items)):
        name = f"{number:03d}.png"
        drawn = [
            _save(
                model.image(model.get(item.id, "image", str), f"item {item.id}"),
                out,
                f"{FOLDER}/drawn-{place}-{name}",
                f"{model.header['model']} for: {item.prompt}",
            )
            for place, model in enumerate(models)
        ]
        shown = _save(real.read(item.picture), out, f"{FOLDER}/real-{name}", f"real picture for: {item.prompt}")
        scene = item.scene
        prompts.append(
            Prompt(item.prompt, scene.kind if scene else "", bool(scene and scene.held_out), shown, tuple(drawn))
        )
    return [model.header["model"] for model in models], prompts


def spread(items: Sequence[benchmarks.DrawItem]) -> list[benchmarks.DrawItem]:
    """The first items of every kind of scene in turn, seen and held-out ones apart; in benchmark order."""
    kinds: dict[tuple[str, bool], list[int]] = {}
    for place, item in enumerate(items):
        key = (item.scene.kind, item.scene.held_out) if item.scene else ("", False)
        kinds.setdefault(key, []).append(place)
    chosen: list[int] = []
    for turn in range(max((len(places) for places in kinds.values()), default=0)):
        chosen += [places[turn] for places in kinds.values() if turn < len(places)]
    return [items[place] for place in sorted(chosen[:PROMPTS_SHOWN])]


def stories(path: Path, out: Path, place: int) -> tuple[str, list[Story]]:
    """A model's name and its first stories. place: of the model on the page, which names the files of its pictures.

    Raises BenchmarkProblem for a damaged prediction file or a part that is neither words nor a picture in it.
    """
    model = read(path)
    told = []
    for number, id_ in enumerate(list(model.records)[:STORIES_SHOWN]):
        parts: list[str | Shown] = []
        opening = model.get(id_, "prompt", str)
        for part in model.get(id_, "parts", list):
            parts.append(_part(model, part, out, f"{FOLDER}/story-{place}-{number:03d}-{len(parts):02d}.png", id_))
        told.append(Story(opening, tuple(parts), model.get(id_, "stopped", str)))
    return model.header["model"], told


def _part(model: Predictions, part: dict[str, Any], out: Path, name: str, id_: str) -> str | Shown:
    if "text" in part:
        return str(part["text"])
    return _save(model.image(str(part["image"]), f"item {id_}"), out, name, "picture drawn by the model at this place")


def _save(image: Image.Image, out: Path, name: str, alt: str) -> Shown:
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))
    return Shown(name, alt, image.width)

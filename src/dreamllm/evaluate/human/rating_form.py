"""Make a page on which people rate generated and real documents without knowing which: `dreamllm human-page`.

The paper's study (section 5.2 and appendix): 150 generated documents are mixed with real ones, and people say of each
whether it is supported. Writes two files:

    page.html   one file that holds everything: send it to the raters; each saves a JSON file and sends that back
    key.json    which sample is what: do not show it to the raters; `dreamllm human-score` needs it

Half of the samples are stories as the model continued them, half are stories of the benchmark as they are, each of
another opening. Both are cut to the same form: their text in single spaces, pictures as PNG of the same side.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.atomic import new_folder
from dreamllm.data.images import encode_png
from dreamllm.digests import sha256_of_file
from dreamllm.emoji.scenes import Scene, render
from dreamllm.evaluate import tasks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.human.template import PAGE
from dreamllm.evaluate.predictions import Predictions, check_complete, read
from dreamllm.evaluate.tasks.stories import StoryItem
from dreamllm.output_paths import folder_to_write
from dreamllm.seeds import seed_of

GENERATED, REAL = "generated", "real"
Part = dict[str, str]  # {"text": words} or {"picture": base64 of a PNG}


class HumanProblem(ValueError):
    """Something about a human evaluation that cannot be used: which file, and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm human-page`."""
    parser.add_argument("--predictions", required=True, type=Path, help="predictions on the benchmark stories")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--samples", type=int, help="documents on the page, half of them real; all stories by default")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and the order")
    parser.add_argument("--out", required=True, type=folder_to_write, help="folder for page.html and key.json")


def main(args: argparse.Namespace) -> None:
    """Write page.html and key.json, both or neither."""
    predictions = read(args.predictions)
    page, key = build(predictions, args.benchmarks, args.samples, args.seed)
    with new_folder(args.out) as folder:
        (folder / "page.html").write_text(page, encoding="utf-8")
        (folder / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def build(predictions: Predictions, folder: Path, count: int | None, seed: int) -> tuple[str, dict[str, Any]]:
    """The page and its key.

    Raises BenchmarkProblem when the predictions are not one for each story, HumanProblem for an impossible number of
    samples.
    """
    header = predictions.header
    if header["benchmark"] != "stories":
        raise BenchmarkProblem(predictions.path, "header", f"is for {header['benchmark']!r}, not for 'stories'")
    items = tasks.load("stories", folder, header["split"], header.get("limit"))
    check_complete(predictions, [item.id for item in items])
    count = len(items) // 2 * 2 if count is None else count
    if count < 2 or count % 2 or count > len(items):
        what = "give an even number from 2 to the number of stories: half are real, no story occurs twice"
        raise HumanProblem(f"{predictions.path}: cannot take {count} samples from {len(items)} stories; {what}")

    rng = random.Random(seed_of(seed, "human page", header["model"]))
    chosen = rng.sample(items, count)
    made = [(item, GENERATED, generated(predictions, item)) for item in chosen[: count // 2]]
    side = picture_side(predictions, [item.id for item, *_ in made])
    made += [(item, REAL, real(item, side)) for item in chosen[count // 2 :]]
    rng.shuffle(made)
    samples = [{"id": f"{number:03d}", "parts": parts} for number, (_, _, parts) in enumerate(made, 1)]
    text = json.dumps(samples, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    key = {
        "page": digest,
        "model": header["model"],
        "split": header["split"],
        "seed": seed,
        "samples": {
            sample["id"]: {"source": source, "story": item.id}
            for sample, (item, source, _) in zip(samples, made, strict=True)
        },
        "inputs": {
            path.name: sha256_of_file(path)
            for path in (predictions.path, *tasks.files("stories", folder, header["split"]))
        },
    }
    # "</script" would end the element that holds the samples, "<!-- <script" would make it go on after its end; in JSON
    # a "<" stands in texts only, where it may be written as an escape
    return PAGE.replace("@DIGEST@", digest).replace("@SAMPLES@", text.replace("<", "\\u003c")), key


def generated(predictions: Predictions, item: StoryItem) -> list[Part]:
    """A story as the model continued it, opening included."""
    parts: list[Part] = []
    words = item.opening
    for part in predictions.get(item.id, "parts", list):
        if "text" in part:
            words = f"{words} {part['text']}"
        else:
            parts += _words(words)
            parts.append(_picture(predictions.image(part["image"], f"item {item.id}")))
            words = ""
    return [*parts, *_words(words)]


def real(item: StoryItem, side: int) -> list[Part]:
    """A story of the benchmark: a picture of its scene after each sentence."""
    parts: list[Part] = []
    for number, (sentence, scene) in enumerate(zip(item.sentences, item.scenes, strict=True)):
        place = random.Random(seed_of("human page", item.id, number))
        parts += [*_words(sentence), _picture(render(Scene.from_json(scene), side, place))]
    return parts


def picture_side(predictions: Predictions, ids: list[str]) -> int:
    """Side of the model's pictures. Raises HumanProblem when there are none: raters would have nothing to compare."""
    for id_ in ids:
        for part in predictions.get(id_, "parts", list):
            if "image" in part:
                return predictions.image(part["image"], f"item {id_}").width
    raise HumanProblem(f"{predictions.path}: no chosen story has a picture; there is nothing to rate")


def _words(text: str) -> list[Part]:
    return [{"text": " ".join(text.split())}] if text.strip() else []


def _picture(image: Image.Image) -> Part:
    return {"picture": base64.b64encode(encode_png(image)).decode()}

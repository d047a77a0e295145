"""Illustrations: the images of a document, each drawn from the text and the model's own images before it.

illustrations_SPLIT.jsonl     {"id", "sentences", "image_ids"}, null where a sentence has no image
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.evaluate import drawing
from dreamllm.evaluate.files import BenchmarkProblem, field, keyed, pictures_of, read_jsonl
from dreamllm.evaluate.image_predictions import write_images
from dreamllm.evaluate.job import PredictionJob
from dreamllm.evaluate.tasks import draw

TASK = replace(draw.TASK, files=("illustrations_{split}.jsonl",))
score = draw.score


@dataclass(frozen=True)
class IllustrationItem:
    """An image of a document, and the real one.

    position: of the image among those of the document.  prompt: the sentence before it.  text: all
    sentences since the image before it
    """

    id: str
    document: str
    position: int
    prompt: str
    text: str
    picture: str


def read(folder: Path, split: str) -> list[list[IllustrationItem]]:
    """The images of all documents in reading order; as many image ids, or nulls, as sentences."""
    path, shown = folder / TASK.files[0].format(split=split), pictures_of(folder, split)
    items = []
    for place, record in read_jsonl(path):
        document = str(field(record, "id", (int, str), path, place))
        sentences, image_ids = (field(record, name, list, path, place) for name in ("sentences", "image_ids"))
        if len(sentences) != len(image_ids) or not all(isinstance(text, str) and text.strip() for text in sentences):
            raise BenchmarkProblem(path, place, "needs a text and an image id, or null, for each sentence")
        since: list[str] = []
        position = 0
        for sentence, image_id in zip(sentences, image_ids, strict=True):
            since.append(sentence)
            if image_id is None:
                continue
            if type(image_id) is not int:
                raise BenchmarkProblem(path, place, f"image id {image_id!r} is neither a number nor null")
            id_ = f"{document}-{position}"
            picture = shown.name_of(image_id, path, place)
            items.append((id_, IllustrationItem(id_, document, position, sentence, " ".join(since), picture)))
            since, position = [], position + 1
    return [list(keyed(items, path, "picture").values())]


def predict(job: PredictionJob, items: Sequence[IllustrationItem], header: dict[str, Any]) -> None:
    """Draw the images of each document in their order; Stable Diffusion draws each from its own sentence."""
    if job.model in TASK.foundations:
        return draw.predict(job, items, header)  # type: ignore[arg-type]
    model, processor = job.load()
    requests = drawing.plan(items, job.settings.seed, job.sample)
    settings = job.settings.drawing

    def illustrate(_: Sequence[drawing.DrawRequest], images: Mapping[str, Image.Image]) -> Iterator[Any]:
        return drawing.illustrate(model, processor, requests, settings, images, job.processes)

    write_images(job, items, header, illustrate)

"""Worked examples for few-shot questions about images: at random, or by how similar the images are (RICES).

The released code has no few-shot evaluation and the paper does not say how its examples were chosen; this follows
OpenFlamingo (arXiv 2308.01390): examples of the training split, drawn anew for each question, or the nearest images by
cosine similarity of CLIP embeddings, the most similar last.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from dreamllm.evaluate import tasks
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, pictures_of
from dreamllm.evaluate.job import PredictionJob
from dreamllm.seeds import seed_of

PICTURES_AT_A_TIME = 64


class Question(Protocol):
    """What a question about an image has: also as an example."""

    @property
    def id(self) -> str:
        """Its id in the benchmark."""

    @property
    def picture(self) -> str:
        """File name of its image."""

    @property
    def question(self) -> str:
        """The question itself."""

    @property
    def answers(self) -> tuple[str, ...]:
        """Answers of its annotators."""


@dataclass(frozen=True)
class Examples:
    """Worked examples by the id of the question that they stand before, and the images that they are about."""

    of: Mapping[str, Sequence[Question]]
    pictures: Pictures


def chosen(job: PredictionJob, items: Sequence[Question]) -> Iterator[tuple[int, Examples]]:
    """Each number of examples in `shots`, with the examples of every question.

    They are from the benchmark files in `job.examples`, or else from the other split of the benchmark's own.
    Raises BenchmarkProblem when there are too few examples, or examples whose answers are not public.
    """
    folder = job.examples or job.folder
    split = job.split if job.examples else {"test": "dev", "dev": "test"}[job.split]
    pool, pictures = tasks.load("vqa", folder, split), pictures_of(folder, split)
    check_pool(pool, max(job.use.shots), folder)
    alike = None
    if job.use.shots_by == "similarity":
        alike = similarities(items, job.pictures, pool, pictures, job.foundations / "clip")
    for number in job.use.shots:
        if alike is None:
            rows = at_random(items, pool, number, job.settings.seed)
        else:
            rows = by_similarity(items, pool, number, alike)
        yield number, Examples({item.id: row for item, row in zip(items, rows, strict=True)}, pictures)


def at_random(questions: Sequence[Question], pool: Sequence[Question], shots: int, seed: int) -> list[list[Question]]:
    """`shots` examples for each question, a function of the seed and the question's id, none twice."""
    return [
        random.Random(seed_of(seed, "few-shot examples", question.id)).sample(list(pool), shots)
        for question in questions
    ]


def by_similarity(
    questions: Sequence[Question], pool: Sequence[Question], shots: int, alike: np.ndarray
) -> list[list[Question]]:
    """The examples with the most similar images, the most similar last; of equals the earlier one in the pool is last.

    alike: similarity (questions, pool)
    """
    chosen = np.argsort(-alike, axis=1, kind="stable")[:, :shots]
    return [[pool[place] for place in row[::-1]] for row in chosen]


def similarities(
    questions: Sequence[Question], shown: Pictures, pool: Sequence[Question], shown_pool: Pictures, clip: Path
) -> np.ndarray:
    """Cosine similarity (questions, pool) of the pictures' CLIP embeddings; each picture is embedded once.

    Raises NonFiniteValues, with the picture's name, for features that are NaN.
    """
    import torch

    from dreamllm.model.finite import check_finite

    def of_items(items: Sequence[Question], pictures: Pictures) -> np.ndarray:
        names = list(dict.fromkeys(item.picture for item in items))
        embeddings = clip_embeddings(map(pictures.read, names), clip)  # (N, D)
        check_finite(torch.from_numpy(embeddings), names, "CLIP's features")
        features = dict(zip(names, embeddings, strict=True))
        return np.stack([features[item.picture] for item in items])

    return of_items(questions, shown) @ of_items(pool, shown_pool).T


def clip_embeddings(pictures: Iterable[Image.Image], clip: Path) -> np.ndarray:
    """CLIP's image embeddings (N, D) of length 1, with CLIP's own preparation of the pictures."""
    import torch
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    from dreamllm.model.precision import default_device

    device = default_device()
    model = CLIPVisionModelWithProjection.from_pretrained(clip, dtype=torch.float32).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(clip, backend="pil")
    rest, features = iter(pictures), []
    while batch := [picture for picture, _ in zip(rest, range(PICTURES_AT_A_TIME), strict=False)]:
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"].to(device)
        with torch.inference_mode():
            features.append(torch.nn.functional.normalize(model(pixel_values=pixels).image_embeds, dim=-1).cpu())
    return torch.cat(features).numpy()


def item_id(shots: int, id_: str) -> str:
    """Id of a question with a number of examples before it, in a file that holds several numbers."""
    return f"{shots}-shot-{id_}"


def answer_of(example: Question) -> str:
    """What is written behind an example's question: its most frequent answer, of equals the first."""
    return Counter(example.answers).most_common(1)[0][0]


def check_pool(pool: Sequence[Question], shots: int, folder: Path) -> None:
    """Raises BenchmarkProblem when there are too few examples, or examples whose answers are not public."""
    if len(pool) < shots:
        raise BenchmarkProblem(folder, "", f"{shots} examples are asked for, there are {len(pool)}")
    if bare := next((example for example in pool if not example.answers), None):
        raise BenchmarkProblem(folder, f"question {bare.id}", "has no public answer and is no example")

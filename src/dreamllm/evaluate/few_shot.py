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
from typing import Any

import numpy as np
from PIL import Image

from dreamllm.evaluate import tasks
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, pictures_of
from dreamllm.evaluate.job import PredictionJob
from dreamllm.seeds import seed_of

BATCH_SIZE = 64


@dataclass(frozen=True)
class Examples:
    """Worked examples (items of the task vqa) by the id of the question that they precede, and their images."""

    by_question: Mapping[str, Sequence[Any]]
    pictures: Pictures


def examples_by_shots(job: PredictionJob, items: Sequence[Any]) -> Iterator[tuple[int, Examples]]:
    """Yield each number of examples in `shots`, with the examples of every question.

    Examples come from the benchmark files in `job.examples`; without these, from the other split of the benchmark.
    Raises BenchmarkProblem when there are too few examples, or examples whose answers are not public.
    """
    folder = job.examples or job.folder
    split = job.split if job.examples else {"test": "dev", "dev": "test"}[job.split]
    pool, pictures = tasks.load("vqa", folder, split), pictures_of(folder, split)
    check_pool(pool, max(job.use.shots), folder)
    similarity = None
    if job.use.shots_by == "similarity":
        similarity = image_similarities(items, job.pictures, pool, pictures, job.foundations / "clip")
    for number in job.use.shots:
        if similarity is None:
            rows = random_examples(items, pool, number, job.settings.seed)
        else:
            rows = nearest_examples(items, pool, number, similarity)
        yield number, Examples({item.id: row for item, row in zip(items, rows, strict=True)}, pictures)


def random_examples(questions: Sequence[Any], pool: Sequence[Any], shots: int, seed: int) -> list[list[Any]]:
    """Draw `shots` different examples for each question. They depend on the seed and the question's id alone."""
    return [
        random.Random(seed_of(seed, "few-shot examples", question.id)).sample(list(pool), shots)
        for question in questions
    ]


def nearest_examples(
    questions: Sequence[Any], pool: Sequence[Any], shots: int, similarity: np.ndarray
) -> list[list[Any]]:
    """The `shots` examples with the most similar images, most similar last; of equals the earlier in the pool is last.

    similarity: of images, (questions, pool)
    """
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :shots]
    return [[pool[place] for place in row[::-1]] for row in nearest]


def image_similarities(
    questions: Sequence[Any], pictures: Pictures, pool: Sequence[Any], pool_pictures: Pictures, clip: Path
) -> np.ndarray:
    """Cosine similarity (questions, pool) of the pictures' CLIP embeddings; each picture is embedded once.

    Raises NonFiniteValues, with the picture's name, for features that are NaN.
    """
    import torch

    from dreamllm.model.finite import check_finite

    def embeddings(items: Sequence[Any], pictures: Pictures) -> np.ndarray:
        names = list(dict.fromkeys(item.picture for item in items))
        embeddings = clip_embeddings(map(pictures.read, names), clip)  # (N, D)
        check_finite(torch.from_numpy(embeddings), names, "CLIP's features")
        features = dict(zip(names, embeddings, strict=True))
        return np.stack([features[item.picture] for item in items])

    return embeddings(questions, pictures) @ embeddings(pool, pool_pictures).T


def clip_embeddings(pictures: Iterable[Image.Image], clip: Path) -> np.ndarray:
    """CLIP's image embeddings (N, D) of length 1, with CLIP's own preparation of the pictures."""
    import torch
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    from dreamllm.evaluate.networks import check_is_clip
    from dreamllm.model.precision import default_device
    from dreamllm.model.weights import load_part, load_weights

    check_is_clip(clip)
    device = default_device()
    model = load_weights(CLIPVisionModelWithProjection, clip, dtype=torch.float32).eval().to(device)
    processor = load_part(AutoImageProcessor, clip, backend="pil")
    rest, features = iter(pictures), []
    while batch := [picture for picture, _ in zip(rest, range(BATCH_SIZE), strict=False)]:
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"].to(device)
        with torch.inference_mode():
            features.append(torch.nn.functional.normalize(model(pixel_values=pixels).image_embeds, dim=-1).cpu())
    return torch.cat(features).numpy()


def item_id(shots: int, id_: str) -> str:
    """Id of a question that is asked with this number of examples: a prediction file holds several numbers."""
    return f"{shots}-shot-{id_}"


def most_common_answer(example: Any) -> str:
    """The answer that an example is shown with: the most frequent of its annotators', of equals the first."""
    return Counter(example.answers).most_common(1)[0][0]


def check_pool(pool: Sequence[Any], shots: int, folder: Path) -> None:
    """Raises BenchmarkProblem when there are too few examples, or examples whose answers are not public."""
    if len(pool) < shots:
        raise BenchmarkProblem(folder, "", f"{shots} examples are asked for, there are {len(pool)}")
    if bare := next((example for example in pool if not example.answers), None):
        raise BenchmarkProblem(folder, f"question {bare.id}", "has no public answer and is no example")

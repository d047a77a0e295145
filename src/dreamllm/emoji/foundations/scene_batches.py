"""Endless batches of training scenes with their pictures, which every foundation model of the miniature learns from."""

from __future__ import annotations

import multiprocessing
import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from dreamllm.emoji.scenes import NAMES, Names, Scene, paint, sample_split, shifts
from dreamllm.train.optimise import to_tensor

Drawn = TypeVar("Drawn")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """All that is random about a batch of pictures of `side` pixels: scenes, and how far their pictograms are moved."""

    scenes: list[Scene]
    moved: list[list[tuple[int, int]]]
    side: int

    def pictures(self) -> list[Image.Image]:
        """Its pictures."""
        return [paint(scene, self.side, moved) for scene, moved in zip(self.scenes, self.moved, strict=True)]


def batch_of(drawn: list[Scene], side: int, rng: random.Random) -> Batch:
    """A batch of these scenes, as `render` draws them one after the other."""
    return Batch(drawn, [shifts(scene, side, rng) for scene in drawn], side)


def pixels_of(batch: Batch) -> tuple[list[Scene], np.ndarray]:
    """The scenes of a batch and `to_tensor` of their pictures: (N, 3, H, W)."""
    return batch.scenes, to_tensor(batch.pictures()).numpy()


def scenes(
    seed: int, batch: int, side: int, names: Names = NAMES, workers: int = 0
) -> Iterator[tuple[list[Scene], torch.Tensor]]:
    """Endless batches of training scenes with the pixels of their pictures (N, 3, H, W) in [-1, 1]."""
    rng = random.Random(seed)

    def drawn() -> Iterator[Batch]:
        while True:
            yield batch_of([sample_split(rng, "train", names=names) for _ in range(batch)], side, rng)

    for told, pixels in ahead(drawn(), pixels_of, workers):
        yield told, torch.from_numpy(pixels)


def ahead(drawn: Iterator[Drawn], make: Callable[[Drawn], Made], workers: int) -> Iterator[Made]:
    """`make` of everything that is drawn, in its order; 0 workers = here, when it is asked for.

    Workers are processes that make the next ones meanwhile: to paint a batch takes longer than a GPU takes to learn
    from it. What is random is drawn here, one after the other, so that results do not depend on the workers.
    """
    if not workers:
        yield from map(make, drawn)
        return
    # Processes that are started afresh: one that is forked off a process with a GPU may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = deque(pool.submit(make, one) for one in islice(drawn, 2 * workers))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, one) for one in islice(drawn, 1))
            yield made

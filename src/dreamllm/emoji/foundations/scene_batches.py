"""Endless batches of training scenes with their pictures, for the trainings of the miniature foundation models."""

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

from dreamllm.emoji.scenes import NAMES, Names, Scene, paint, sample_offsets, sample_split
from dreamllm.train.optimise import to_tensor

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Batch:
    """The random part of a batch of pictures of `side` pixels: scenes, and the offsets of their pictograms."""

    scenes: list[Scene]
    offsets: list[list[tuple[int, int]]]
    side: int

    def pictures(self) -> list[Image.Image]:
        """The rendered pictures."""
        return [paint(scene, self.side, offsets) for scene, offsets in zip(self.scenes, self.offsets, strict=True)]


def make_batch(scenes: list[Scene], side: int, rng: random.Random) -> Batch:
    """A batch of scenes, with the offsets that `render` would sample for one after the other."""
    return Batch(scenes, [sample_offsets(scene, side, rng) for scene in scenes], side)


def render_batch(batch: Batch) -> tuple[list[Scene], np.ndarray]:
    """The scenes of a batch and `to_tensor` of their pictures: (N, 3, H, W)."""
    return batch.scenes, to_tensor(batch.pictures()).numpy()


def scene_batches(
    seed: int, batch: int, side: int, names: Names = NAMES, workers: int = 0
) -> Iterator[tuple[list[Scene], torch.Tensor]]:
    """Endless batches of training scenes with their pixels (N, 3, H, W) in [-1, 1]."""
    rng = random.Random(seed)

    def batches() -> Iterator[Batch]:
        while True:
            yield make_batch([sample_split(rng, "train", names=names) for _ in range(batch)], side, rng)

    for scenes, pixels in prefetch(batches(), render_batch, workers):
        yield scenes, torch.from_numpy(pixels)


def prefetch(inputs: Iterator[Input], function: Callable[[Input], Output], workers: int) -> Iterator[Output]:
    """`function` of each input, in order, computed ahead by worker processes; without workers, here and on demand.

    To render a batch takes longer than a training step on a GPU. The inputs, which are all that is random, are sampled
    in this process in order, so that the results do not depend on the number of workers.
    """
    if not workers:
        yield from map(function, inputs)
        return
    # Spawned processes: a process forked from one that uses a GPU may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = deque(pool.submit(function, one) for one in islice(inputs, 2 * workers))
        while waiting:
            output = waiting.popleft().result()
            waiting.extend(pool.submit(function, one) for one in islice(inputs, 1))
            yield output

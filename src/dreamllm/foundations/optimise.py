"""What every foundation trainer shares: a stream of scenes with their pictures and one plain optimisation loop."""

from __future__ import annotations

import contextlib
import math
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
from tqdm import tqdm

from dreamllm.data.emoji import NAMES, Names, Scene, paint, sample_split, shifts

Drawn = TypeVar("Drawn")
Made = TypeVar("Made")


def device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision() -> contextlib.AbstractContextManager:
    """bf16 autocast: three times faster on GPUs and on CPUs with AMX; weights stay in fp32."""
    return torch.autocast(device().type, torch.bfloat16)


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


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as (N, 3, H, W) in [-1, 1], the range of Stable Diffusion's VAE."""
    stack = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1.0  # (N, 3, H, W)


def optimise(
    title: str,
    parameters: list[torch.nn.Parameter],
    loss_of_step: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    after_step: Callable[[int], None] = lambda step: None,
    weight_decay: float = 0.01,
) -> list[float]:
    """Minimise with AdamW, 5 % linear warm-up, cosine to zero and gradient norm 1; returns the loss of every step.

    Raises FloatingPointError when the loss is not finite.
    """
    fused = device().type == "cuda" or None  # on a CPU as it has always been, to the same bytes
    optimiser = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=fused
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, s / steps))))
    )
    losses: list[float] = []
    for step in (bar := tqdm(range(steps), desc=title, mininterval=5)):
        loss = loss_of_step(step)
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(f"{title}: the loss is {value} at step {step}; lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        after_step(step)
        losses.append(value)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.4f}")
    return losses

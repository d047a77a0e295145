"""Several images per prompt: their seeds, and rules that select one of them.

The authors say in their issue tracker that each prompt was drawn "8/16 times with different seeds and best CLIP
selection"; their code takes the picture with the largest similarity to any of the captions. Whether the paper's Stable
Diffusion rows had the same choice is not known, so every model is measured by every rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

STRIDE = 1_000_000  # between the seeds of two samples of a prompt: more than any benchmark has prompts


def seed(first: int, sample: int, item: int) -> int:
    """Seed of a sample of an item. Depends neither on the number of items nor on that of samples.

    first: `evaluation.seed`.  sample and item count from 0; sample 0 of item k has first + k.
    Raises ValueError for an item that would have a seed of the next sample.
    """
    if not 0 <= item < STRIDE:
        raise ValueError(f"item {item}: seeds of samples differ for at most {STRIDE} items")
    return first + item + sample * STRIDE


def first(scores: np.ndarray) -> np.ndarray:
    """Sample 0 of every item, whatever its score. scores: (S, N) -> (N,) integers."""
    return np.zeros(scores.shape[1], dtype=np.int64)


def best(scores: np.ndarray) -> np.ndarray:
    """The sample with the largest score of each item, the earlier of equal ones. scores: (S, N) -> (N,) integers."""
    return scores.argmax(axis=0)


RULES: Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "first": ("clip_prompt", first),
    "best": ("clip_prompt", best),
    "best_any": ("clip_captions", best),
}
"""Rule by name: the scores that it sees, and the choice. first: one image per prompt; best: the most similar to
its prompt; best_any: the most similar to any caption of the real image (official code)."""


def take(samples: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen sample of each item. samples: (S, N, ...), chosen: (N,) -> (N, ...)."""
    return samples[chosen, np.arange(len(chosen))]

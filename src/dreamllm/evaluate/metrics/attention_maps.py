"""Are attention maps of one query under different prompts more similar than maps of different queries?"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamllm.evaluate.metrics.intervals import bootstrap, measurement, undefined


def score(maps: np.ndarray) -> dict[str, Any]:
    """Mean correlations between maps of different prompts: of the same query, of different ones, and the difference.

    maps: (N, Q, h, w). Intervals resample prompts. A map without any difference between places correlates with none.
    """
    prompts, queries = maps.shape[:2]
    centred = maps.reshape(prompts, queries, -1).astype(np.float64)
    centred = centred - centred.mean(axis=-1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=-1, keepdims=True)  # (N, Q, 1)
    if queries < 2 or (lengths == 0).any():
        reason = "there is one query only" if queries < 2 else "a query's map is the same everywhere"
        return {"metrics": dict.fromkeys(("same", "other", "difference"), undefined(reason)), "groups": {}}
    same, other = correlations(centred / lengths)
    pairs = {"same": same, "other": other, "difference": same - other}
    return {"metrics": {name: over_pairs(values) for name, values in pairs.items()}, "groups": {}}


def correlations(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over queries for each pair of prompts, both (N, N): same query, and different queries.

    maps: (N, Q, L), each centred and of length 1
    """
    queries = maps.shape[1]
    same = np.einsum("aql,bql->ab", maps, maps) / queries
    sums = maps.sum(axis=1)  # (N, L)
    return same, (sums @ sums.T - same * queries) / (queries * (queries - 1))


def over_pairs(values: np.ndarray) -> dict[str, Any]:
    """Mean over pairs of different prompts of a symmetric (N, N) array, with an interval over prompts."""

    def mean(prompts: np.ndarray) -> float:
        different = prompts[:, None] != prompts  # a prompt that was drawn twice is no pair with itself
        chosen = values[np.ix_(prompts, prompts)]
        return float(chosen[different].mean()) if different.any() else float(values.mean())

    n = len(values)
    return measurement(mean(np.arange(n)), n, *bootstrap(mean, n))

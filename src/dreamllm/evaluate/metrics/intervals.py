"""95 % confidence intervals, and the one form in which every metric is reported.

A measurement is a plain dictionary, ready for JSON: {"value", "n", "low", "high"}. An undefined one (no items, no
predicted "yes") has None in place of the numbers and a "reason"; NaN never leaves this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Z = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 1000
SEED = 20230920  # of all bootstraps: the same predictions always give the same interval


def measurement(value: float, n: int, low: float, high: float) -> dict[str, Any]:
    """One measured number with its interval. Raises ValueError when a number is not finite."""
    if not all(math.isfinite(number) for number in (value, low, high)):
        raise ValueError(f"a metric came out as {value} [{low}, {high}] over {n} items; its inputs must hold NaN")
    return {"value": float(value), "n": int(n), "low": float(low), "high": float(high)}


def undefined(reason: str) -> dict[str, Any]:
    """A metric that has no value here, and why."""
    return {"value": None, "n": 0, "low": None, "high": None, "reason": reason}


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval for a share in [0, 1] of n items. Unlike the bootstrap's it has width at 0 and 1."""
    centre = share + Z * Z / (2 * n)
    spread = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mean_share(scores: Sequence[float] | np.ndarray, reason: str = "no items") -> dict[str, Any]:
    """Mean of scores in [0, 1] with Wilson's interval.

    For soft scores (VQA accuracy) the interval is on the safe side: no variable in [0, 1] varies more than a 0/1 one.
    Raises ValueError for scores outside [0, 1], NaN included.
    """
    if len(scores) == 0:
        return undefined(reason)
    values = np.asarray(scores, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"scores must lie in [0, 1], found {values[~((values >= 0) & (values <= 1))][0]}")
    share = float(values.mean())
    return measurement(share, len(values), *wilson(share, len(values)))


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Interval of a statistic of n items by resampling them with replacement.

    statistic: takes item indices (n,), returns a number; statistic(arange(n)) is the estimate.
    The interval is the estimate plus the 2.5 % and 97.5 % quantiles of the resamples' deviations from their own mean.
    Resampling shifts FID upwards (repeated items look like a narrower distribution); centring takes that shift out.
    """
    generator = np.random.default_rng(SEED)
    values = np.array([statistic(generator.integers(0, n, n)) for _ in range(resamples)])
    estimate = statistic(np.arange(n))
    low, high = estimate + np.quantile(values - values.mean(), [0.025, 0.975])
    return float(low), float(high)


def mean_bootstrap(scores: Sequence[float] | np.ndarray, reason: str = "no items") -> dict[str, Any]:
    """Mean of unbounded scores (CIDEr of single captions) with a bootstrap interval."""
    if len(scores) == 0:
        return undefined(reason)
    values = np.asarray(scores, dtype=np.float64)
    low, high = bootstrap(lambda items: float(values[items].mean()), len(values))
    return measurement(values.mean(), len(values), low, high)

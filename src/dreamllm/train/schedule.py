"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up to `peak`, then a cosine to zero (official code: `lr_scheduler_type="cosine"`).

    step: 0 .. steps - 1.  Unlike the official scheduler, the first step already moves: its rate is not 0.
    """
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

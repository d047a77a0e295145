"""The learning-rate schedule of all stages; `trainer.py` calls it once per step."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up to `peak`, then a cosine to zero (official code: `lr_scheduler_type="cosine"`).

    step: 0 .. steps - 1.  peak: `learning_rate` of the stage.  warmup_ratio: fraction of the steps that warm up.
    Unlike in the official code, the first step has a rate above 0.
    """
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

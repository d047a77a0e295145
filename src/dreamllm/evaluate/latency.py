"""How long a picture takes, by number of denoising steps (paper Table 9b).

One picture at a time, from words to pixels: text encoder or language model, every step of the UNet, VAE, and the copy
to the host. The first picture of each number of steps is drawn once more before, and not timed. The paper does not tell
its batch size; it used one A800.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from dreamllm.config.evaluation import EvaluationSettings
from dreamllm.evaluate import benchmarks
from dreamllm.evaluate.drawing import Draw, plan
from dreamllm.evaluate.intervals import mean_bootstrap
from dreamllm.evaluate.predictions import Predictions


def measure(items: Sequence[benchmarks.DrawItem], draw: Draw, settings: EvaluationSettings) -> list[dict[str, Any]]:
    """Seconds for each item's picture, by steps. draw: a generator that draws a picture when it is asked for one."""
    seconds: list[dict[str, float]] = [{} for _ in items]
    wanted = plan(items, settings.seed, 0)
    for steps in settings.latency.steps:
        how = settings.drawing.model_copy(update={"steps": steps, "batch_size": 1})
        pictures = draw([wanted[0], *wanted], how)
        next(pictures)
        for of_item in seconds:
            start = perf_counter()
            next(pictures)
            of_item[str(steps)] = perf_counter() - start
    return [
        {"id": one.item.id, "prompt": one.prompt, "seed": one.seed, "seconds": of_item}
        for one, of_item in zip(wanted, seconds, strict=True)
    ]


def score(items: Sequence[benchmarks.DrawItem], predictions: Predictions) -> dict[str, Any]:
    """Mean seconds per picture, a group for each number of steps."""
    times = [predictions.get(item.id, "seconds", dict) for item in items]
    groups = {
        f"steps/{steps}": {"seconds": mean_bootstrap([of_item[steps] for of_item in times])} for steps in times[0]
    }
    return {"metrics": {}, "groups": groups}

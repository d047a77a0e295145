"""Latency: how long an image takes, by number of denoising steps (paper Table 9b). Prompts are those of `draw`.

One image at a time, from words to pixels: text encoder or language model, every step of the UNet, VAE, and the copy to
the host. The first image of each number of steps is generated once before, untimed. The paper does not state its batch
size; it used one A800.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

from dreamllm.config.evaluation import EvaluationSettings
from dreamllm.evaluate import drawing
from dreamllm.evaluate.job import PredictionJob, ScoringJob, record
from dreamllm.evaluate.predictions import Predictions, write
from dreamllm.evaluate.tasks import draw
from dreamllm.evaluate.tasks.draw import DrawItem

TASK = replace(
    draw.TASK,
    predictions="jsonl",
    settings=("drawing", "latency"),
    instruments=(),
    image_metrics=False,
    timed=True,
    parallel=False,
)
read = draw.read


def limit(settings: EvaluationSettings) -> int | None:
    """Number of prompts."""
    return settings.latency.pictures


def predict(job: PredictionJob, items: Sequence[DrawItem], header: dict[str, Any]) -> None:
    """Write the seconds of each prompt's image."""
    if job.model in TASK.foundations:
        sd, unet = drawing.sd_folders(job)
        header["protocol"]["text_encoder"] = drawing.count_truncated(sd, [item.prompt for item in items])
        draw_one = partial(drawing.draw_with_sd, sd, unet, job.dtype, compiled=job.experiment.machine.compile)
        return write(job.out, header, measure(items, draw_one, job.settings))
    write(job.out, header, measure(items, partial(drawing.draw, *job.load()), job.settings))


def measure(
    items: Sequence[DrawItem], draw: Callable[..., Iterator[Any]], settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Seconds for each item's image, by steps. draw: a generator that draws an image when it is asked for one."""
    seconds: list[dict[str, float]] = [{} for _ in items]
    requests = drawing.plan(items, settings.seed, 0)
    for steps in settings.latency.steps:
        drawing_settings = settings.drawing.model_copy(update={"steps": steps, "batch_size": 1})
        pictures = draw([requests[0], *requests], drawing_settings)
        next(pictures)
        for of_item in seconds:
            start = perf_counter()
            next(pictures)
            of_item[str(steps)] = perf_counter() - start
    return [
        record(request.item.id, request.prompt, request.seed) | {"seconds": of_item}
        for request, of_item in zip(requests, seconds, strict=True)
    ]


def score(job: ScoringJob, items: Sequence[DrawItem], predictions: Predictions) -> dict[str, Any]:
    """Mean seconds per image, a group for each number of steps."""
    from dreamllm.evaluate.metrics.intervals import mean_bootstrap

    times = [predictions.get(item.id, "seconds", dict) for item in items]
    groups = {
        f"steps/{steps}": {"seconds": mean_bootstrap([of_item[steps] for of_item in times])} for steps in times[0]
    }
    return {"metrics": {}, "groups": groups}

"""GPU-hours of the images that an experiment's evaluation generates: its longest part."""

from __future__ import annotations

from dataclasses import dataclass

from dreamllm.config.experiment import Experiment
from dreamllm.evaluate import tasks
from dreamllm.sources import manifest

IN_WORLD = {"draw": "draw", "draw_human": "draw", "narratives": "draw", "in_context": "in_context"}
"""The key of `world.benchmarks` with a task's number of prompts. That of the other tasks depends on the stories."""


@dataclass(frozen=True)
class Generation:
    """The images of a model on a benchmark. prompts: None where their number is not known before they are placed"""

    model: str
    benchmark: str
    prompts: int | None
    samples: int

    @property
    def pictures(self) -> int:
        """Number of images, 0 where it is not known."""
        return (self.prompts or 0) * self.samples


def generations(experiment: Experiment) -> list[Generation]:
    """What is generated for each run (seed) of the experiment, in the order of `evaluations`."""
    public = manifest.of_experiment(experiment) if experiment.benchmarks else {}
    found = []
    for evaluation in experiment.evaluations:
        for name in evaluation.benchmarks:
            use = experiment.benchmark(name)
            task = tasks.about(use.task)
            if task.predictions != "tar":
                continue
            if use.source:
                prompts = public[use.source].documents
            elif use.task in IN_WORLD:
                prompts = getattr(experiment.world.benchmarks, IN_WORLD[use.task])
            else:
                prompts = None
            limit = experiment.evaluation.limit
            several = experiment.evaluation.pictures if task.image_metrics else None
            found.append(
                Generation(
                    evaluation.model,
                    name,
                    min(prompts, limit) if prompts and limit else prompts,
                    several.samples if several else 1,
                )
            )
    return found


def seconds_per_picture(experiment: Experiment, unet: float, flops: float, share: float) -> float:
    """Seconds of one GPU for an image, by the FLOPs of the UNet, twice a step with guidance.

    unet: FLOPs of its forward pass for one image.  flops: the GPU's per second.  share: of them that generation reaches
    """
    drawing = experiment.evaluation.drawing
    return drawing.steps * (1 if drawing.guidance == 1 else 2) * unet / (flops * share)


def lines(experiment: Experiment, each: float, why: str) -> list[str]:
    """The lines of the plan. each: seconds of an image on one GPU.  why: where this number is from"""
    evaluated = [one.model for run in experiment.runs().values() for one in run.evaluations]
    text, total = [f"evaluation: images to generate, {each:.3g} s each ({why})"], 0
    for one in generations(experiment):
        if one.prompts is None:
            text.append(f"  {one.model + ' ' + one.benchmark:<40} number of images not known")
            continue
        runs = evaluated.count(one.model)
        pictures = runs * one.pictures
        total += pictures
        times = f"{one.prompts:,} prompts x {one.samples} samples" + (f" x {runs} seeds" if runs > 1 else "")
        text.append(f"  {one.model + ' ' + one.benchmark:<40} {pictures * each / 3600:>9,.1f} GPU-hours, {times}")
    processes = max(1, experiment.machine.gpus) * experiment.machine.nodes
    hours = total * each / 3600
    text.append(f"  {total:,} images, {hours:,.1f} GPU-hours, {hours / processes:,.1f} h on {processes} GPU(s)")
    return text if len(text) > 2 else []

"""Estimate what an experiment costs before it runs: `dreamllm plan --config FILE`.

Prints the parameters; for each stage the trained parameters, documents, tokens, pictures, memory per GPU and GPU-hours;
then the disk space. Nothing is downloaded and no weights are allocated. The formulas are in `arithmetic.py`, the
assumptions in paper/assumptions.yaml; they are printed with the plan. Of the evaluation, the images that are generated
are counted (`evaluation.py`), and answers in text are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from dreamllm.config.base import Positive, Section, Share
from dreamllm.config.experiment import Experiment, Model
from dreamllm.config.machine import GradientCheckpointing
from dreamllm.config.reading import ConfigProblem, load, read_yaml
from dreamllm.config.world import WORLD_SETS
from dreamllm.repro.plan import arithmetic, evaluation
from dreamllm.repro.plan.arithmetic import DocumentKind, Layout, Size
from dreamllm.sources import manifest

ASSUMPTIONS = Path("paper/assumptions.yaml")
GPU = "A800"
EVERY: tuple[Literal["none"] | int, ...] = ("none", 8, 4, 3, 2, 1)  # layers of the language model to propose


class Value(Section):
    """A number and its source."""

    value: Positive
    why: str


class Average(Section):
    """The average document of a shard set: the fields of `arithmetic.DocumentKind` and their source."""

    layout: Layout
    text: Positive
    pictures: float = 0
    shown: float = 0
    prompt: Share = 0
    why: str

    def kind(self) -> DocumentKind:
        """The same for `arithmetic`."""
        return DocumentKind(self.layout, self.text, self.pictures, self.shown, self.prompt)


class Gpu(Section):
    """A GPU: dense bf16 FLOP/s, memory in bytes."""

    flops: Positive
    memory: Positive


class Assumptions(Section):
    """paper/assumptions.yaml."""

    fill: Value
    documents: dict[str, Average]
    picture_bytes: Value
    gpus: dict[str, Gpu]
    utilisation: Value
    generation: Value


@dataclass(frozen=True)
class StagePlan:
    """What a stage costs. step: load of one step.  memory: bytes on one GPU by purpose"""

    name: str
    trained: dict[str, int]
    steps: int
    documents: dict[str, float]
    step: arithmetic.Load
    flops: dict[str, float]
    memory: dict[str, float]


def read_assumptions(path: Path) -> Assumptions:
    """Read and check the assumptions. Raises ConfigProblem."""
    try:
        return Assumptions.model_validate(read_yaml(path))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (it is {e['input']!r})" for e in error.errors()]
        raise ConfigProblem("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems])) from None


def kinds(experiment: Experiment, assumptions: Assumptions, path: Path) -> dict[str, DocumentKind]:
    """The average document of each set in a mixture. Raises ConfigProblem for a set without assumptions."""
    found = {}
    for name in sorted({name for stage in experiment.stages.values() for name in stage.mixture}):
        use = experiment.sources.get(name)
        key = f"own_{use.format}" if use and use.path else name
        if name.startswith("mmc4_core") and not experiment.sources[name].min_similarity:
            key = "mmc4_core_unfiltered"
        if key not in assumptions.documents:
            raise ConfigProblem(f"{path}: documents: has no entry {key}, which a mixture names; add it")
        found[name] = assumptions.documents[key].kind()
    return found


def plan_stage(experiment: Experiment, name: str, size: Size, sets: dict[str, DocumentKind], fill: float) -> StagePlan:
    """All numbers of one stage."""
    stage, machine = experiment.stages[name], experiment.machine
    mean = arithmetic.mixture_load(stage, sets, size.patches, size.queries)
    per_step = arithmetic.documents_per_step(stage, mean, fill)
    total = sum(stage.mixture.values())
    step = mean * per_step
    return StagePlan(
        name=name,
        trained=arithmetic.trained_parameters(size, stage),
        steps=stage.steps,
        documents={key: per_step * stage.steps * weight / total for key, weight in stage.mixture.items()},
        step=step,
        flops=arithmetic.step_flops(size, stage, machine, step),
        memory=arithmetic.gpu_memory(size, stage, machine, step),
    )


def proposed_checkpointing(
    experiment: Experiment, sizes: Mapping[Model, Size], sets: dict[str, DocumentKind], fill: float, memory: float
) -> str:
    """The value of machine.gradient_checkpointing that costs the fewest FLOPs of those with which every stage fits.

    memory: of a GPU, in bytes
    """

    def cost(chosen: bool | GradientCheckpointing) -> tuple[float, float]:
        """FLOPs of all stages, and bytes on a GPU in the stage that needs most."""
        machine = experiment.machine.model_copy(update={"gradient_checkpointing": chosen})
        changed = experiment.model_copy(update={"machine": machine})
        plans = [plan_stage(changed, name, sizes[experiment.model_of(name)], sets, fill) for name in experiment.stages]
        return sum(p.steps * sum(p.flops.values()) for p in plans), max(sum(p.memory.values()) for p in plans)

    options = [GradientCheckpointing(language_model=n, unet=m) for n in EVERY for m in ("none", 1)]
    fitting = [(*cost(option), option) for option in options]
    fitting = [found for found in fitting if found[1] <= memory]
    if not fitting:
        return "nothing makes all stages fit; lower rows_at_a_time or pictures_at_a_time, or shard over more GPUs"
    flops, need, best = min(fitting, key=lambda found: found[:2])
    now, now_need = cost(experiment.machine.gradient_checkpointing)
    if flops >= now and now_need <= memory:
        return "as it is: nothing that fits costs fewer FLOPs"
    saving = f", {1 - flops / now:.0%} fewer FLOPs than now" if flops < now else ""
    return f"{{language_model: {best.language_model}, unet: {best.unet}}}, {need / 1e9:.1f} GB at most{saving}"


def disk(experiment: Experiment, size: Size, stages: list[StagePlan], assumptions: Assumptions) -> dict[str, float]:
    """Bytes on disk by purpose; sets of unknown size count only with their pictures."""
    public = manifest.of_experiment(experiment) if experiment.sources else {}
    used: dict[str, float] = {}
    for name, use in experiment.sources.items():
        source = public[name]
        about = assumptions.documents.get(name)
        documents = use.documents or source.documents
        if about is None or documents is None or source.format == "instructions":
            pictures = 0.0
        else:
            pictures = documents * (about.pictures + about.shown) * assumptions.picture_bytes.value
        copies = 2 if source.holds_addresses else 1  # the downloaded pictures, and those in the shards
        used[f"set {name}"] = (source.bytes or 0) + copies * pictures
    trained = [sum(stage.trained.values()) for stage in stages]
    return used | {
        "foundations (at most)": arithmetic.FP32 * sum(size.parameters.values()),
        "checkpoints": arithmetic.FP32 * sum(trained),
        "resume state of one training": (arithmetic.FP32 + arithmetic.ADAM) * max(trained, default=0),
    }


# ---- printing --------------------------------------------------------------------------------------------------------


def lines(
    experiment: Experiment,
    sizes: Mapping[Model, Size],
    assumptions: Assumptions,
    gpu: str,
    utilisation: float,
    path: Path,
    seconds_per_picture: float | None = None,
) -> list[str]:
    """The lines of the plan. sizes: of the model, by the options of the model.  seconds_per_picture: measured"""
    size = sizes[experiment.model]
    card, machine = assumptions.gpus[gpu], experiment.machine
    processes = max(1, machine.gpus) * machine.nodes
    sets = kinds(experiment, assumptions, path)
    text = [f"experiment {experiment.name}", "", "parameters"]
    text += [f"  {part:<22} {number:>15,}" for part, number in size.parameters.items()]
    text += [f"  {'all':<22} {sum(size.parameters.values()):>15,}"]
    stages, hours = [], 0.0
    for name in experiment.stages:
        stage = plan_stage(experiment, name, sizes[experiment.model_of(name)], sets, assumptions.fill.value)
        stages.append(stage)
        of_stage = arithmetic.gpu_hours(stage.steps * sum(stage.flops.values()), card.flops, utilisation)
        hours += of_stage
        text += ["", f"stage {name}: {stage.steps:,} steps of {experiment.stages[name].rows_per_batch:,} rows"]
        text += _stage_lines(experiment, stage, sets)
        need = sum(stage.memory.values())
        fits = "fits" if need <= card.memory else "does NOT fit"
        text += [f"  memory per GPU         {need / 1e9:.1f} GB, {fits} {gpu} ({card.memory / 1e9:.0f} GB)"]
        text += [f"    {what:<38} {size_:>9.1f} GB" for what, size_ in _in(1e9, stage.memory)]
        text += [f"  FLOPs of a step        {sum(stage.flops.values()):.3g}"]
        text += [f"    {what:<38} {share:>9.0%}" for what, share in _shares(stage.flops)]
        text += [f"  GPU-hours              {of_stage:,.1f}, {of_stage / processes:,.1f} h on {processes} GPU(s)"]
    text += ["", f"all stages               {hours:,.1f} GPU-hours, {hours / processes:,.1f} h on {processes} GPU(s)"]
    if stages:
        proposal = proposed_checkpointing(experiment, sizes, sets, assumptions.fill.value, card.memory)
        text += [f"gradient_checkpointing   proposed for {gpu}: {proposal}"]
    share = assumptions.generation.value
    stated = evaluation.seconds_per_picture(experiment, size.unet, card.flops, share)
    why = f"assumed: a {gpu} reaches {share:.0%} of its speed" if seconds_per_picture is None else "measured, as given"
    text += ["", *evaluation.lines(experiment, seconds_per_picture or stated, why)]
    used = disk(experiment, size, stages, assumptions)
    text += ["", f"disk                     {sum(used.values()) / 1e12:.3f} TB"]
    text += [f"    {what:<38} {size_:>9.1f} GB" for what, size_ in _in(1e9, used)]
    drawing = experiment.evaluation.drawing
    text += [
        "",
        f"drawing a picture        {2 * drawing.steps * size.unet:.3g} FLOPs: {drawing.steps} steps, twice the "
        f"{size.denoiser_label}",
        "",
        f"assumed ({path})",
        f"  GPU {gpu}: {card.flops:.3g} FLOP/s in bf16, of which training reaches {utilisation:.0%}",
        f"  packed rows are filled to {assumptions.fill.value:.0%}",
        f"  a stored picture has {assumptions.picture_bytes.value:,.0f} bytes",
    ]
    for name in sets:
        about = sets[name]
        text += [f"  a document of {name}: {about.text:g} tokens of text, {about.pictures + about.shown:g} picture(s)"]
    return text


def _stage_lines(experiment: Experiment, plan: StagePlan, sets: dict[str, DocumentKind]) -> list[str]:
    public = manifest.of_experiment(experiment) if experiment.sources else {}
    text = [
        f"  trained parameters     {sum(plan.trained.values()):,} "
        f"({', '.join(f'{part} {number:,}' for part, number in plan.trained.items())})",
        f"  tokens                 {plan.step.tokens:,.0f} a step, {plan.step.tokens * plan.steps:,.0f} in all",
        f"  pictures read          {plan.step.read:,.0f} a step, {plan.step.read * plan.steps:,.0f} in all",
        f"  pictures drawn         {plan.step.drawn:,.0f} a step, {plan.step.drawn * plan.steps:,.0f} in all",
        f"  documents              {sum(plan.documents.values()) / plan.steps:,.0f} a step, "
        f"{sum(plan.documents.values()):,.0f} in all",
    ]
    for name, number in plan.documents.items():
        if name in WORLD_SETS:
            there = getattr(experiment.world.training, name)
        else:
            there = experiment.sources[name].documents or public[name].documents
        epochs = f", {number / there:.2f} epochs of {there:,}" if there else ", size of the set unknown"
        text.append(f"    {name:<38} {number:>13,.0f}{epochs}")
    return text


def _in(unit: float, sizes: dict[str, float]) -> list[tuple[str, float]]:
    return [(what, size / unit) for what, size in sizes.items() if size]


def _shares(values: dict[str, float]) -> list[tuple[str, float]]:
    total = sum(values.values())
    return [(what, value / total) for what, value in values.items() if value]


# ---- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm plan`."""
    parser.add_argument("--config", type=Path, required=True, help="experiment file")
    parser.add_argument("--assumptions", type=Path, default=ASSUMPTIONS, help="default: %(default)s")
    parser.add_argument("--gpu", default=GPU, help="a GPU of the assumptions; default: %(default)s")
    parser.add_argument(
        "--utilisation",
        type=float,
        help="share of the GPU's speed that training reaches; default: as in the assumptions",
    )
    parser.add_argument(
        "--seconds-per-picture",
        type=float,
        help="of one GPU, measured with the experiment's sampling (its log has s/batch, benchmarks/gpu.py pictures per "
        "second); default: from the UNet's FLOPs and the assumptions",
    )


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm plan`. Raises ConfigProblem or PlanProblem for an experiment that cannot be planned."""
    experiment = load(args.config)
    assumptions = read_assumptions(args.assumptions)
    if args.gpu not in assumptions.gpus:
        raise ConfigProblem(f"--gpu {args.gpu}: {args.assumptions} knows {', '.join(assumptions.gpus)}")
    utilisation: Any = args.utilisation if args.utilisation is not None else assumptions.utilisation.value
    if not 0 < utilisation <= 1:
        raise ConfigProblem(f"--utilisation {utilisation}: should be above 0 and at most 1")
    if args.seconds_per_picture is not None and not 0 < args.seconds_per_picture < float("inf"):
        raise ConfigProblem(f"--seconds-per-picture {args.seconds_per_picture}: should be above 0")

    from dreamllm.repro.plan.architecture import build, configurations, measure  # torch, only when it is needed

    models = {experiment.model, *map(experiment.model_of, experiment.stages)}
    sizes = {model: measure(build(configurations(experiment, model=model), model)) for model in models}
    measured = args.seconds_per_picture
    print("\n".join(lines(experiment, sizes, assumptions, args.gpu, utilisation, args.assumptions, measured)))

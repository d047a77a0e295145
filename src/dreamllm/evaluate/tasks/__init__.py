"""The benchmarks, one module each. To add one, write a module here; the rest of the project asks it for:

    TASK                                facts about it (`Task` below)
    read(folder, split)                 its items, as a list for each of its sets, from its native files
    predict(job, items, header)         writes a model's prediction file: by `job.in_batches` and `job.write`, or with
                                        `parallel=False` in its TASK (`evaluate/job.py`)
    score(job, items, predictions)      {"metrics", "groups"} and, for paired comparisons, "items": {metric: scores}:
                                        one score for each item, or {id: score} where parts of items are counted
    first(items, limit)                 optional: which items `evaluation.limit` keeps, if not the first ones
    limit(settings)                     optional: another limit than `evaluation.limit`
    check(use)                          optional: what is wrong with its section in `benchmarks`
    submission(items, predictions, out) optional: writes the file that an evaluation server takes

A module is imported when its benchmark is used. Import models inside `predict` and metrics inside `score`: the digest
of the code behind predictions leaves out the functions in SCORING with their imports, that of the code behind scores
those in PREDICTING, so that a changed metric repeats no prediction.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from dreamllm.config.base import near
from dreamllm.config.benchmarks import BenchmarkUse
from dreamllm.config.experiment import Experiment
from dreamllm.config.reading import ConfigProblem
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.prompts import PromptSet, Wording

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""All benchmarks. The name of a benchmark of the emoji world is also the name of its task."""

REWRITTEN = ("draw", "draw_human", "narratives")
"""Tasks whose prompts the model may rewrite for Stable Diffusion."""
EXTERNAL = "external: a server has the answers, submit the file in results/submissions"
"""Reason of an undefined metric where the answers are not public."""

PREDICTING = ("predict", "limit")
SCORING = ("score", "submission")
"""Functions of the modules that only predictions, and only scores, depend on."""


@dataclass(frozen=True)
class Task:
    """Facts about a benchmark.

    files: its files, without the images; {split} stands for dev or test
    predictions: suffix of its prediction files
    settings: sections of `evaluation` that its predictions depend on
    in_world, in_public_sets: whether the emoji world has it, and whether public sets can be in its format
    foundations: foundation models that can run it, beside every trained DreamLLM
    instruments: foundation models that measure generated images
    keys: keys of its section in `benchmarks` that it uses, beside task and source
    wording: prompts of the official evaluation code, by public set; "" for all others
    image_metrics: `evaluation.pictures` measures its generated images by FID and CLIP score
    timed: predictions measure time, so nothing else may run at the same time
    parallel: several processes can divide its items (`evaluate/parallel.py`)
    judged: a language model (`answer_judge`) scores its answers
    detects: an object detector (`evaluation.detection`) scores its images
    submission: suffix of the file that an evaluation server takes
    """

    files: tuple[str, ...] = ()
    predictions: Literal["jsonl", "tar", "safetensors"] = "jsonl"
    settings: tuple[str, ...] = ("text",)
    in_world: bool = True
    in_public_sets: bool = True
    foundations: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    wording: Mapping[str, Wording] = field(default_factory=lambda: {"": Wording()})
    image_metrics: bool = False
    timed: bool = False
    parallel: bool = True
    judged: bool = False
    detects: bool = False
    submission: str = ""

    def wording_of(self, source: str | None, prompts: PromptSet) -> Wording:
        """The words around images and questions of a public set: its own, vizwiz's for vizwiz_test, or all others'."""
        own = [name for name in self.wording if name and source and (source == name or source.startswith(f"{name}_"))]
        return Wording() if prompts == "emoji" else self.wording[own[0] if own else ""]


def module(name: str) -> ModuleType:
    """The module of a benchmark. Raises ConfigProblem for an unknown name, with near matches."""
    if name not in NAMES:
        raise ConfigProblem(f"no benchmark {name!r}{near(name, [*NAMES])}")
    return import_module(f"{__name__}.{name}")


def about(name: str) -> Task:
    """The facts about a benchmark. Raises ConfigProblem as `module`."""
    return module(name).TASK


def files(name: str, folder: Path, split: str) -> list[Path]:
    """The files of a benchmark, without its images."""
    return [folder / file.format(split=split) for file in about(name).files]


def load(name: str, folder: Path, split: str, limit: int | None = None) -> list[Any]:
    """The items of a benchmark in file order; `limit` keeps the first items of each of its sets.

    Raises BenchmarkProblem for anything missing, malformed, doubled or dangling, and for a set without items.
    """
    task = module(name)
    first = getattr(task, "first", lambda items, limit: items[:limit])
    sets = task.read(folder, split)
    if not all(sets):
        raise BenchmarkProblem(folder, f"{name}, split {split}", "a set has no items")
    return [item for items in sets for item in first(items, limit)]


def check(experiment: Experiment, path: str | Path) -> None:
    """Check the benchmarks that an experiment names. Raises ConfigProblem with a line for each problem.

    path: of the configuration, for the message
    """
    problems = [line for name, use in experiment.benchmarks.items() for line in _problems_of(name, use, experiment)]
    for index, evaluation in enumerate(experiment.evaluations):
        where = f"evaluations[{index}].benchmarks"
        for name in evaluation.benchmarks:
            if name not in experiment.benchmarks and not (name in NAMES and about(name).in_world):
                problems.append(f"{where}: no benchmark {name!r}{near(name, [*NAMES, *experiment.benchmarks])}")
            elif evaluation.rewrite and experiment.benchmark(name).task not in REWRITTEN:
                problems.append(f"{where}: rewrite works for the tasks {', '.join(REWRITTEN)} only, not for {name}")
        if "in_context" in evaluation.benchmarks and not experiment.world.benchmarks.in_context:
            problems.append(f"{where}: there is no in_context, world.benchmarks.in_context is 0")
    if problems:
        raise ConfigProblem("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems]))


def _problems_of(name: str, use: BenchmarkUse, experiment: Experiment) -> list[str]:
    where = f"benchmarks.{name}"
    if use.task not in NAMES:
        return [f"{where}.task: no benchmark {use.task!r}{near(use.task, [*NAMES])}"]
    task, problems = about(use.task), []
    if name in NAMES and about(name).in_world:
        problems.append(f"{where}: this name is taken by the emoji world")
    if use.source and not task.in_public_sets:
        problems.append(f"{where}.source: the task {use.task} is of the emoji world only")
    if not use.source and not task.in_world:
        problems.append(f"{where}.source: missing; the emoji world has no {use.task}")
    if use.source and experiment.evaluation.split != "test":
        split = experiment.evaluation.split
        problems.append(f"{where}: public sets are placed as split test, evaluation.split is {split}")
    own = experiment.sources.get(use.source or "")
    if own and own.format == "prompts" and experiment.evaluation.pictures:
        problems.append(f"{where}: evaluation.pictures compares with real images, and these prompts have none")
    for key in sorted(use.model_fields_set - {"task", "source", *task.keys}):
        if getattr(use, key) != type(use).model_fields[key].default:
            problems.append(f"{where}.{key}: the task {use.task} takes no {key}")
    return problems + [f"{where}.{line}" for line in getattr(module(use.task), "check", lambda use: [])(use)]

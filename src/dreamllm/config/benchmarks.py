"""The sections of an experiment file that are about benchmarks besides the emoji world's own (`experiment.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Name, Section
from dreamllm.config.sources import Service

WORLD_TASKS = ("captions", "vqa", "pope", "draw", "narratives", "stories", "language", "illustrations", "latency")
WORLD_TASKS += ("in_context", "attention")
"""Benchmarks of the emoji world; each is also the name of its task."""
DRAWN = ("draw", "narratives", "illustrations")
"""Tasks with one picture per item, which `evaluation.pictures` measures (docs/pictures.md)."""
Task = Literal[
    "captions",
    "vqa",
    "pope",
    "draw",
    "narratives",
    "stories",
    "language",
    "illustrations",
    "latency",
    "in_context",
    "attention",
    "mmbench",
    "mm_vet",
    "harness",
]


class BenchmarkUse(Section):
    """A benchmark that `evaluations` may name besides those of the emoji world: a public set, or questions of the world
    with worked examples before them (docs/evaluation.md)."""

    task: Task
    """How it is read, asked and scored. harness: questions in text alone, by lm-evaluation-harness."""
    source: Name | None = None
    """Evaluation set in data/sources.yaml, whose prompts come along; null = the emoji world's own items."""
    shots: list[Annotated[int, Field(ge=0)]] = []
    """Numbers of worked examples before each question. Task vqa: every question is asked with each of these numbers;
    task harness: one number at most; [] = no examples."""
    shots_from: Name | None = None
    """Task vqa: set in data/sources.yaml that the examples are from; null = the emoji world's other split."""
    shots_by: Literal["random", "similarity"] = "random"
    """Task vqa: which examples: drawn for each question, or those whose pictures are the most like its own to CLIP, the
    likest last (RICES, arXiv 2109.05014)."""
    harness_task: str | None = None
    """Task harness: name of the task or group in lm-evaluation-harness."""


class AnswerJudge(Service):
    """The language model that judges answers to MM-Vet, and reads answers to MMBench that no rule can read. Without an
    endpoint MM-Vet has no score, and an answer to MMBench that no rule can read is wrong."""

    judgings: Count = 5
    """How often each answer to MM-Vet is judged; the standard deviation is over these (MM-Vet's paper: 5)."""


def problems_of(name: str, use: BenchmarkUse, split: str) -> list[str]:
    """What does not fit together in a benchmark's section."""
    where, problems = f"benchmarks.{name}", []
    if name in WORLD_TASKS:
        problems.append(f"{where}: this name is taken by the emoji world")
    if use.source and use.task in ("narratives", "stories", "language", "in_context"):
        problems.append(f"{where}.source: the task {use.task} is of the emoji world only")
    if not use.source and use.task not in WORLD_TASKS:
        problems.append(f"{where}.source: missing; the emoji world has no {use.task}")
    if use.source and split != "test":
        problems.append(f"{where}: public sets are placed as split test, evaluation.split is {split}")
    if use.task == "harness" and len(use.shots) > 1:
        problems.append(f"{where}.shots: the task harness takes one number, make a benchmark of each")
    if len(set(use.shots)) < len(use.shots):
        problems.append(f"{where}.shots: a number stands there twice")
    if use.shots and use.task not in ("vqa", "harness"):
        problems.append(f"{where}.shots: the task {use.task} takes no examples")
    if use.task == "vqa" and use.shots and bool(use.source) != bool(use.shots_from):
        problems.append(f"{where}.shots_from: questions and examples are both of public sets, or both of the world")
    if use.shots_from and not (use.task == "vqa" and use.shots):
        problems.append(f"{where}.shots_from: without examples before the questions it means nothing")
    if bool(use.harness_task) != (use.task == "harness"):
        problems.append(f"{where}.harness_task: goes together with the task harness")
    return problems

"""The sections of an experiment file that are about benchmarks besides the emoji world's own (`experiment.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Name, Section
from dreamllm.config.sources import Service


class BenchmarkUse(Section):
    """A benchmark that `evaluations` may name besides those of the emoji world: a public set, or questions of the world
    with worked examples before them (docs/evaluation.md)."""

    task: Name
    """How it is read, asked and scored: a module in src/dreamllm/evaluate/tasks. harness: questions in text alone, by
    lm-evaluation-harness."""
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

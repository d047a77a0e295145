"""The sections of an experiment file about benchmarks in addition to the emoji world's (`experiment.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Name, Number, Section, Unique
from dreamllm.config.sources import Service


class OwnWording(Section):
    """Your own prompt: system, image, question and instruction, after which the answer begins with `answer`."""

    system: str = ""
    """Text before the image; "" = none."""
    instruction: str = ""
    """Text behind the question, or behind the image where there is no question; "" = none."""
    answer: str = ""
    """Beginning of the answer, which the model continues; "" = none."""


class BenchmarkUse(Section):
    """A benchmark in addition to those of the emoji world: a public set, your own, or few-shot questions of the world
    (docs/evaluation.md, docs/your-data.md)."""

    task: Name
    """How it is read, asked and scored: a module in src/dreamllm/evaluate/tasks. harness: questions in text alone, by
    lm-evaluation-harness."""
    source: Name | None = None
    """Evaluation set in data/sources.yaml, which also decides the prompts, or your own of the section `sources`; null =
    the emoji world's items."""
    shots: Annotated[list[Number], Unique] = []
    """Numbers of few-shot examples. Task vqa: every question is asked with each of these numbers of examples; task
    harness: one number at most. [] = zero-shot."""
    shots_from: Name | None = None
    """Task vqa: set in data/sources.yaml from which the examples are; null = the emoji world's other split."""
    shots_by: Literal["random", "similarity"] = "random"
    """Task vqa: how the examples of a question are selected: at random, or by CLIP similarity of their pictures to its
    own, with the most similar example last (RICES, arXiv 2109.05014)."""
    picture: Literal["own", "none", "other"] = "own"
    """Tasks vqa, pope and mmbench: which image a question is asked about. none and other, the image of another item,
    are controls: what is answered right without the image does not show that it was read."""
    wording: OwnWording | None = None
    """Tasks captions, vqa, pope, mmbench and mm_vet: your own prompt instead of the one that `evaluation.prompts`
    chooses."""
    harness_task: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """Task harness: name of the task or group in lm-evaluation-harness."""


class AnswerJudge(Service):
    """The language model that grades answers to MM-Vet, and matches answers to the options of MMBench where rules
    cannot. Without an endpoint MM-Vet has no score, and an answer to MMBench that rules cannot match counts as
    wrong."""

    judgings: Count = 5
    """Number of times that each answer to MM-Vet is graded; the standard deviation is over these (MM-Vet's paper:
    5)."""

"""What `predict` and `score` of a benchmark (`tasks/`) are given: the model, the files, the settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dreamllm.config.benchmarks import BenchmarkUse
from dreamllm.config.evaluation import EvaluationSettings
from dreamllm.config.experiment import Experiment
from dreamllm.config.pictures import Detection
from dreamllm.emoji.scenes import Scene
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, pictures_of
from dreamllm.evaluate.prompts import PromptSet, Wording
from dreamllm.evaluate.tasks import Task
from dreamllm.progress import counted

if TYPE_CHECKING:
    import torch

    from dreamllm.emoji.foundations.scene_classifier import SceneClassifier
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor
    from dreamllm.sources.services.chat import Chat

Item = TypeVar("Item")


@dataclass(frozen=True)
class PredictionJob:
    """One model on one benchmark.

    foundations: folder with llm/, clip/ and sd/.  checkpoints: of the stages that make up the model, in loading order
    folder: of the benchmark's files.  examples: folder of the files with the worked examples, if it is another
    sample: which of several images per prompt, from 0.  work: folder in which a killed run finds its images again
    """

    experiment: Experiment
    use: BenchmarkUse
    task: Task
    model: str
    foundations: Path
    checkpoints: Sequence[Path]
    folder: Path
    split: str
    out: Path
    examples: Path | None = None
    sample: int = 0
    work: Path | None = None

    @property
    def settings(self) -> EvaluationSettings:
        """The experiment's section `evaluation`."""
        return self.experiment.evaluation

    @property
    def prompts(self) -> PromptSet:
        """Which wording is used."""
        return self.settings.prompts

    @property
    def pictures(self) -> Pictures:
        """The images of the split."""
        return pictures_of(self.folder, self.split)

    @property
    def wording(self) -> Wording:
        """The words around images and questions."""
        if self.use.wording:
            return Wording(**self.use.wording.model_dump())
        return self.task.wording_of(self.use.source, self.prompts)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        from dreamllm.model.precision import DTYPES, resolve

        return DTYPES[resolve(self.experiment.precision)]

    def load(self) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
        """The DreamLLM made of the checkpoints, ready for inference."""
        from dreamllm.train.checkpoint import load_for_inference

        return load_for_inference(self.foundations, self.checkpoints, self.dtype)


@dataclass(frozen=True)
class ScoringJob:
    """The predictions of one model on one benchmark.

    header: of the prediction file.  folder: of the benchmark's files.  foundations: folder with judge/ and clip/
    chat: the language model that scores answers, `judgings` times each; None without one
    detection: what finds objects in generated images; None without one
    """

    header: dict[str, Any]
    folder: Path
    foundations: Path
    chat: Chat | None = None
    judgings: int = 1
    detection: Detection | None = None

    @property
    def public(self) -> bool:
        """Whether the benchmark is of a public set, or has settings of its own."""
        return bool(self.header.get("protocol", {}).get("benchmark"))

    @property
    def pictures(self) -> Pictures:
        """The images of the split."""
        return pictures_of(self.folder, self.header["split"])

    def scene_classifier(self, expected: Sequence[Scene], part: str = "judge") -> SceneClassifier:
        """Load a scene classifier. Raises BenchmarkProblem when an expected object is not among its classes.

        part: "judge", or "judge2", the independent second one
        """
        from dreamllm.emoji.foundations import scene_classifier

        folder = self.foundations / part
        classifier = scene_classifier.load(folder)
        if unknown := sorted({name for scene in expected for name, _ in scene.objects} - set(classifier.names)):
            what = (
                f"cannot recognise {', '.join(unknown)}: train the foundations on this world, or use fewer pictograms"
            )
            raise BenchmarkProblem(folder, "", what)
        return classifier


def record(id_: str, prompt: str, seed: int) -> dict[str, Any]:
    """The first fields of every record of a prediction file."""
    return {"id": id_, "prompt": prompt, "seed": seed}


def batches(items: Sequence[Item], size: int, what: str) -> Iterator[Sequence[Item]]:
    """The items in batches, with their progress on stderr."""
    for number in counted(what, math.ceil(len(items) / size), "batch"):
        yield items[number * size : (number + 1) * size]

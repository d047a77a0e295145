"""What `predict` and `score` of a benchmark (`tasks/`) are given: the model, the files, the settings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from dreamllm.atomic import new_file
from dreamllm.config.benchmarks import BenchmarkUse
from dreamllm.config.evaluation import EvaluationSettings
from dreamllm.config.experiment import Experiment
from dreamllm.config.pictures import Detection
from dreamllm.emoji.scenes import Scene
from dreamllm.evaluate import predictions
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, pictures_of
from dreamllm.evaluate.parallel import ALONE, Processes
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
    sample: which of several images per prompt, from 0.  work: folder of finished batches, of this very job: a killed
    job finds them again.  processes: among which the batches are divided
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
    work: Path
    examples: Path | None = None
    sample: int = 0
    processes: Processes = ALONE

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

    def load(self, *, compiled: bool = True) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
        """The DreamLLM made of the checkpoints, ready for inference.

        compiled: compile the denoiser's blocks with torch.compile where `machine.compile` says so
        """
        from dreamllm.model.sampling import compile_denoiser
        from dreamllm.train.checkpoint import load_for_inference

        model, processor = load_for_inference(self.foundations, self.checkpoints, self.dtype)
        if compiled and self.experiment.machine.compile:
            compile_denoiser(model)
        return model, processor

    def in_batches(
        self, name: str, items: Sequence[Item], size: int, predict: Callable[[Sequence[Item]], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """The records of all items in their order, `predict`ed in batches of `size`, each by one of the processes.

        name: of these batches among those of the job, and of their progress on stderr
        predict: a batch's records, of what JSON can hold; called for the batches of this process that are not stored
        """
        files = [self.work / f"{name}-{size}" / f"{number:06d}.json" for number in range(math.ceil(len(items) / size))]
        mine = [(files[number], batch) for number, batch in self.processes.share(items, size)]
        missing = [(file, batch) for file, batch in mine if not file.exists()]
        for number in counted(name, len(missing), "batch", disable=not self.processes.is_first):
            file, batch = missing[number]
            records = json.dumps(predict(batch), allow_nan=False)
            with new_file(file) as path:
                path.write_text(records, encoding="utf-8")
        self.processes.wait()
        return [record for file in files for record in json.loads(file.read_text(encoding="utf-8"))]

    def write(
        self,
        header: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        images: Mapping[str, Image.Image | Path] | None = None,
    ) -> None:
        """Write the prediction file (`predictions.write`), in the first process."""
        if self.processes.is_first:
            predictions.write(self.out, header, records, images)


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

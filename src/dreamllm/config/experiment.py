"""The experiment file as a whole, and the checks across its sections, which are in the other modules of this package.

The docstring of a field has its meaning, unit and source; `workflow/describe.py` writes docs/configuration.md and the
JSON schema from them. No value is overridden later: the file says what runs. Imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dreamllm.config.base import (
    LONGEST_NAME,
    Count,
    Name,
    Section,
    Seed,
    Unique,
    near,
)
from dreamllm.config.benchmarks import AnswerJudge, BenchmarkUse
from dreamllm.config.evaluation import Evaluation, EvaluationSettings
from dreamllm.config.foundations import (
    FetchedFoundations,
    HubFoundations,
    ImportedFoundations,
    TrainedFoundations,
)
from dreamllm.config.machine import Machine
from dreamllm.config.sources import InstructionWriter, SourceSettings
from dreamllm.config.stages import (
    DRAWING_OPTIONS,
    MODEL_OPTIONS,
    QUERY_PARTS,
    ConnectorLayers,
    SdFinetuning,
    Stage,
)
from dreamllm.config.world import WORLD_SETS, World

FOUNDATION_MODELS = ("llm", "sd", "sd_finetuned")
"""Models that can be evaluated and are no stage: the language model, Stable Diffusion, and its fine-tuned version."""


RELEASED = "released"  # name, as of a stage, of the checkpoint that `foundations.source: import` makes


class Model(Section):
    """What DreamLLM adds to its foundations."""

    num_dream_queries: Count = 64
    """Dream queries per picture (paper: 64)."""
    connector_layers: ConnectorLayers = 0
    """Condition projector: 0 = linear, as in the paper; n = a bidirectional transformer of n layers and a two-layer MLP
    (MetaQuery, arXiv 2504.06256: 24), for language models that stay frozen (docs/parts.md)."""
    vision_feature_layer: Annotated[int, Field(ge=-1000, le=1000)] = -2
    """Layer of the eye (`foundations.clip`) whose patch features, without class and register tokens, are the input of
    the visual projector (official code: -2)."""
    visual_projector_type: Literal["linear", "mlp"] = "linear"
    """Projector from the eye to the language model: linear (paper), or mlp, that of LLaVA-1.5: two layers with GELU."""
    template: Literal["vicuna_v1.1", "plain", "tokenizer"] = "vicuna_v1.1"
    """Conversation template (paper: Vicuna v1.1). tokenizer: the chat template of the language model's tokenizer."""
    language_model: Name = "llm"
    """Folder of the language model in that of the foundations."""
    decoder: Name = "sd"
    """Folder of the diffusion decoder in that of the foundations."""
    boundary_tokens: bool = False
    """Put a lone word-boundary token before and after each picture of a user's turn (official code: true, by the way in
    which its tokenizer splits text)."""

    @model_validator(mode="after")
    def _has_one_template(self) -> Model:
        if self.boundary_tokens and self.template == "tokenizer":
            raise ValueError("boundary_tokens are of the authors' template; set one of them")
        return self


class Experiment(Section):
    """A whole experiment."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=LONGEST_NAME)]
    """Name of the folders of checkpoints, predictions and metrics; each experiment needs its own."""
    seed: Seed = 0
    """Seed of all random numbers of training."""
    seeds: Annotated[list[Seed], Unique] = []
    """Train and evaluate once with each of these seeds, in runs called NAME_SEED; the tables have means over the runs,
    with intervals that include the variance between seeds. [] = one run with `seed`. All runs share world and
    foundations."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of training and predictions. bf16: matrix products and frozen weights in bfloat16, trained weights and
    optimiser state in fp32. auto: bf16 on a GPU, and on a CPU that has instructions for it (AVX512-BF16, AMX); fp32 on
    other CPUs. Checkpoints and predictions record which of the two it was."""
    machine: Machine = Machine()
    world: World = World()
    sources: dict[Name, SourceSettings] = {}
    """Public data sets by their names in data/sources.yaml (docs/sources.md), and your own by any other name
    (docs/your-data.md), with their settings."""
    instruction_writer: InstructionWriter = InstructionWriter()
    foundations: Annotated[
        FetchedFoundations | TrainedFoundations | HubFoundations | ImportedFoundations, Field(discriminator="source")
    ]
    model: Model = Model()
    stages: dict[Name, Stage] = {}
    """Training stages by name; each must follow the stages it starts from."""
    sd_finetuned: SdFinetuning | None = None
    """Fine-tuned Stable Diffusion, the baseline of the paper's Table 2; null = not trained."""
    evaluation: EvaluationSettings = EvaluationSettings()
    benchmarks: dict[Name, BenchmarkUse] = {}
    """Benchmarks in addition to the emoji world's, by the names that `evaluations` and the tables use."""
    answer_judge: AnswerJudge = AnswerJudge()
    evaluations: list[Evaluation] = []

    @model_validator(mode="after")
    def _names_exist(self) -> Experiment:
        problems = []
        earlier: list[str] = [RELEASED] if self.foundations.source == "import" else []
        if self.instruments is not self.foundations and self.instruments.folder == self.foundations.folder:
            problems.append("foundations.folder: the same as instruments.folder; each of them needs its own")
        sets = [*WORLD_SETS, *self.sources]
        problems += [
            f"sources.{name}: this name is taken by the emoji world" for name in WORLD_SETS if name in self.sources
        ]
        for key in (self.sd_finetuned and self.sd_finetuned.mixture) or {}:
            if key not in sets:
                problems.append(f"sd_finetuned.mixture: no shard set {key!r}{near(key, sets)}")
        for name, stage in self.stages.items():
            for key in stage.mixture:
                if key not in sets:
                    problems.append(f"stages.{name}.mixture: no shard set {key!r}{near(key, sets)}")
                if key in WORLD_SETS and not getattr(self.world.training, key):
                    problems.append(f"stages.{name}.mixture: there are no {key}, world.training.{key} is 0")
            if stage.lora and "language_model" not in stage.trains:
                problems.append(f"stages.{name}.lora: adapters train the language_model, which is not in trains")
            if name in (*FOUNDATION_MODELS, RELEASED):
                problems.append(f"stages.{name}: this name is taken by a model that is not trained in stages")
            for parent in stage.init:
                if parent not in earlier:
                    problems.append(f"stages.{name}.init: no earlier stage {parent!r}{near(parent, earlier)}")
            earlier.append(name)
        foundations = [name for name in FOUNDATION_MODELS if name != "sd_finetuned" or self.sd_finetuned]
        models = [evaluation.model for evaluation in self.evaluations]
        for index, evaluation in enumerate(self.evaluations):
            where = f"evaluations[{index}]"
            if not evaluation.stages and evaluation.model not in [*earlier, *foundations]:
                hint = near(evaluation.model, [*earlier, *foundations])
                problems.append(f"{where}.model: no model {evaluation.model!r}{hint}")
            for stage in evaluation.stages:
                if stage not in earlier:
                    problems.append(f"{where}.stages: no stage {stage!r}{near(stage, earlier)}")
            if evaluation.model in models[:index]:
                problems.append(f"{where}.model: {evaluation.model} is listed twice; list its benchmarks in one place")
            if (evaluation.seeds or 1) > max(1, len(self.seeds)):
                problems.append(f"{where}.seeds: {evaluation.seeds}, more than the experiment has ({len(self.seeds)})")
            if evaluation.rewrite and (evaluation.stages or [evaluation.model])[0] in FOUNDATION_MODELS:
                problems.append(f"{where}.rewrite: {evaluation.model} was trained on no instructions to rewrite by")
        if problems := problems or self._unfit_options():  # of names that are all there
            raise ValueError("\n".join(problems))
        return self

    def with_seed(self, seed: int) -> Experiment:
        """The run of another seed: it trains with other random numbers, and draws from other noise."""
        shift = 1_000_000 * (seed - self.seed)  # more than a benchmark has pictures, so that no noise comes twice
        evaluation = self.evaluation.model_copy(update={"seed": self.evaluation.seed + shift})
        return self.model_copy(update={"seed": seed, "evaluation": evaluation})

    def runs(self) -> dict[str, Experiment]:
        """The runs by the names of their folders: one called like the experiment, or one of each of its `seeds`.

        A run has those evaluations that are of its seed.
        """
        several = {}
        for index, seed in enumerate(self.seeds):
            evaluations = [one for one in self.evaluations if one.seeds is None or index < one.seeds]
            several[f"{self.name}_{seed}"] = self.with_seed(seed).model_copy(update={"evaluations": evaluations})
        return several or {self.name: self}

    @property
    def instruments(self) -> FetchedFoundations | TrainedFoundations:
        """The emoji world's foundation models, which measure: DreamLLM's own, or those beside public ones."""
        if isinstance(self.foundations, HubFoundations | ImportedFoundations):
            return self.foundations.instruments
        return self.foundations

    def benchmark(self, name: str) -> BenchmarkUse:
        """What a benchmark is: its section in `benchmarks`, or else the emoji world's task of that name."""
        return self.benchmarks.get(name) or BenchmarkUse(task=name)

    def model_of(self, stage: str) -> Model:
        """The options of a stage's model: the section `model`, with those that the stage has itself."""
        own = {} if stage == RELEASED else {key: getattr(self.stages[stage], key) for key in MODEL_OPTIONS}
        return self.model.model_copy(update={key: value for key, value in own.items() if value is not None})

    def folders_of(self, model: str) -> list[str]:
        """Folders of the foundations that an evaluated model, or a stage, is built from."""
        if model in FOUNDATION_MODELS:
            return [model.removesuffix("_finetuned")]
        stages = [model] if model in self.stages else self.stages_of(model)
        options = self.model_of(next((stage for stage in reversed(stages) if self._trains_queries(stage)), stages[-1]))
        return [options.language_model, "clip", options.decoder]

    def stages_of(self, model: str) -> list[str]:
        """Stages whose checkpoints make up an evaluated model, in loading order; none for a foundation model."""
        stages = next((e.stages for e in self.evaluations if e.model == model), []) or [model]
        if stages == ["sd_finetuned"]:
            return stages
        return [] if stages[0] in FOUNDATION_MODELS else self.lineage(*stages)

    def _unfit_options(self) -> list[str]:
        """A line for each checkpoint that is loaded into a model with other options than its own."""
        loaded = {f"stages.{name}.init": (name, self.lineage(*stage.init)) for name, stage in self.stages.items()}
        others = [
            f"evaluations[{index}].rewrite: Stable Diffusion draws rewritten prompts; {one.model} has another decoder"
            for index, one in enumerate(self.evaluations)
            if one.rewrite and self.folders_of(one.model)[-1] != "sd"
        ]
        for index, evaluation in enumerate(self.evaluations):
            stages = self.lineage(*(s for s in evaluation.stages or [evaluation.model] if s not in FOUNDATION_MODELS))
            if drawn_by := [stage for stage in stages if self._trains_queries(stage)]:
                loaded[f"evaluations[{index}]"] = (drawn_by[-1], stages)
        return others + [
            f"{where}: {stage} was trained with {key} {was}, {name} has {wanted}"
            for where, (name, stages) in loaded.items()
            for stage in stages
            for key in (MODEL_OPTIONS if self._trains_queries(stage) else {*MODEL_OPTIONS} - {*DRAWING_OPTIONS})
            if (was := getattr(self.model_of(stage), key)) != (wanted := getattr(self.model_of(name), key))
        ]

    def _trains_queries(self, stage: str) -> bool:
        return stage == RELEASED or not {*QUERY_PARTS}.isdisjoint(self.stages[stage].trains)

    def lineage(self, *stages: str) -> list[str]:
        """Stages whose checkpoints make up the model of `stages`, in loading order.

        A checkpoint all of whose parts are trained again later in the chain is left out. Adapters are no such training
        of the language model: they add to what was there.
        """
        order: list[str] = []

        def visit(name: str) -> None:
            for parent in [] if name == RELEASED else self.stages[name].init:
                visit(parent)
            if name not in order:
                order.append(name)

        for stage in stages:
            visit(stage)
        needed: list[str] = []
        covered: set[str] = set()
        for name in reversed(order):
            parts = {name} if name == RELEASED else set(self.stages[name].trains)
            if not parts <= covered:
                needed.insert(0, name)
            covered |= parts - ({"language_model"} if name != RELEASED and self.stages[name].lora else set())
        return needed

"""What may stand in an experiment file: one class per section, one documented field per key.

Every field carries its meaning, unit and source; `workflow/describe.py` writes the JSON schema and
docs/configuration.md from them. Nothing is computed at import and nothing is overridden later: what the file
says is what runs. Imports neither torch nor transformers.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dreamllm.sections.base import Count, Name, Number, Positive, Section, Share
from dreamllm.sections.benchmarks import WORLD_TASKS, AnswerJudge, BenchmarkUse, problems_of
from dreamllm.sections.foundations import (
    FetchedFoundations,
    HubFoundations,
    ImportedFoundations,
    Recipe,
    TrainedFoundations,
)
from dreamllm.sections.machine import Machine
from dreamllm.sections.pictures import Attention, Latency, PictureProtocol
from dreamllm.sections.sources import InstructionWriter, SourceUse

Part = Literal["language_model", "visual_projector", "dream_queries", "condition_projector", "unet"]
WORLD_SETS = ("pairs", "stories", "instructions", "text", "contexts")
"""Shard sets of the emoji world. A mixture names them, or sets of the section `sources`."""

FOUNDATION_MODELS = ("llm", "sd", "sd_finetuned")
"""Models that are evaluated without being a stage: the language model, Stable Diffusion, and it fine-tuned."""

OF_THE_QUERIES = ("dream_queries", "condition_projector")
"""Parts that are trained for one number of dream queries."""

RELEASED = "released"  # the checkpoint that `foundations.source: import` makes, named like a stage


class WorldTraining(Section):
    """Number of training documents per shard set."""

    pairs: Count = 12000
    """Pictures with a caption."""
    stories: Count = 4000
    """Interleaved stories, the scene changes step by step."""
    instructions: Count = 6000
    """Drawing, describing and question-answering instructions."""
    text: Count = 12000
    """Text-only documents."""
    contexts: Number = 0
    """Pictures, a sentence and the picture that follows from both: editing, subject-driven, compositional; 0 = none."""


class WorldBenchmarks(Section):
    """Number of benchmark items in each of the splits dev and test, on scenes that no training document holds."""

    pictures: Count = 240
    """Pictures with five reference captions each; the questions of VQA and POPE are asked about them."""
    draw: Count = 240
    """Prompts to draw, and as many narratives of the same pictures."""
    stories: Count = 100
    """Openings of stories to go on with in text and pictures."""
    language: Count = 200
    """Text-only items of each kind, PIQA and BoolQ."""
    in_context: Number = 0
    """Pictures to draw from other pictures and a sentence (docs/figures.md); 0 = none."""


class World(Section):
    """The emoji world: documents and benchmarks made of OpenMoji pictograms."""

    folder: str = "data/emoji"
    """Where it is written. Experiments with the same world may share a folder."""
    seed: int = 0
    """Everything in the world follows from this number."""
    picture_side: Count = 48
    """Width and height of a picture in pixels."""
    pictograms: Annotated[int, Field(ge=6, le=24)] = 16
    """Different objects, the first so many of those in src/dreamllm/data/emoji.py. Foundations know those of the world
    that they were trained on."""
    training: WorldTraining = WorldTraining()
    benchmarks: WorldBenchmarks = WorldBenchmarks()


class Model(Section):
    """What DreamLLM adds to its foundations."""

    num_dream_queries: Count = 64
    """Dream queries per picture (paper: 64)."""
    vision_feature_layer: int = -2
    """Layer of CLIP whose patch features are read, without CLS (official code: -2)."""
    template: Literal["vicuna_v1.1", "plain"] = "vicuna_v1.1"
    """How a conversation is written down (paper: Vicuna v1.1)."""


class LossWeights(Section):
    """Weights of the losses (official code: language 1 and diffusion 10)."""

    language: Annotated[float, Field(ge=0)] = 1.0
    diffusion: Annotated[float, Field(ge=0)] = 10.0
    alignment: Annotated[float, Field(ge=0)] = 0.0
    """Of regressing the conditions onto CLIP's features of the picture to draw: for arms of comparison (paper Figure 1
    and last row of Table 3, docs/training.md); 0 = off."""


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685) on the linear layers of the language model, which itself stays as it is.

    Its embeddings and its head are trained whole, since the special tokens begin as random numbers."""

    rank: Count = 64
    """Rank of the adapters."""
    alpha: Positive = 128
    """Scale: what an adapter adds is multiplied by alpha / rank."""


class Stage(Section):
    """One training stage. Defaults are the official code's, where it has the option."""

    init: list[Name] = []
    """Earlier stages whose trained parts are loaded, in order; [] = the foundations alone."""
    trains: Annotated[list[Part], Field(min_length=1)]
    """Parts that are trained, all others are frozen. CLIP and VAE always are, and in the paper the UNet, too (section
    3.2); an arm that regresses conditions onto CLIP trains it in a second stage, as Emu does."""
    lora: Lora | None = None
    """Train the language model through low-rank adapters; null = all of it, as the paper does."""
    mode: Literal["comprehension", "creation", "joint"]
    """comprehension: pictures are read; creation: they are drawn; joint: both (paper Table 3)."""
    mixture: Annotated[dict[Name, Positive], Field(min_length=1)]
    """Weight of each shard set: pairs, stories, instructions, text and contexts of the emoji world, and those of
    `sources`. Weights need not sum to one."""
    read_share: Share = 0.5
    """Share of the pairs that are read in joint mode; the others are drawn (official code: 0.5)."""
    loss_weights: LossWeights = LossWeights()
    steps: Count
    """Optimiser steps."""
    rows_per_batch: Count
    """Packed rows per optimiser step, over all devices."""
    context: Count
    """Tokens per row."""
    learning_rate: Positive
    """Peak learning rate; linear warm-up, cosine to zero."""
    warmup_ratio: Share = 0.003
    """Share of the steps that warm up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW's two decay rates."""
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient."""
    condition_dropout: Share = 0.0
    """Share of drawn pictures whose condition is the null condition (released: 0; recommended there: 0.1)."""
    snr_gamma: Positive | None = None
    """Gamma of min-SNR weighting (arXiv 2303.09556); null = off."""
    noise_offset: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the offset noise; 0 = off."""
    input_perturbation: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the input perturbation (arXiv 2301.11706); 0 = off."""
    stratified_timesteps: bool = False
    """Spread the timesteps of a batch evenly over the noise schedule: the same loss on average, with less noise."""
    timestep_shift: Positive = 1.0
    """Above 1, pictures are noised more often strongly than weakly (arXiv 2403.03206); 1 = evenly, as in the paper."""
    precompute: bool = False
    """Take all pictures of the mixture through CLIP and the VAE once, before the first step, and keep what they make of
    them on disk. Pays where a picture is met more than once, by this stage or by others (docs/training.md)."""
    num_dream_queries: Count | None = None
    """Dream queries of this stage's model, for arms with fewer or more (paper Table 9a); null = `model`'s. Stages
    that it starts from need the same, unless they train neither dream_queries nor condition_projector."""


class SdFinetuning(Recipe):
    """Baseline row of the paper's Table 2: Stable Diffusion fine-tuned on the same pairs with its own text encoder."""

    condition_dropout: Share = 0.1
    """Share of captions replaced by the empty caption."""


class TextSampling(Section):
    """How answers and captions are written."""

    num_beams: Count = 1
    """Beams of the search, 1 = greedy (official code: 5)."""
    max_new_tokens: Count = 48
    """Longest answer in tokens."""
    batch_size: Count = 32
    """Items at a time; results do not depend on it."""


class Drawing(Section):
    """How pictures are drawn."""

    scheduler: Annotated[str, Field(pattern=r"Scheduler$")] = "DDIMScheduler"
    """Class name of a diffusers scheduler; its noise schedule comes from the foundation."""
    steps: Count = 25
    """Denoising steps per picture (official code: 150 for COCO FID)."""
    guidance: Annotated[float, Field(ge=1)] = 2.0
    """Scale of classifier-free guidance, 1 = none (official code: 2.0 for COCO FID)."""
    batch_size: Count = 32
    """Pictures at a time; results do not depend on it."""


class StoryTelling(Section):
    """How far free interleaving goes."""

    max_new_tokens: Count = 160
    """Longest story in tokens of text."""
    max_pictures: Count = 6
    """Pictures per story at most."""


class EvaluationSettings(Section):
    """Settings of all evaluations; chosen on the split dev, reported on test."""

    split: Literal["dev", "test"] = "test"
    """Which half of the benchmarks is run."""
    limit: Count | None = None
    """Items per benchmark at most; null = all."""
    prompts: Literal["emoji", "official", "corrected"] = "emoji"
    """Wording of the questions: that of the emoji world's instructions, that of the official evaluation code, or the
    latter without its slips (docs/evaluation.md)."""
    seed: int = 42
    """Picture k of a benchmark is drawn with this number plus k."""
    text: TextSampling = TextSampling()
    drawing: Drawing = Drawing()
    stories: StoryTelling = StoryTelling()
    pictures: PictureProtocol | None = None
    """Also measure drawn pictures as the paper does (docs/pictures.md); null = not."""
    latency: Latency = Latency()
    attention: Attention = Attention()


class Evaluation(Section):
    """A model and the benchmarks it runs."""

    model: Name
    """Name in the tables: a stage; llm (the language model alone), sd (Stable Diffusion with its own text tower) or
    sd_finetuned; or a name of its own with `stages`."""
    stages: list[Name] = []
    """Stages whose checkpoints make up the model, in loading order; [] = the stage called `model`."""
    benchmarks: Annotated[list[Name], Field(min_length=1)]
    """Those of the emoji world (captions, vqa, pope, draw, narratives, stories, language, illustrations, latency,
    in_context, attention), and those of the section `benchmarks`."""
    rewrite: bool = False
    """Rewrite, then draw (paper Table 10): the model writes each prompt anew, and Stable Diffusion draws that."""


class Experiment(Section):
    """A whole experiment."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    """Names the folders of checkpoints, predictions and metrics, so that experiments do not overwrite each other."""
    seed: int = 0
    """Every random number of training follows from this number and the name of its use."""
    seeds: list[int] = []
    """Seeds of several runs of everything that is trained, named NAME_SEED: the tables then show their means, with
    intervals that cover the choice of seed. [] = one run, of `seed`. Foundations and world are made once, by theirs."""
    machine: Machine = Machine()
    world: World = World()
    sources: dict[Name, SourceUse] = {}
    """Public data sets by their names in data/sources.yaml, for mixtures and benchmarks (docs/sources.md)."""
    instruction_writer: InstructionWriter = InstructionWriter()
    foundations: Annotated[
        FetchedFoundations | TrainedFoundations | HubFoundations | ImportedFoundations, Field(discriminator="source")
    ]
    model: Model = Model()
    stages: dict[Name, Stage] = {}
    """Training stages by name, each after those it starts from."""
    sd_finetuned: SdFinetuning | None = None
    """Baseline of Table 2; null = not trained."""
    evaluation: EvaluationSettings = EvaluationSettings()
    benchmarks: dict[Name, BenchmarkUse] = {}
    """Benchmarks by the names that `evaluations` and the tables use, besides the emoji world's."""
    answer_judge: AnswerJudge = AnswerJudge()
    evaluations: list[Evaluation] = []

    @model_validator(mode="after")
    def _names_exist(self) -> Experiment:
        problems = []
        earlier: list[str] = [RELEASED] if self.foundations.source == "import" else []
        instruments = getattr(self.foundations, "instruments", None)
        if instruments and self.foundations.folder == instruments.folder:
            problems.append("foundations.folder: the same as instruments.folder; each of them needs its own")
        sets = [*WORLD_SETS, *self.sources]
        problems += [
            f"sources.{name}: this name is taken by the emoji world" for name in WORLD_SETS if name in self.sources
        ]
        for name, stage in self.stages.items():
            for key in stage.mixture:
                if key not in sets:
                    problems.append(f"stages.{name}.mixture: no shard set {key!r}{near(key, sets)}")
                if key == "contexts" and not self.world.training.contexts:
                    problems.append(f"stages.{name}.mixture: there are no contexts, world.training.contexts is 0")
            if stage.lora and "language_model" not in stage.trains:
                problems.append(f"stages.{name}.lora: adapters train the language_model, which is not in trains")
            if name in (*FOUNDATION_MODELS, RELEASED):
                problems.append(f"stages.{name}: this name is taken by a model that is not trained in stages")
            for parent in stage.init:
                if parent not in earlier:
                    problems.append(f"stages.{name}.init: no earlier stage {parent!r}{near(parent, earlier)}")
            earlier.append(name)
        for name, use in self.benchmarks.items():
            problems += problems_of(name, use, self.evaluation.split)
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
            known = [*WORLD_TASKS, *self.benchmarks]
            for name in evaluation.benchmarks:
                if name not in known:
                    problems.append(f"{where}.benchmarks: no benchmark {name!r}{near(name, known)}")
            if evaluation.model in models[:index]:
                problems.append(
                    f"{where}.model: {evaluation.model} stands there twice, list its benchmarks in one place"
                )
            if "in_context" in evaluation.benchmarks and not self.world.benchmarks.in_context:
                problems.append(f"{where}.benchmarks: there is no in_context, world.benchmarks.in_context is 0")
            tasks = [self.benchmark(name).task for name in evaluation.benchmarks if name in known]
            if evaluation.rewrite and {*tasks} - {"draw"}:
                problems.append(f"{where}.rewrite: rewritten prompts are for benchmarks of the task draw alone")
            if evaluation.rewrite and (evaluation.stages or [evaluation.model])[0] in FOUNDATION_MODELS:
                problems.append(f"{where}.rewrite: {evaluation.model} was trained on no instructions to rewrite by")
        if problems := problems or self._unfit_queries():  # of names that are all there
            raise ValueError("\n".join(problems))
        return self

    def with_seed(self, seed: int) -> Experiment:
        """The run of another seed: it trains with other random numbers, and draws from other noise."""
        shift = 1_000_000 * (seed - self.seed)  # more than a benchmark has pictures, so that no noise comes twice
        evaluation = self.evaluation.model_copy(update={"seed": self.evaluation.seed + shift})
        return self.model_copy(update={"seed": seed, "evaluation": evaluation})

    def runs(self) -> dict[str, Experiment]:
        """The runs by the names of their folders: one called like the experiment, or one of each of its `seeds`."""
        return {f"{self.name}_{seed}": self.with_seed(seed) for seed in self.seeds} or {self.name: self}

    def benchmark(self, name: str) -> BenchmarkUse:
        """What a benchmark is, by its name. Raises KeyError where there is none of that name."""
        return BenchmarkUse(task=name) if name in WORLD_TASKS else self.benchmarks[name]  # type: ignore[arg-type]

    def queries(self, stage: str) -> int:
        """Number of dream queries of a stage's model."""
        own = None if stage == RELEASED else self.stages[stage].num_dream_queries
        return own or self.model.num_dream_queries

    def _unfit_queries(self) -> list[str]:
        """A line for each checkpoint that is loaded into a model with another number of dream queries than its own."""
        loaded = {f"stages.{name}.init": (name, self.lineage(*stage.init)) for name, stage in self.stages.items()}
        for index, evaluation in enumerate(self.evaluations):
            stages = self.lineage(*(s for s in evaluation.stages or [evaluation.model] if s not in FOUNDATION_MODELS))
            if drawn_by := [stage for stage in stages if self._trains_queries(stage)]:
                loaded[f"evaluations[{index}]"] = (drawn_by[-1], stages)
        return [
            f"{where}: {stage} was trained for {self.queries(stage)} dream queries, {name} has {self.queries(name)}"
            for where, (name, stages) in loaded.items()
            for stage in stages
            if self._trains_queries(stage) and self.queries(stage) != self.queries(name)
        ]

    def _trains_queries(self, stage: str) -> bool:
        return stage == RELEASED or not {*OF_THE_QUERIES}.isdisjoint(self.stages[stage].trains)

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


def near(word: str, known: list[str]) -> str:
    """Half a sentence that names the known words most like a wrong one."""
    matches = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else f"; known: {', '.join(known) or 'none'}"

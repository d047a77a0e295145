"""Train one stage (paper section 3.2: alignment, I-GPT, supervised fine-tuning): `dreamllm train --stage NAME ...`.

What is trained, on what, and how is said by the stage's section of the configuration; this file is the loop. It knows
no tokens (`layout.py`), no losses (`model/dreamllm.py`), no order of documents (`data/mixture.py`) and no state files
(`resume.py`). One process, one device; fp32 on a CPU, bf16 autocast with fp32 weights on a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dreamllm import config, provenance
from dreamllm.data import shards
from dreamllm.data.batches import Stream, prefetch, start
from dreamllm.data.mixture import Mixture, pair_mode
from dreamllm.experiment import Experiment, Stage
from dreamllm.model.dreamllm import TRAINABLE, DreamLLMForConditionalGeneration
from dreamllm.seeds import seed_of
from dreamllm.train import checkpoint, resume
from dreamllm.train.log import MEASURED, Measured, count, look, losses_csv, measure, totals
from dreamllm.train.schedule import learning_rate

LOOK_EVERY = 10  # steps between looks at the losses on a GPU, each of which waits for it; on a CPU it is every step


def train(
    experiment: Experiment,
    name: str,
    *,
    foundations: Path,
    data: Sequence[Path],
    init: Sequence[Path],
    out: Path,
    work: Path,
    save_every: float = 60.0,
) -> None:
    """Train the stage `name` and write its checkpoint folder `out`.

    foundations: folder with llm/, clip/, sd/.  data: folders with the shard sets of the mixture.  init: checkpoints of
    the stages it starts from, in order.  work: folder of the resume state and the TensorBoard logs; a run that was
    killed goes on from there, on a CPU with a bit-equal result.  save_every: seconds between two saves.

    Raises CheckpointProblem, ShardProblem, ValueError for inputs that do not fit, NonFiniteLoss, and RuntimeError when
    another training holds the work folder.
    """
    with resume.locked(work):
        # ---- what this training is ----------------------------------------------------------------------------------
        stage = experiment.stages[name]
        seed = seed_of(experiment.seed, "stage", name)
        sets = find_sets(stage.mixture, data)
        options = {**experiment.model.model_dump(mode="json"), "seed": seed_of(experiment.seed, "model")}
        identity = {
            "stage": name,
            "seed": experiment.seed,
            "config": stage.model_dump(mode="json"),
            "model": options,
            "foundations": checkpoint.foundation_digests(foundations),
            "init": [checkpoint.digest(Path(folder) / checkpoint.TENSORS) for folder in init],
            "data": {key: {path.name: checkpoint.digest(path) for path in paths} for key, paths in sets.items()},
            "code": provenance.code_digest(__name__),
            "versions": checkpoint.versions(),
        }

        # ---- model, optimiser, data ---------------------------------------------------------------------------------
        accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
        if accelerator.num_processes > 1:
            raise RuntimeError(f"a stage trains in one process, {accelerator.num_processes} were started")
        model, processor = checkpoint.load_model(foundations, init, options)
        apply_stage(model, stage)
        parameters = checkpoint.trained_parameters(model)
        groups = parameter_groups(model, parameters, stage.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas, fused=True)
        model, optimizer = accelerator.prepare(model, optimizer)
        mixture = Mixture(sets, stage.mixture, seed)

        state = resume.load(work, identity)
        if state:
            resume.restore(parameters, optimizer.optimizer, state.tensors)
            print(f"going on after step {state.step} of {stage.steps}")
        first, position, log = (state.step, state.position, state.log.tolist()) if state else (0, start(mixture), [])
        stream = Stream(
            mixture,
            lambda document, epoch: processor.lay_out(
                document, pair_mode(stage.mode, document, epoch, seed, stage.read_share), stage.context
            ),
            processor.collate,
            stage.rows_per_batch,
            stage.context,
            position,
        )
        print(summary(name, stage, model, mixture))

        # ---- the loop -----------------------------------------------------------------------------------------------
        patience = 1 if sys.stderr.isatty() else 30  # seconds between two lines of progress
        with (
            closing(prefetch(stream)) as batches,
            SummaryWriter(work / "tensorboard", purge_step=first + 1) as board,
            tqdm(initial=first, total=stage.steps, desc=name, unit="step", mininterval=patience) as progress,
        ):
            waiting: list[Measured] = []  # steps whose losses nobody has looked at yet
            look_every = 1 if accelerator.device.type == "cpu" else LOOK_EVERY
            last_save = time.monotonic()
            for step in range(first, stage.steps):
                prepared = next(batches)
                batch = prepared.batch.to(accelerator.device)
                rate = learning_rate(step, stage.steps, stage.learning_rate, stage.warmup_ratio)
                for group in optimizer.param_groups:
                    group["lr"] = rate

                torch.manual_seed(seed_of(seed, "dropout", step))
                noise = torch.Generator().manual_seed(seed_of(seed, "diffusion noise", step))
                output = model(**batch.inputs(), generator=noise)
                accelerator.backward(output.loss)
                norm = accelerator.clip_grad_norm_(parameters.values(), stage.gradient_clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

                waiting.append(Measured(prepared, measure(output, norm), (rate, *count(prepared.batch))))
                is_last = step + 1 == stage.steps
                wants_save = time.monotonic() - last_save > save_every
                if len(waiting) == look_every or is_last or wants_save:
                    log += look(waiting, len(log), board)
                    progress.update(step + 1 - progress.n)
                    progress.set_postfix({key: f"{value:.3g}" for key, value in zip(MEASURED, log[-1], strict=False)})
                    waiting = []
                if wants_save and not is_last:
                    tensors = resume.collect(parameters, optimizer.optimizer)
                    rows = torch.tensor(log, dtype=torch.float64)
                    resume.save(work, identity, resume.State(step + 1, prepared.position, tensors, rows))
                    last_save = time.monotonic()

        # ---- the checkpoint -----------------------------------------------------------------------------------------
        metadata = {**identity, "commit": checkpoint.commit(), "totals": totals(log, prepared)}
        checkpoint.save_trained(out, parameters, metadata, losses_csv(log))
        resume.clear(work)


# ---- setting up ----------------------------------------------------------------------------------------------------


def find_sets(names: Mapping[str, float], folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The shards of each set: FOLDER/NAME-NNNNN.tar in exactly one of the folders. Raises ValueError otherwise."""
    sets = {}
    for name in names:
        found = [paths for folder in folders if (paths := shards.find(Path(folder) / name))]
        if len(found) != 1:
            raise ValueError(
                f"shard set {name!r}: {name}-NNNNN.tar found in {len(found)} of the folders "
                f"{', '.join(map(str, folders))}, not in 1"
            )
        sets[name] = found[0]
    return sets


def apply_stage(model: DreamLLMForConditionalGeneration, stage: Stage) -> None:
    """Set what the stage trains and how its losses are made. Frozen parts run without dropout.

    Raises ValueError for a stage without any loss.
    """
    if not (stage.loss_weights.language or stage.loss_weights.diffusion):
        raise ValueError("both loss weights of the stage are 0: there is nothing to train")
    model.train_only(stage.trains)
    model.train()
    for part in set(TRAINABLE) - set(stage.trains):
        if isinstance(module := getattr(model, part), torch.nn.Module):
            module.eval()
    model.config.language_loss_weight = stage.loss_weights.language
    model.config.diffusion_loss_weight = stage.loss_weights.diffusion
    for option in ("noise_offset", "input_perturbation", "snr_gamma", "condition_dropout"):
        setattr(model.config, option, getattr(stage, option))


def parameter_groups(
    model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices decay; embeddings, dream queries, norms and biases do not."""
    # by identity: an output head that is tied to the embeddings is one of them
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decays = [p for p in parameters.values() if p.ndim in (2, 4) and id(p) not in embeddings]
    decaying = set(map(id, decays))
    others = [p for p in parameters.values() if id(p) not in decaying]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def summary(name: str, stage: Stage, model: DreamLLMForConditionalGeneration, mixture: Mixture) -> str:
    """The arithmetic of a stage, to be read before anything is spent."""
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for parameter_name, parameter in model.named_parameters():
        part = parameter_name.split(".")[0]
        side = trained if parameter.requires_grad else frozen
        side[part] = side.get(part, 0) + parameter.numel()
    tokens = stage.rows_per_batch * stage.context

    def listed(parts: dict[str, int]) -> str:
        return f"{sum(parts.values()):,} (" + ", ".join(f"{part} {number:,}" for part, number in parts.items()) + ")"

    documents = [f"{size:,} {key} (weight {mixture.weights[key]:g})" for key, size in mixture.sizes().items()]
    lines = [
        f"stage {name}: {stage.mode}, loss = {stage.loss_weights.language:g} language "
        f"+ {stage.loss_weights.diffusion:g} diffusion",
        f"  trained parameters: {listed(trained)}",
        f"  frozen parameters:  {listed(frozen)}",
        f"  {stage.rows_per_batch} rows x {stage.context} tokens = {tokens:,} tokens per step, "
        f"x {stage.steps:,} steps = {tokens * stage.steps:,} tokens at most",
        f"  documents: {', '.join(documents)}",
    ]
    return "\n".join(lines)


# ---- command line --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `dreamllm train`."""
    parser.add_argument("--stage", required=True, help="a name below `stages` in the configuration")
    parser.add_argument("--config", required=True, type=Path, help="experiment file")
    parser.add_argument("--foundations", required=True, type=Path, help="folder with llm/, clip/ and sd/")
    parser.add_argument("--data", required=True, type=Path, nargs="+", help="folders with shard sets")
    parser.add_argument("--init", type=Path, nargs="*", default=[], help="checkpoint folders to start from, in order")
    parser.add_argument("--out", required=True, type=Path, help="checkpoint folder to write")
    parser.add_argument("--work", required=True, type=Path, help="folder for resume state and TensorBoard logs")
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds between two saves of the resume state")


def main(arguments: argparse.Namespace) -> None:
    """Run `dreamllm train`."""
    experiment = config.load(arguments.config)
    if arguments.stage not in experiment.stages:
        raise SystemExit(f"{arguments.config}: no stage {arguments.stage!r}; stages: {', '.join(experiment.stages)}")
    train(
        experiment,
        arguments.stage,
        foundations=arguments.foundations,
        data=arguments.data,
        init=arguments.init,
        out=arguments.out,
        work=arguments.work,
        save_every=arguments.save_every,
    )

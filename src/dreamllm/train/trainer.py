"""Training of one stage: alignment, I-GPT or supervised fine-tuning (paper section 3.2).

What is trained, on what, and how is said by the stage's section of the configuration; this file is the loop. It knows
no tokens (`data/layout.py`), no losses (`model/dreamllm.py`), no order of documents (`data/mixture.py`), no state files
(`resume.py`) and no sharding (`distributed.py`). fp32 on a CPU, bf16 autocast with fp32 weights on a GPU.

Any number of processes trains on the same batches and to the same result: each takes its share of a batch's rows, in
parts where the machine cannot hold them at once, and every part's loss is divided by what the whole batch holds.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import astuple
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dreamllm import provenance
from dreamllm.config.experiment import Experiment
from dreamllm.config.stages import Stage
from dreamllm.data import shards
from dreamllm.data.mixture import Mixture, pair_mode
from dreamllm.data.packing import Row
from dreamllm.data.stream import Stream, prefetch, start
from dreamllm.model.dreamllm import TRAINABLE, DreamLLMForConditionalGeneration
from dreamllm.seeds import seed_of
from dreamllm.train import checkpoint, distributed, feature_cache, lora, resume
from dreamllm.train.log import MEASURED, StepMetrics, count, flush, losses, losses_csv, totals
from dreamllm.train.schedule import learning_rate

LOOK_EVERY = 10  # steps between looks at the losses on a GPU, each of which waits for it; on a CPU it is every step
SAVING_SHARE = 0.05  # of the time at most goes into saving the state, which takes minutes for a large model


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
    encoded_pictures: Path = Path("scratch/encoded"),
) -> None:
    """Train the stage `name` and write its checkpoint folder `out`.

    foundations: folder with llm/, clip/, sd/.  data: folders with the shard sets of the mixture.  init: checkpoints of
    the stages it starts from, in order.  work: folder of the resume state and the TensorBoard logs; a run that was
    killed goes on from there, on a CPU with a bit-equal result.  save_every: seconds between two saves, at least; 0:
    save after every step.  encoded_pictures: folder for what the frozen encoders make of the pictures (`precompute`).

    In several processes, `accelerate launch` starts all of them with the same arguments; the first one alone writes.

    Raises CheckpointProblem, MachineProblem, ShardProblem, ValueError for inputs that do not fit, NonFiniteLoss, and
    RuntimeError when another training holds the work folder.
    """
    accelerator = distributed.start(experiment.stages[name], experiment.machine)
    first_process = accelerator.is_main_process
    with resume.locked(work) if first_process else nullcontext():
        # ---- what this training is ----------------------------------------------------------------------------------
        stage = experiment.stages[name]
        seed = seed_of(experiment.seed, "stage", name)
        sets = find_sets(stage.mixture, data)
        options = {**experiment.model.model_dump(mode="json"), "seed": seed_of(experiment.seed, "model")}
        if stage.num_dream_queries:
            options["num_dream_queries"] = stage.num_dream_queries
        identity = first_process and {
            "stage": name,
            "seed": experiment.seed,
            "config": stage.model_dump(mode="json"),
            "model": options,
            "foundations": checkpoint.foundation_digests(foundations),
            "init": [checkpoint.digest(Path(folder) / checkpoint.TENSORS) for folder in init],
            "data": {key: {path.name: checkpoint.digest(path) for path in paths} for key, paths in sets.items()},
            "code": provenance.code_digest(__name__),
            "versions": provenance.versions(),
        }

        # ---- model, optimiser, data ---------------------------------------------------------------------------------
        if first_process:
            model, processor = checkpoint.load_model(foundations, init, options)
        else:  # no weights in the main memory of the others: `devices.place` sends them
            model, processor = checkpoint.outline(foundations, options)
        apply_stage(model, stage)
        if stage.lora:
            lora.add(model, stage.lora, seed)
        mixture = Mixture(sets, stage.mixture, seed)
        accelerator.print(summary(name, stage, model, mixture))
        callable_model = distributed.place(model, experiment.machine, accelerator)
        parameters = checkpoint.trained_parameters(model)
        groups = parameter_groups(model, parameters, stage.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas, fused=True)

        state = resume.broadcast_state(resume.load(work, identity) if first_process else None, parameters, optimizer)
        if state:
            accelerator.print(f"going on after step {state.step} of {stage.steps}")
        first, position, log = (state.step, state.position, state.log.tolist()) if state else (0, start(mixture), [])
        share = distributed.local_rows(stage, accelerator)
        align = stage.loss_weights.alignment > 0
        collate, load = partial(processor.collate, align=align), shards.load
        if stage.precompute:
            store = feature_cache.prepare(encoded_pictures, model, processor, sets, stage.mode, accelerator)
            collate, load = partial(store.collate, processor=processor, align=align), store.load
        rows_at_a_time = experiment.machine.rows_at_a_time or stage.rows_per_batch
        stream = Stream(
            mixture,
            lambda document, epoch: processor.lay_out(
                document, pair_mode(stage.mode, document, epoch, seed, stage.read_share), stage.context
            ),
            lambda rows: [collate(part) for part in batched(rows, rows_at_a_time)],
            stage.rows_per_batch,
            stage.context,
            position,
            share,
            distributed.all_gather_dict(),
            load,
        )

        # ---- the loop -----------------------------------------------------------------------------------------------
        patience = 1 if sys.stderr.isatty() else 30  # seconds between two lines of progress
        with (
            closing(prefetch(islice(stream, stage.steps - first))) as batches,
            SummaryWriter(work / "tensorboard", purge_step=first + 1) if first_process else nullcontext() as board,
            tqdm(
                initial=first,
                total=stage.steps,
                desc=name,
                unit="step",
                mininterval=patience,
                disable=not first_process,
            ) as progress,
        ):
            waiting: list[StepMetrics] = []  # steps whose losses nobody has looked at yet
            look_every = 1 if accelerator.device.type == "cpu" else LOOK_EVERY
            last_save, saving = time.monotonic(), 0.0
            for step in range(first, stage.steps):
                rate = learning_rate(step, stage.steps, stage.learning_rate, stage.warmup_ratio)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                prepared = next(batches)
                counts = count(prepared.rows)  # of the whole batch, as are the random numbers of its pictures
                generator = torch.Generator().manual_seed(seed_of(seed, "diffusion noise", step))
                noise = model.draw_noise(counts.pictures_drawn, generator)
                picture = count(prepared.rows[: share.start]).pictures_drawn  # the first that this process draws
                row = share.start

                parts: list[torch.Tensor] = []
                for batch in prepared.batch:
                    torch.manual_seed(seed_of(seed, "dropout", step, *([row] if row else [])))
                    pictures = slice(picture, picture + len(batch.draw_slots))
                    row, picture = row + len(batch.document_ids), pictures.stop
                    with distributed.no_sync_unless_last(callable_model, last=len(parts) + 1 == len(prepared.batch)):
                        with accelerator.autocast():
                            output = callable_model(
                                **batch.to(accelerator.device).inputs(),
                                noise=noise[pictures],
                                num_targets=counts.targets,
                                num_pictures=counts.pictures_drawn,
                            )
                        # times the number of processes, because gradients are averaged over them, not added
                        accelerator.backward(output.loss * accelerator.num_processes)
                    parts.append(losses(output))
                norm = distributed.clip_gradients(list(parameters.values()), stage.gradient_clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

                values = torch.cat([accelerator.reduce(torch.stack(parts).sum(dim=0), "sum"), norm[None].float()])
                waiting.append(StepMetrics(prepared, values, (rate, *astuple(counts))))
                is_last = step + 1 == stage.steps
                if len(waiting) < look_every and not is_last:
                    continue
                log += flush(waiting, len(log), board)
                waiting = []
                progress.update(step + 1 - progress.n)
                latest = dict(zip(MEASURED, log[-1], strict=False))  # a loss that the stage does not train is NaN
                progress.set_postfix({name: f"{value:.3g}" for name, value in latest.items() if not math.isnan(value)})
                since = time.monotonic() - last_save
                pause = max(save_every, saving / SAVING_SHARE) if save_every else 0.0
                if not is_last and distributed.from_first(since > pause):
                    begin = time.monotonic()
                    tensors = resume.collect(parameters, optimizer, keep=first_process)
                    if first_process:
                        rows = torch.tensor(log, dtype=torch.float64)
                        resume.save(work, identity, resume.State(step + 1, prepared.position, tensors, rows))
                    last_save = time.monotonic()
                    saving = last_save - begin

        # ---- the checkpoint -----------------------------------------------------------------------------------------
        trained = distributed.gathered(parameters, keep=first_process)
        if stage.lora:
            trained = lora.checkpoint_tensors(trained, stage.lora)
        if first_process:
            made = {"commit": provenance.commit(), "machine": provenance.machine()}
            metadata = {**identity, **made, "totals": totals(log, prepared)}
            checkpoint.save_trained(out, trained, metadata, losses_csv(log))
            resume.clear(work)
        accelerator.wait_for_everyone()  # so that no process reports an end before there is a checkpoint
        accelerator.end_training()


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


def batched(rows: list[Row], size: int) -> list[list[Row]]:
    """The rows in parts of `size`, of which the last may be smaller."""
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def apply_stage(model: DreamLLMForConditionalGeneration, stage: Stage) -> None:
    """Set what the stage trains and how its losses are made. Frozen parts run without dropout.

    Raises ValueError for a stage without any loss, and for an alignment loss between vectors of different lengths.
    """
    weights = stage.loss_weights
    if not (weights.language or weights.diffusion or weights.alignment):
        raise ValueError("all loss weights of the stage are 0: there is nothing to train")
    clip, condition = model.config.vision_config.hidden_size, model.condition_projector.out_features
    if weights.alignment and clip != condition:
        raise ValueError(
            f"loss_weights.alignment: CLIP's features have {clip} numbers, the UNet's conditions {condition}: "
            "they cannot be regressed onto the other; take foundations where they are equal, or set the weight to 0"
        )
    model.train_only(stage.trains)
    model.train()
    for part in set(TRAINABLE) - set(stage.trains):
        if isinstance(module := getattr(model, part), torch.nn.Module):
            module.eval()
    model.config.language_loss_weight = weights.language
    model.config.diffusion_loss_weight = weights.diffusion
    model.config.alignment_loss_weight = weights.alignment
    options = ("noise_offset", "input_perturbation", "stratified_timesteps", "timestep_shift", "snr_gamma")
    for option in (*options, "condition_dropout"):
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

    aligned = f" + {stage.loss_weights.alignment:g} alignment" if stage.loss_weights.alignment else ""
    documents = [f"{size:,} {key} (weight {mixture.weights[key]:g})" for key, size in mixture.sizes().items()]
    lines = [
        f"stage {name}: {stage.mode}, loss = {stage.loss_weights.language:g} language "
        f"+ {stage.loss_weights.diffusion:g} diffusion{aligned}",
        f"  trained parameters: {listed(trained)}",
        f"  frozen parameters:  {listed(frozen)}",
        f"  {stage.rows_per_batch} rows x {stage.context} tokens = {tokens:,} tokens per step, "
        f"x {stage.steps:,} steps = {tokens * stage.steps:,} tokens at most",
        f"  documents: {', '.join(documents)}",
    ]
    return "\n".join(lines)


# ---- command line --------------------------------------------------------------------------------------------------

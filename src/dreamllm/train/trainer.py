"""Training of one stage: alignment, I-GPT or supervised fine-tuning (paper section 3.2).

The stage's section of the configuration says what is trained, on what and how; this file is the training loop. Its
parts are elsewhere: tokens (`data/layout.py`), losses (`model/dreamllm.py`), order of documents (`data/mixture.py`),
learning-rate schedule (`schedule.py`), resume state (`resume.py`), several processes (`distributed.py`), precision
(`model/precision.py`).

Results do not depend on the number of processes beyond rounding: all train on the same batch, each on its share of the
rows, in micro-batches if the machine cannot hold them at once. The loss of a micro-batch is divided by the targets and
pictures of the whole batch, so that the losses and gradients of micro-batches add up.
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

from dreamllm import provenance
from dreamllm.atomic import refuse_file
from dreamllm.config.experiment import Experiment
from dreamllm.config.machine import Machine
from dreamllm.config.stages import Stage
from dreamllm.data import shards
from dreamllm.data.document import Document
from dreamllm.data.layout import TokenSequence
from dreamllm.data.mixture import LIST_SUFFIX, Mixture, MixtureProblem, pair_mode
from dreamllm.data.packing import Batch, Row
from dreamllm.data.remote import ShardCache
from dreamllm.data.stream import Stream, prefetch, start_position
from dreamllm.digests import digest
from dreamllm.model import precision
from dreamllm.model.dreamllm import TRAINABLE, DreamLLMForConditionalGeneration
from dreamllm.progress import Progress
from dreamllm.seeds import seed_of
from dreamllm.train import adamw, checkpoint, distributed, feature_cache, lora, preemption, resume
from dreamllm.train.log import METRIC_COLUMNS, StepMetrics, count_rows, flush, losses_csv, stack_losses, totals
from dreamllm.train.schedule import learning_rate

FLUSH_EVERY = 10  # steps between fetches of the losses from a GPU, each of which waits for it; on a CPU every step
MAX_SAVING_FRACTION = 0.05  # of the training time may be lost to copying the state to CPU memory before it is saved


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
    the stages it starts from, in loading order.  work: folder of the resume state and the tracker's logs; a killed
    run continues from there, on a CPU with a bit-equal result.  save_every: least number of seconds between two saves
    of the state; 0 saves after every step.  encoded_pictures: folder of the feature cache (`precompute`).

    With several processes, `accelerate launch` starts all of them with the same arguments; only the first one writes.

    On SIGTERM to any process it saves the resume state after the running step, and exits with `preemption.STATUS`.
    Raises CheckpointProblem, MachineProblem, ShardProblem, RemoteShardProblem, FeatureCacheProblem, ValueError for
    inputs that do not fit, NonFiniteLoss, and RuntimeError when another training holds the work folder.
    """
    refuse_file(out)  # now, not when the checkpoint is written
    used = precision.resolve(experiment.precision)
    stage, dtype = experiment.stages[name], precision.DTYPES[used]
    accelerator = distributed.start_accelerator(stage, experiment.machine, dtype, work)
    is_first = accelerator.is_main_process
    with resume.locked(work) if is_first else nullcontext():
        # ---- identity: everything that the result depends on --------------------------------------------------------
        seed = seed_of(experiment.seed, "stage", name)
        sets = find_shard_sets(stage.mixture, data)
        options = {**experiment.model_of(name).model_dump(mode="json"), "seed": seed_of(experiment.seed, "model")}
        identity = is_first and {
            "stage": name,
            "seed": experiment.seed,
            "config": stage.model_dump(mode="json"),
            "model": options,
            "precision": used,
            "optimizer": experiment.machine.optimizer,
            "foundations": checkpoint.foundation_digests(foundations, options),
            "init": [digest(Path(folder) / checkpoint.TENSORS) for folder in init],
            "ancestors": [checkpoint.about_ancestor(folder) for folder in init],
            "data": {key: {path.name: digest(path) for path in paths} for key, paths in sets.items()},
            "code": provenance.code_digest(__name__),
            "versions": provenance.versions(),
        }

        # ---- model and optimiser ------------------------------------------------------------------------------------
        if is_first:
            model, processor = checkpoint.load_model(foundations, init, options)
        else:  # on the meta device: `distributed.prepare_model` sends the weights
            model, processor = checkpoint.build_on_meta(foundations, options)
        apply_stage(model, stage)
        if stage.lora:
            lora.add_adapters(model, stage.lora, seed)
        mixture = Mixture(sets, stage.mixture, seed, cache=shard_cache(experiment.machine))
        accelerator.print(summary(name, stage, model, mixture))
        prepared_model = distributed.prepare_model(model, experiment.machine, accelerator)
        parameters = checkpoint.trained_parameters(model)
        groups = parameter_groups(model, parameters, stage.weight_decay)
        optimizer = adamw.build(groups, stage, experiment.machine)

        checkpointer = resume.Checkpointer(work, identity, parameters, optimizer)
        if state := checkpointer.load():
            accelerator.print(f"resuming after step {state.step} of {stage.steps}")
            first_step, position, log = state.step, state.position, state.log.tolist()
        else:
            first_step, position, log = 0, start_position(mixture), []

        # ---- data ---------------------------------------------------------------------------------------------------
        align = stage.loss_weights.alignment > 0
        collate, load_document = partial(processor.collate, align=align), shards.load
        if stage.precompute:
            cache = feature_cache.build(encoded_pictures, model, processor, sets, stage.mode, accelerator)
            collate, load_document = partial(cache.collate, processor=processor, align=align), cache.load
        local_rows = distributed.local_rows(stage, accelerator)
        rows_at_a_time = experiment.machine.rows_at_a_time or stage.rows_per_batch

        def on_its_way(batch: Batch) -> Batch:
            return batch.pin_memory() if accelerator.device.type == "cuda" else batch

        def lay_out(document: Document, epoch: int) -> list[TokenSequence]:
            mode = pair_mode(stage.mode, document, epoch, seed, stage.read_share)
            return processor.lay_out(document, mode, stage.context)

        stream = Stream(
            mixture,
            lay_out,
            lambda rows: [on_its_way(collate(part)) for part in batched(rows, rows_at_a_time)],  # micro-batches
            stage.rows_per_batch,
            stage.context,
            position,
            local_rows,
            distributed.make_all_gather_dict(),
            load_document,
        )

        # ---- the training loop --------------------------------------------------------------------------------------
        distributed.start_tracker(accelerator, experiment, name, work, first_step)
        any_process, is_stopped = distributed.make_any_process(), False
        with (
            preemption.sigterm_recorded() as sigterm,
            closing(checkpointer),
            closing(prefetch(islice(stream, stage.steps - first_step))) as batches,
            Progress(name, stage.steps, first=first_step, disable=not is_first) as progress,
        ):
            unlogged: list[StepMetrics] = []  # steps whose losses are still on the device
            flush_every = 1 if accelerator.device.type == "cpu" else FLUSH_EVERY
            last_save, save_seconds = time.monotonic(), 0.0
            for step in range(first_step, stage.steps):
                rate = learning_rate(step, stage.steps, stage.learning_rate, stage.warmup_ratio)
                for group in optimizer.param_groups:
                    group["lr"] = rate

                # Noise is drawn for all pictures of the batch; this process uses that of the pictures in its rows.
                batch = next(batches)
                counts = count_rows(batch.rows)
                generator = torch.Generator().manual_seed(seed_of(seed, "diffusion noise", step))
                noise = model.draw_noise(counts.pictures_drawn, generator)
                row = local_rows.start
                picture = count_rows(batch.rows[:row]).pictures_drawn

                # Forward and backward pass, one micro-batch at a time.
                micro_losses: list[torch.Tensor] = []
                for micro_batch in batch.collated:
                    torch.manual_seed(seed_of(seed, "dropout", step, *([row] if row else [])))
                    pictures = slice(picture, picture + len(micro_batch.draw_slots))
                    row, picture = row + len(micro_batch.document_ids), pictures.stop
                    is_last_micro_batch = len(micro_losses) + 1 == len(batch.collated)
                    with distributed.no_sync_unless_last(prepared_model, experiment.machine, last=is_last_micro_batch):
                        with accelerator.autocast():
                            output = prepared_model(
                                **micro_batch.to(accelerator.device).inputs(),
                                noise=noise[pictures.start * stage.noise_draws : pictures.stop * stage.noise_draws],
                                num_targets=counts.targets,
                                num_pictures=counts.pictures_drawn,
                            )
                        # times the number of processes, because DDP and FSDP average gradients instead of adding them
                        accelerator.backward(output.loss * accelerator.num_processes)
                    micro_losses.append(stack_losses(output))
                gradient_norm = distributed.clip_gradients(list(parameters.values()), stage.gradient_clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

                # Log.
                losses = accelerator.reduce(torch.stack(micro_losses).sum(dim=0), "sum")
                values = torch.cat([losses, gradient_norm[None].float()])
                unlogged.append(StepMetrics(batch, values, (rate, *astuple(counts))))
                is_last_step = step + 1 == stage.steps
                is_stopped = any_process(bool(sigterm)) and not is_last_step
                if len(unlogged) < flush_every and not (is_last_step or is_stopped):
                    continue
                log += flush(unlogged, len(log), accelerator)
                unlogged = []
                latest = dict(zip(METRIC_COLUMNS, log[-1], strict=False))
                progress.update(step + 1, {key: value for key, value in latest.items() if not math.isnan(value)})

                # Save the resume state.
                pause = max(save_every, save_seconds / MAX_SAVING_FRACTION)
                is_due = not save_every or (not checkpointer.is_saving() and time.monotonic() - last_save > pause)
                if is_stopped or (not is_last_step and distributed.broadcast_object(is_due)):
                    begin = time.monotonic()
                    rows = torch.tensor(log, dtype=torch.float64)
                    checkpointer.save(resume.State(step + 1, batch.position, rows))
                    last_save = time.monotonic()
                    save_seconds = last_save - begin  # for the copy; it is written beside the next steps
                if is_stopped:
                    break
            checkpointer.wait()

        # ---- the checkpoint -----------------------------------------------------------------------------------------
        if is_stopped:
            done = f"SIGTERM: saved after step {step + 1} in {time.monotonic() - begin:.1f} s"
            accelerator.print(f"{done}; the same command continues from there")
        else:
            trained = distributed.gather_full_tensors(parameters, keep=is_first)
            if stage.lora:
                trained = lora.checkpoint_tensors(trained, stage.lora)
            if is_first:
                origin = provenance.commit() | {"machine": provenance.machine()}
                metadata = {**identity, **origin, "totals": totals(log, batch)}
                checkpoint.save_trained(out, trained, metadata, losses_csv(log))
                checkpointer.clear()
        accelerator.wait_for_everyone()  # a process that exits early makes the launcher end the one that writes
        # DDP must not hold the last reference to the process group: its destructor joins the group's threads without
        # releasing the GIL, which they may be waiting for.
        del prepared_model
        accelerator.free_memory()
        accelerator.end_training()
    if is_stopped:
        sys.exit(preemption.STATUS)


# ---- setting up ----------------------------------------------------------------------------------------------------


def find_shard_sets(names: Mapping[str, float], folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The shards FOLDER/NAME-NNNNN.tar of each set, or its shard list FOLDER/NAME.json.

    Raises MixtureProblem unless each set is in exactly one folder.
    """
    sets = {}
    for name in names:
        found = [paths for folder in folders if (paths := shards.find(Path(folder) / name))]
        lists = [Path(folder) / f"{name}{LIST_SUFFIX}" for folder in folders]
        found += [[path] for path in lists if path.is_file()]
        if len(found) != 1:
            raise MixtureProblem(
                f"shard set {name!r}: {name}-NNNNN.tar or {name}{LIST_SUFFIX} found in {len(found)} of the folders "
                f"{', '.join(map(str, folders))}, not in 1"
            )
        sets[name] = found[0]
    return sets


def shard_cache(machine: Machine) -> ShardCache:
    """The cache of remote shards, as the machine section has it."""
    return ShardCache(Path(machine.shard_cache), machine.shard_cache_gb * 10**9)


def batched(rows: list[Row], size: int) -> list[list[Row]]:
    """Split the rows into parts of `size` rows; the last part may have fewer."""
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


class StageProblem(ValueError):
    """A stage that cannot be trained as its section says."""


def apply_stage(model: DreamLLMForConditionalGeneration, stage: Stage) -> None:
    """Set which parts of the model the stage trains, and its loss weights and options. Frozen parts have no dropout.

    Raises StageProblem for a stage without any loss, for an alignment loss between vectors of different sizes, for
    a part that the model does not have, and for a context that is longer than the language model's table of positions;
    DecoderProblem for an option that its decoder does not have.
    """
    weights = stage.loss_weights
    if not (weights.language or weights.diffusion or weights.alignment):
        raise StageProblem("all loss weights of the stage are 0: set at least one of them")
    text = model.config.text_config
    positions = getattr(text, "max_position_embeddings", None) or stage.context
    if getattr(text, "rope_parameters", None) is None and stage.context > positions:
        raise StageProblem(
            f"context: {stage.context} tokens are more than the {positions} positions of the {text.model_type}"
        )
    clip, condition = model.config.vision_config.hidden_size, model.decoder.condition_width(model.config)
    if weights.alignment and clip != condition:
        raise StageProblem(
            f"loss_weights.alignment: the eye's features have size {clip}, the decoder's conditions {condition}, so "
            "the loss cannot compare them; use foundations where the sizes are equal, or set the weight to 0"
        )
    if lacking := [part for part in stage.trains if not hasattr(model, part)]:
        raise StageProblem(f"trains: the model has no {lacking[0]}; its denoiser is called {model.config.denoiser}")
    model.train_only(stage.trains)
    model.train()
    for part in set(TRAINABLE) - set(stage.trains):
        if isinstance(module := getattr(model, part, None), torch.nn.Module):
            module.eval()
    model.config.language_loss_weight = weights.language
    model.config.diffusion_loss_weight = weights.diffusion
    model.config.alignment_loss_weight = weights.alignment
    options = ("noise_draws", "noise_offset", "input_perturbation", "stratified_timesteps", "timestep_shift")
    for option in (*options, "snr_gamma", "condition_dropout"):
        setattr(model.config, option, getattr(stage, option))
    model.decoder.check(model.config)


def parameter_groups(
    model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Two groups for AdamW: weight decay for matrices; none for embeddings, dream queries, norms and biases."""
    # by identity, so that an output head tied to the embeddings counts as embeddings
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decays = [p for p in parameters.values() if p.ndim in (2, 4) and id(p) not in embeddings]
    decaying = set(map(id, decays))
    others = [p for p in parameters.values() if id(p) not in decaying]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def summary(name: str, stage: Stage, model: DreamLLMForConditionalGeneration, mixture: Mixture) -> str:
    """What the stage trains and how many tokens it takes, printed before the training starts."""
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

"""Data-parallel training: the section `machine` of the configuration, on any number of processes.

Nothing here changes results beyond rounding. Start several processes with `accelerate launch` or `torchrun`; otherwise
there is one process, for which the collective functions below do nothing.

With DDP, every process holds the whole model. With FSDP2, the trained parts and the language model are sharded. CLIP,
VAE and UNet stay whole while they are frozen: they are small beside the language model, and a process may then call
them as often as its own pictures require.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from torch import distributed
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from dreamllm.config.experiment import Experiment
from dreamllm.config.machine import Machine, checkpointed, tracker_problem
from dreamllm.config.stages import Stage
from dreamllm.model import precision, varlen
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration

TIMEOUT = timedelta(minutes=30)  # of a collective call; long, because the first process hashes all data at the start


class MachineProblem(ValueError):
    """The section `machine` does not fit the stage, or the number of processes that were started."""


def start_accelerator(stage: Stage, machine: Machine, dtype: torch.dtype, work: Path) -> Accelerator:
    """Connect to the other processes. dtype: bfloat16, with autocast, or float32.  work: for the tracker's files

    Raises MachineProblem where the stage's rows cannot be divided evenly among the processes, and for a tracker that is
    not installed.
    """
    if problem := tracker_problem(machine):
        raise MachineProblem(problem)
    find_unused = not (stage.loss_weights.language and stage.loss_weights.diffusion)  # the head, or the projector
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),  # or several processes without GPUs would not find each other
        mixed_precision="bf16" if dtype == torch.bfloat16 else "no",
        log_with=machine.tracker,
        project_dir=work,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=TIMEOUT),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=find_unused),
        ],
    )
    if stage.rows_per_batch % accelerator.num_processes:
        raise MachineProblem(
            f"rows_per_batch {stage.rows_per_batch} cannot be divided evenly among {accelerator.num_processes} "
            "processes; change machine.gpus or machine.nodes"
        )
    if machine.sharding != "none" and accelerator.num_processes == 1:
        accelerator.print("machine.sharding has no effect: there is only one process")
    return accelerator


def start_tracker(accelerator: Accelerator, experiment: Experiment, stage: str, work: Path, done: int) -> None:
    """Start a run of `machine.tracker` for a training that has done some steps. Only the first process does.

    TensorBoard's files are in work/tensorboard; steps that an interrupted training logged after its last save are
    removed. trackio and wandb have the run EXPERIMENT-STAGE of the project `dreamllm`, with the stage's settings.
    """
    settings = {"name": f"{experiment.name}-{stage}", "config": experiment.stages[stage].model_dump(mode="json")}
    options = {
        "tensorboard": {"purge_step": done + 1},
        "trackio": settings | {"resume": "allow" if done else "never"},
        "wandb": settings | {"dir": str(work)},
    }
    tracker = experiment.machine.tracker
    accelerator.init_trackers("tensorboard" if tracker == "tensorboard" else "dreamllm", init_kwargs=options)


def local_rows(stage: Stage, accelerator: Accelerator) -> slice:
    """The rows of each batch that this process trains on."""
    rows = stage.rows_per_batch // accelerator.num_processes
    return slice(accelerator.process_index * rows, (accelerator.process_index + 1) * rows)


def prepare_model(
    model: DreamLLMForConditionalGeneration, machine: Machine, accelerator: Accelerator
) -> DreamLLMForConditionalGeneration:
    """Move the model to the devices, wrapped in DDP or sharded by FSDP2, with the options of `machine`.

    model: with its weights in the first process, on the meta device in the others, which receive what they hold from
    the first. Its frozen parameters are kept in bfloat16 if the accelerator computes in bf16. With FSDP, its
    parameters are new objects afterwards.

    Returns the module to call for losses. Use `model` itself for everything else.
    Raises MachineProblem for an attention implementation that is not installed.
    """
    model.pictures_at_a_time = machine.pictures_at_a_time
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    attention = machine.attention
    if attention == varlen.VARLEN:
        attention = varlen.implementation(accelerator.device, dtype)
        accelerator.print(f"machine.attention: varlen is {attention} on this machine")
    if attention != "sdpa":
        try:
            model.language_model.set_attn_implementation(attention)
        except ImportError as error:
            raise MachineProblem(f"machine.attention: {attention} cannot be used here ({error})") from error
    trains_unet = any(parameter.requires_grad for parameter in model.denoiser.parameters())
    checkpoint_activations(model, *checkpointed(machine, trains_unet=trains_unet))
    if machine.compile:
        compile_layers(model)
    precision.for_training(model, dtype)
    if machine.sharding == "none" or accelerator.num_processes == 1:
        broadcast_module(model, accelerator.device)
        return accelerator.prepare_model(model)
    options: dict[str, Any] = {
        "mesh": distributed.device_mesh.init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "reshard_after_forward": machine.sharding == "full_shard",
    }
    if accelerator.mixed_precision == "bf16":  # the shards stay in fp32 and are what the optimiser works on
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in decoder_layers(model):
        broadcast_module(layer, accelerator.device)  # layer by layer: no device holds the whole language model
        fully_shard(layer, **options)
    broadcast_module(model, accelerator.device)
    encoders = (model.vision_model, model.vae, model.denoiser)
    options["ignored_params"] = {p for encoder in encoders for p in encoder.parameters() if not p.requires_grad}
    return fully_shard(model, **options)


@torch.no_grad()
def broadcast_module(module: torch.nn.Module, device: torch.device) -> None:
    """Move the unsharded tensors of a module to the device, with the first process's values in all processes."""
    for submodule in module.modules():
        if any(tensor.is_meta for tensor in (*submodule.parameters(recurse=False), *submodule.buffers(recurse=False))):
            submodule.to_empty(device=device, recurse=False)
    if isinstance(module, PreTrainedModel):
        module.tie_weights()  # `to_empty` has made two tensors of a tied head and its embeddings
    module.to(device)
    if distributed.is_initialized():
        for tensor in (*module.parameters(), *module.buffers()):
            if not isinstance(tensor, DTensor):
                distributed.broadcast(tensor, 0)


def checkpoint_activations(
    model: DreamLLMForConditionalGeneration, language_model: int | None = 1, unet: int | None = 1
) -> None:
    """Keep the inputs of decoder layers and denoiser blocks only; recompute their activations in the backward pass.

    language_model, unet: n, for every n-th decoder layer or denoiser block, from the first; None: no layer, no block.
    """
    if language_model:
        model.language_model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=language_model)
        for layer in decoder_layers(model):
            # transformers checkpoints a layer in training mode only, but gradients also flow through a frozen language
            # model, which is in evaluation mode. The modules inside keep their mode, so dropout stays off there.
            layer.training = True
    if unet:
        blocks = model.decoder.denoiser_blocks(model.denoiser)
        stored = {module for index, block in enumerate(blocks) if index % unet for module in block.modules()}

        def run(module: torch.nn.Module, *args: Any) -> Any:
            return module(*args) if module in stored else checkpoint(module, *args, use_reentrant=False)

        model.denoiser.enable_gradient_checkpointing(run)


def decoder_layers(model: DreamLLMForConditionalGeneration) -> list[torch.nn.Module]:
    """The decoder layers of the language model, in order."""
    return [module for module in model.language_model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(model: DreamLLMForConditionalGeneration) -> None:
    """Compile decoder layers and blocks of denoiser and VAE with torch.compile, which fuses element-wise operations.

    Decoder layers share compiled code; blocks differ, so each has its own, and its own limit of recompilations. Sizes
    that change from step to step are traced as symbolic ones.
    """
    for layer in decoder_layers(model):
        layer.compile()
    decoder = model.decoder
    for block in (*decoder.denoiser_blocks(model.denoiser), *decoder.encoder_blocks(model.vae)):
        block.compile(isolate_recompiles=True)


def no_sync_unless_last(model: torch.nn.Module, machine: Machine, *, last: bool) -> AbstractContextManager:
    """Context for the forward and backward pass of one micro-batch: gradients are exchanged after the last one only.

    With `full_shard` after each one, because gradients are sharded by the exchange, and this is for the least memory.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel) and not last:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or machine.sharding == "full_shard")
    return nullcontext()


def clip_gradients(parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clip the norm of the gradients over all shards to `max_norm`; returns the norm before clipping, a scalar."""
    return full_tensor(torch.nn.utils.clip_grad_norm_(parameters, max_norm))


def is_first() -> bool:
    """Whether this is the first process, which alone writes the checkpoint and the log."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def own_share(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What this process saves of tensors that all processes name in the same order: its shards of sharded tensors, and
    about as many bytes as the others of those that all processes hold whole."""
    if not distributed.is_initialized():
        return dict(tensors)
    share: dict[str, torch.Tensor] = {}
    sizes = [0] * distributed.get_world_size()
    for name, tensor in tensors.items():
        owner = sizes.index(min(sizes))
        if isinstance(tensor, DTensor):
            owner = distributed.get_rank()
        else:
            sizes[owner] += tensor.nbytes
        if owner == distributed.get_rank():
            share[name] = tensor
    return share


# ---- collective operations: every process must call them, in the same order ------------------------------------------


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor of a sharded one; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_full_tensors(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """The whole tensors on the CPU in processes that `keep` them, an empty dict in the others."""
    gathered: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor.detach()).cpu()  # one at a time: all together may not fit on a GPU
        if keep:  # without the padding of uneven shards, with which a tensor cannot be saved
            gathered[name] = full if full.untyped_storage().nbytes() == full.nbytes else full.clone()
    return gathered


def broadcast_object(value: Any) -> Any:
    """The first process's value, in all processes."""
    return broadcast_object_list([value])[0] if distributed.is_initialized() else value


def new_gloo_group() -> distributed.ProcessGroup | None:
    """A process group of all processes for collective calls from another thread; None where there is one process."""
    return distributed.new_group(backend="gloo", timeout=TIMEOUT) if distributed.is_initialized() else None


def make_all_gather_dict() -> Callable[[dict], dict]:
    """Make a function that returns the union of all processes' dicts.

    It has a process group of its own, so that the thread that prepares batches can call it during the training step.
    """
    group = new_gloo_group()
    if group is None:
        return lambda local: local

    def all_gather_dict(local: dict) -> dict:
        dicts: list[dict] = [{}] * distributed.get_world_size()
        distributed.all_gather_object(dicts, local, group)
        return {key: value for one in dicts for key, value in one.items()}

    return all_gather_dict


def make_any_process() -> Callable[[bool], bool]:
    """Make a function that tells every process whether its argument is true in any of them.

    It has a gloo group of its own, which does not wait for the work that is queued on a GPU.
    """
    group = new_gloo_group()
    if group is None:
        return lambda local: local

    def any_process(local: bool) -> bool:
        number = torch.tensor(int(local))
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group)
        return bool(number)

    return any_process

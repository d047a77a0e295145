"""How the machine at hand carries out a stage: the section `machine` of the configuration, on any number of processes.

Nothing here changes what is computed, beyond rounding. The processes are started by `accelerate launch` or `torchrun`;
without one of them there is one process, and these functions have nothing to do.

A model is either held whole by every process (DDP), or its trained parts and the language model are sharded by FSDP2.
CLIP, VAE and UNet, while frozen, stay whole: they are small beside the language model, and how often a process calls
them may then depend on its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from torch import distributed
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from dreamllm.config.machine import Machine
from dreamllm.config.stages import Stage
from dreamllm.model import precision
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration

TIMEOUT = timedelta(minutes=30)  # for a process that waits for another; the first one hashes all data meanwhile


class MachineProblem(ValueError):
    """The section `machine` does not fit the stage or what was started."""


def start(stage: Stage, machine: Machine) -> Accelerator:
    """Join the other processes; bf16 autocast on a GPU, fp32 on a CPU.

    Raises MachineProblem where the stage's rows cannot be dealt out evenly.
    """
    some_unused = not (stage.loss_weights.language and stage.loss_weights.diffusion)  # the head, or the projector
    gpu = torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=not gpu,  # or several processes without GPUs would not find each other
        mixed_precision="bf16" if gpu else "no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=TIMEOUT),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=some_unused),
        ],
    )
    if stage.rows_per_batch % accelerator.num_processes:
        raise MachineProblem(
            f"rows_per_batch {stage.rows_per_batch} cannot be dealt out evenly to {accelerator.num_processes} "
            "processes; change machine.gpus or machine.nodes"
        )
    if machine.sharding != "none" and accelerator.num_processes == 1:
        accelerator.print("one process has nobody to share with: machine.sharding is without effect")
    return accelerator


def local_rows(stage: Stage, accelerator: Accelerator) -> slice:
    """Which rows of a batch are this process's."""
    rows = stage.rows_per_batch // accelerator.num_processes
    return slice(accelerator.process_index * rows, (accelerator.process_index + 1) * rows)


def place(
    model: DreamLLMForConditionalGeneration, machine: Machine, accelerator: Accelerator
) -> DreamLLMForConditionalGeneration:
    """Put the model onto the devices, and set how they compute it. Parameters are other objects afterwards (FSDP).

    What is frozen is kept in bfloat16 where the stage computes in it. The first process alone has brought the weights;
    the others' model is on the meta device, and they are sent what each of them holds.

    Returns what is to be called in place of the model; the model itself stays usable for everything but its losses.
    Raises MachineProblem for an attention that is not installed.
    """
    model.pictures_at_a_time = machine.pictures_at_a_time
    if machine.attention != "sdpa":
        try:
            model.language_model.set_attn_implementation(machine.attention)
        except ImportError as error:
            raise MachineProblem(f"machine.attention: {machine.attention} cannot be used here ({error})") from error
    if machine.gradient_checkpointing:
        checkpoint_activations(model)
    if machine.compile:
        compile_layers(model)
    precision.for_training(model, torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32)
    if machine.sharding == "none" or accelerator.num_processes == 1:
        receive(model, accelerator.device)
        return accelerator.prepare_model(model)
    options: dict[str, Any] = {
        "mesh": distributed.device_mesh.init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "reshard_after_forward": machine.sharding == "full_shard",
    }
    if accelerator.mixed_precision == "bf16":  # the shards stay in fp32 and are what the optimiser works on
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for module in model.language_model.modules():
        if isinstance(module, GradientCheckpointingLayer):  # what transformers calls a decoder layer
            receive(module, accelerator.device)  # layer by layer: no device ever holds the whole language model
            fully_shard(module, **options)
    receive(model, accelerator.device)
    encoders = (model.vision_model, model.vae, model.unet)
    options["ignored_params"] = {p for encoder in encoders for p in encoder.parameters() if not p.requires_grad}
    return fully_shard(model, **options)


@torch.no_grad()
def receive(module: torch.nn.Module, device: torch.device) -> None:
    """Put what is not sharded yet of a module onto the device, with the values that it has in the first process."""
    for each in module.modules():
        if any(tensor.is_meta for tensor in (*each.parameters(recurse=False), *each.buffers(recurse=False))):
            each.to_empty(device=device, recurse=False)
    if isinstance(module, PreTrainedModel):
        module.tie_weights()  # a head and the embeddings that it shares are two tensors after `to_empty`
    module.to(device)
    if distributed.is_initialized():
        for tensor in (*module.parameters(), *module.buffers()):
            if not isinstance(tensor, DTensor):
                distributed.broadcast(tensor, 0)


def checkpoint_activations(model: DreamLLMForConditionalGeneration) -> None:
    """Keep only the inputs of decoder layers and UNet blocks, and compute the rest again in the backward pass."""
    model.language_model.activation_checkpointing_enable({"use_reentrant": False})
    model.unet.enable_gradient_checkpointing()
    for module in model.language_model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # transformers checkpoints a layer only in training mode; a frozen language model is not in it, but has
            # gradients flowing through. The mode of the modules inside, which decides on dropout, stays.
            module.training = True


def compile_layers(model: DreamLLMForConditionalGeneration) -> None:
    """Have torch.compile fuse the element-wise operations of each decoder layer; all layers share what it makes of one.

    Shapes may change from step to step: sizes that do are traced as unknown numbers.
    """
    for module in model.language_model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()


def no_sync_unless_last(model: torch.nn.Module, *, last: bool) -> AbstractContextManager:
    """Around forward and backward of a part of a batch: DDP exchanges gradients only after the last part.

    FSDP does so after each, because its gradients are sharded only then.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def clip_gradients(parameters: list[torch.nn.Parameter], largest: float) -> torch.Tensor:
    """Scale the gradients of all processes to a common norm of at most `largest`; returns the norm before, a scalar."""
    return full_tensor(torch.nn.utils.clip_grad_norm_(parameters, largest))


# ---- tensors and objects of all processes ----------------------------------------------------------------------------


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without sharding; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """The tensors without sharding, on the CPU, for processes that `keep` them (none for others); all must ask."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        entire = full_tensor(tensor.detach())  # one at a time: all together may not fit a GPU
        if keep:
            found[name] = entire.cpu()
    return found


def broadcast_like(tensor: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """The first process's tensor on all processes, on the device of `like` and sharded like it."""
    if tensor is None:
        tensor = torch.empty(like.shape, dtype=like.dtype)
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    if distributed.is_initialized():
        distributed.broadcast(tensor, 0)
    return tensor


def from_first(value: Any) -> Any:
    """The first process's value, in all of them."""
    return broadcast_object_list([value])[0] if distributed.is_initialized() else value


def all_gather_dict() -> Callable[[dict], dict]:
    """A function that joins the dicts of all processes, over connections of its own: it runs beside the training."""
    if not distributed.is_initialized():
        return lambda found: found
    group = distributed.new_group(backend="gloo", timeout=TIMEOUT)

    def join(found: dict) -> dict:
        everywhere: list[dict] = [{}] * distributed.get_world_size()
        distributed.all_gather_object(everywhere, found, group)
        return {key: value for one in everywhere for key, value in one.items()}

    return join

"""The section `machine` of an experiment file (`experiment.py`)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from pydantic import model_validator

from dreamllm.config.base import Count, InputFolder, Number, Section


class GradientCheckpointing(Section):
    """Of which layers activations are recomputed in the backward pass: of every n-th, or none."""

    language_model: Count | Literal["none"] = "none"
    """1 = every decoder layer, 2 = every second one, ...; none = no layer."""
    unet: Count | Literal["none"] = "none"
    """1 = every block of the denoiser (UNet or transformer), 2 = every second one, ...; none = no block."""


class Machine(Section):
    """Resources of one job. Results do not depend on them: a change reruns nothing."""

    gpus: Number = 0
    """GPUs per node of a training job; a sampling job gets `gpus_per_prediction` of them. 0 = CPU."""
    gpus_per_prediction: Count = 1
    """GPUs of a job that predicts a benchmark, at most `gpus`: its items are divided among them, a process on each. Use
    more than one where a benchmark takes longer than you want to wait (docs/cluster.md); not for latency, attention
    and harness, which take one."""
    nodes: Count = 1
    """Nodes of a training job; more than one need Slurm."""
    jobs_per_gpu: Count = 1
    """Jobs that share a GPU, for models that use only a part of it (docs/cluster.md); not on Slurm."""
    sharding: Literal["none", "shard_grad_op", "full_shard"] = "none"
    """Sharding of a training over its GPUs. none: DDP, every GPU has all; shard_grad_op: FSDP shards gradients and
    optimiser state; full_shard: FSDP shards the parameters too, and gathers them layer by layer."""
    rows_at_a_time: Count | None = None
    """Packed rows per forward pass on a GPU; the gradients of several passes are accumulated. null = all of its
    rows."""
    pictures_at_a_time: Count | None = None
    """Pictures per pass through CLIP, VAE and UNet. A frozen UNet's gradient is then computed in its forward pass, so
    that the activations of these pictures alone are in memory; a trained UNet runs again in the backward pass. null =
    all at once."""
    gradient_checkpointing: bool | GradientCheckpointing = False
    """Recompute activations in the backward pass: less memory, slower. true = of every layer of the language model, and
    of the UNet's blocks where it is trained or `pictures_at_a_time` is null; a mapping sets both apart."""
    attention: Literal["sdpa", "varlen", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention of the language model in training. varlen: a flash kernel for rows of several documents too, for which
    sdpa needs a mask and has no flash kernel: torch's own, else that of the package flash-attn, else flex_attention.
    The others are those of transformers; flash_attention_2 and _3 need their own packages."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: AdamW with both moments in 8 bits (arXiv 2110.02861), a quarter of the memory, by bitsandbytes, which
    has to be installed; not with `sharding`. It rounds what a training keeps from step to step: checkpoint.json names
    it, and a training does not continue from the state of the other."""
    compile: bool = False
    """Compile the language model's layers and the blocks of UNet and VAE with torch.compile in training, and the UNet's
    blocks in predictions: faster on a GPU, after some minutes of compiling; not for a CPU."""
    shard_cache: InputFolder = "scratch/shards"
    """Folder for copies of remote shards (sets of format shard_list), on a local disk of each node; may be deleted."""
    shard_cache_gb: Count = 200
    """Maximum size of that folder in GB. It has to hold the shards among which documents are shuffled, at best twice
    (docs/data.md)."""
    tracker: Literal["tensorboard", "trackio", "wandb"] = "tensorboard"
    """Where a training writes its losses of every step, through accelerate: TensorBoard's files in its work folder, or
    the project `dreamllm` of trackio or Weights & Biases, which have to be installed (docs/training.md)."""
    threads: Count = 1
    """CPU threads per job. On a laptop use 1: two jobs with one thread are faster than one job with two."""
    memory_mb: Count = 4000
    """Memory per job and node in MB, requested from a cluster scheduler."""
    minutes: Count = 60
    """Time limit per job in minutes, requested from a cluster scheduler."""
    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    """How img2dataset distributes its downloads: over the cores of one machine, or over a Spark or Ray cluster."""

    @model_validator(mode="after")
    def _have_the_gpus(self) -> Machine:
        if self.gpus_per_prediction > max(1, self.gpus):
            raise ValueError(f"gpus_per_prediction is {self.gpus_per_prediction}, more than the {self.gpus} of `gpus`")
        return self


def checkpointed(machine: Machine, *, trains_unet: bool) -> tuple[int | None, int | None]:
    """`machine.gradient_checkpointing` as numbers n, of the language model and of the UNet.

    Activations of every n-th layer are recomputed; None: of no layer.
    """
    chosen = machine.gradient_checkpointing
    if isinstance(chosen, bool):
        unet = chosen and (trains_unet or machine.pictures_at_a_time is None)
        return (1 if chosen else None), (1 if unet else None)
    language_model, unet = (None if n == "none" else n for n in (chosen.language_model, chosen.unet))
    return language_model, unet


def tracker_problem(machine: Machine) -> str | None:
    """Why the tracker cannot be used here, and what to do; None where it can."""
    if find_spec(machine.tracker):
        return None
    name = machine.tracker
    return f"machine.tracker: {name} is not installed here; `pip install {name}`, or choose tensorboard"

"""The section `machine` of an experiment file (`experiment.py`)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from dreamllm.config.base import Count, Number, Section


class Machine(Section):
    """Resources of one job. Results do not depend on them: a change reruns nothing."""

    gpus: Number = 0
    """GPUs per node of a training job; a sampling job gets one of them. 0 = CPU."""
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
    """Pictures per pass through CLIP, VAE and UNet, with activation checkpointing. null = all at once, without."""
    gradient_checkpointing: bool = False
    """Recompute the activations of the language model's layers in the backward pass: less memory, slower."""
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention implementation of the language model in training, by its name in transformers; flash attention needs
    its own package."""
    compile: bool = False
    """Compile the language model's layers with torch.compile in training: faster on a GPU, after some minutes of
    compiling; not for a CPU."""
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


def tracker_problem(machine: Machine) -> str | None:
    """Why the tracker cannot be used here, and what to do; None where it can."""
    if find_spec(machine.tracker):
        return None
    name = machine.tracker
    return f"machine.tracker: {name} is not installed here; `pip install {name}`, or choose tensorboard"

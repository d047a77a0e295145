"""The section `machine` of an experiment file (`experiment.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Section


class Machine(Section):
    """What one job may use, and how. Never part of a result's identity: changing it retrains nothing."""

    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of each node for a training job, 1 of which a sampling job gets; 0 = CPU."""
    nodes: Count = 1
    """Nodes for a training job; more than one needs Slurm."""
    jobs_per_gpu: Count = 1
    """Jobs that may share a GPU at a time, for models that fill it only in part (docs/cluster.md); not on Slurm."""
    sharding: Literal["none", "shard_grad_op", "full_shard"] = "none"
    """What FSDP splits over the GPUs of a training: nothing (every GPU holds all, DDP); gradients and optimiser state,
    with the parameters gathered from forward to backward; or these too, gathered layer by layer."""
    rows_at_a_time: Count | None = None
    """Rows that a GPU takes through the model at once; the gradients of more are added up. null = all of its rows."""
    pictures_at_a_time: Count | None = None
    """Pictures at once through CLIP, VAE and UNet, whose activations are then computed twice. null = all."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of layers and compute their activations again in the backward pass: less memory, slower."""
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention of the language model in training, by transformers' names; flash attention needs its own package."""
    compile: bool = False
    """Compile the language model's layers with torch.compile for a training: faster on a GPU, after minutes of
    compiling; not for a CPU."""
    threads: Count = 1
    """CPU threads per job. 1 on a laptop: two jobs side by side beat one job on two cores."""
    memory_mb: Count = 4000
    """Memory per job, on each of its nodes, in MB, asked of a cluster scheduler."""
    minutes: Count = 60
    """Time limit per job in minutes, asked of a cluster scheduler."""
    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    """What img2dataset spreads the fetching of pictures with: the cores of a machine, or a Spark or Ray cluster."""

"""However many processes train and however a batch is cut into parts: the same losses, gradients and order of documents.

Processes are forked and talk through gloo on this machine; one test goes through `accelerate launch`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ranks
import test_train
import tiny
from dreamllm.data import shards
from dreamllm.data.batches import Position, Stream, start
from dreamllm.data.mixture import Mixture
from dreamllm.experiment import Experiment
from dreamllm.train import devices, resume, stage

STEPS = 4


def experiment(machine: dict | None = None, **changes) -> Experiment:
    """Four rows per batch, so that 1, 2 and 4 processes can share them; half of the pictures lose their condition."""
    settings = test_train.experiment(**{"rows_per_batch": 4, "steps": STEPS, "condition_dropout": 0.5, **changes})
    return Experiment.model_validate({**settings.model_dump(mode="json"), "machine": machine or {}})


def train(world: Path, folder: Path, settings: Experiment, processes: int = 1, **options) -> list[str]:
    """Train in forked processes; the gradients of the first step are kept in `folder`. Returns the errors by rank."""

    def child(rank: int) -> None:
        clip, written = devices.clip_gradients, []

        def keep_and_clip(parameters, largest):
            if not written:
                written.append(True)
                gradients = [devices.whole(p.grad if p.grad is not None else torch.zeros_like(p)) for p in parameters]
                if rank == 0:
                    save_file({str(n): gradient.detach().clone() for n, gradient in enumerate(gradients)}, kept)
            return clip(parameters, largest)

        devices.clip_gradients = keep_and_clip
        test_train.run(world, folder, settings, **options)

    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "gradients.safetensors"
    return ranks.run(processes, child, folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return test_train.write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> Path:
    """What one process makes of it, whole batches at a time."""
    folder = tmp_path_factory.mktemp("alone")
    assert train(world, folder, experiment()) == [""]
    return folder


def assert_same_training(folder: Path, reference: Path) -> None:
    for row, wanted in zip(test_train.losses(folder / "out"), test_train.losses(reference / "out"), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, nan_ok=True), f"step {wanted['step']:.0f}"
    found, wanted = (load_file(path / "gradients.safetensors") for path in (folder, reference))
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * max(1, gradient.abs().max()), name
    about, other = (json.loads((path / "out" / "checkpoint.json").read_text()) for path in (folder, reference))
    assert {**about, "totals": None} == {**other, "totals": None}
    assert about["totals"]["documents"] == other["totals"]["documents"]


# ---- losses and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "machine"),
    [
        (1, {"rows_at_a_time": 1}),
        (1, {"rows_at_a_time": 3, "pictures_at_a_time": 2, "gradient_checkpointing": True, "attention": "eager"}),
        (2, {}),
        (4, {}),
        (2, {"rows_at_a_time": 1, "pictures_at_a_time": 1}),
        (2, {"sharding": "shard_grad_op"}),
        (2, {"sharding": "full_shard"}),
        (2, {"sharding": "full_shard", "rows_at_a_time": 1, "gradient_checkpointing": True}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_the_machine_changes_nothing_about_losses_and_gradients(world, alone, tmp_path, processes, machine):
    assert train(world, tmp_path, experiment(machine), processes) == [""] * processes
    assert_same_training(tmp_path, alone)

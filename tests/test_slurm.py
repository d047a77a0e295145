"""The Slurm profile on a Slurm cluster of two nodes that this machine plays: from nothing to a score.

Skipped where Debian's packages of Slurm or Snakemake's plugin for it are not installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import repository
import slurm
import test_train

CHECKPOINT = "results/checkpoints/smoke/align_creation"
SCORE = "results/metrics/smoke/alignment/captions.json"
FAST = ("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1")  # there is no accounting
FAST += ("--seconds-between-status-checks", "1", "--latency-wait", "10", "--retries", "0")

if reason := slurm.missing() or (
    "" if find_spec("snakemake_executor_plugin_slurm") else "no executor plugin for Slurm"
):
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with slurm.cluster(nodes=2) as environment:
        yield environment


@pytest.fixture(scope="module")
def house(cluster, tmp_path_factory) -> Path:
    """A copy of the repository in which jobs of Slurm have made what leads to a score, foundations included."""
    folder = repository.copy(tmp_path_factory.mktemp("slurm") / "house")
    snakemake(folder, cluster, "{gpus: 2, sharding: full_shard, memory_mb: 1000}", "--", SCORE)
    return folder


def snakemake(folder: Path, cluster: dict[str, str], machine: str, *arguments: str, **environment: str) -> str:
    """Run Snakemake with the Slurm profile on a section `machine`; returns what it said."""
    text = (folder / "config/smoke.yaml").read_text(encoding="utf-8")
    (folder / "config/slurm.yaml").write_text(f"{text}\nmachine: {machine}\n", encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster["PATH"]])
    variables = {**cluster, "PATH": path, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", **environment}
    command = ["snakemake", "--workflow-profile", "profiles/slurm", "--configfile=config/slurm.yaml", *FAST]
    result = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("logs/slurm/*/*.log"))
    assert result.returncode == 0, result.stdout[-6000:] + logs
    return result.stdout


def jobs(cluster: dict[str, str]) -> dict[str, dict[str, str]]:
    """What Slurm knows of the last job of each rule."""
    lines = subprocess.run(["scontrol", "--oneliner", "show", "jobs"], env=cluster, capture_output=True, text=True)
    found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines.stdout.splitlines()]
    return {job["Comment"].removeprefix("rule_"): job for job in found}


def test_slurm_ran_every_rule_with_what_it_asked_for(house, cluster):
    ran = jobs(cluster)
    rules = {"make_world", "train_align_creation", "train_align_comprehension", "train_foundation_sd"}
    assert rules <= set(ran) and {job["JobState"] for job in ran.values()} == {"COMPLETED"}
    training = ran["train_align_creation"]
    assert (
        training["TresPerJob"] == "gres:gpu:2" and training["NumNodes"] == "1" and training["TimeLimit"] == "01:00:00"
    )
    assert "mem=1000M" in training["TRES"] and "TresPerJob" not in ran["make_world"]
    assert {job["Partition"] for job in ran.values()} == {"main"}  # the default one
    assert json.loads((house / SCORE).read_text())["benchmark"] == "captions"


def test_a_training_runs_on_two_nodes_to_the_same_losses(house, cluster):
    """Through srun and accelerate, with FSDP; another number of nodes trains nothing again, unless it is forced."""
    on_one_node = test_train.losses(house / CHECKPOINT)
    machine = "{gpus: 1, nodes: 2, sharding: full_shard, memory_mb: 1000}"
    assert "Nothing to be done" in snakemake(house, cluster, machine, "--", CHECKPOINT)
    other = {"SBATCH_PARTITION": "other"}
    snakemake(house, cluster, machine, "--forcerun", "train_align_creation", "--", CHECKPOINT, **other)
    job = jobs(cluster)["train_align_creation"]
    assert job["NumNodes"] == "2" and job["TresPerNode"] == "gres:gpu:1" and job["Partition"] == "other"
    for found, wanted in zip(test_train.losses(house / CHECKPOINT), on_one_node, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, nan_ok=True)

"""The Slurm profile on a cluster of two simulated nodes: from nothing to tables and figures.

Skipped where Debian's packages of Slurm or Snakemake's plugin for it are not installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import repository
import slurm
import test_train
from dreamllm.config.reading import load

CHECKPOINT = "results/checkpoints/smoke/align_creation"
BENCHMARKS = ("captions", "draw", "attention", "language")  # for each rule that predicts; test_end_to_end.py has all
SCORE = "results/metrics/smoke/alignment/captions.json"
FAST = ("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1")  # there is no accounting
FAST += ("--seconds-between-status-checks", "1", "--latency-wait", "10", "--retries", "0")

reason = slurm.missing() or ("" if find_spec("snakemake_executor_plugin_slurm") else "no executor plugin for Slurm")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=reason)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with slurm.cluster(nodes=2) as environment:
        yield environment


@pytest.fixture(scope="module")
def checkout(cluster, tmp_path_factory) -> Path:
    """A copy of the repository in which jobs of Slurm have made everything, from foundations to tables and figures."""
    folder = repository.copy(tmp_path_factory.mktemp("slurm") / "checkout")
    snakemake(folder, cluster, "{gpus: 1, memory_mb: 1000}", "--", "results/tables", "results/figures")
    return folder


def snakemake(
    folder: Path, cluster: dict[str, str], machine: str, *arguments: str, steps: int = 2, **environment: str
) -> str:
    """Run Snakemake with the Slurm profile on a section `machine`; returns what it said. steps: of align_creation"""
    content = yaml.safe_load((folder / "config/smoke.yaml").read_text(encoding="utf-8"))
    for evaluation in content["evaluations"]:
        evaluation["benchmarks"] = [name for name in evaluation["benchmarks"] if name in BENCHMARKS]
    content["evaluations"] = [evaluation for evaluation in content["evaluations"] if evaluation["benchmarks"]]
    content["machine"] = yaml.safe_load(machine)
    content["stages"]["align_creation"]["steps"] = steps
    (folder / "config/slurm.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster["PATH"]])
    variables = {**cluster, "PATH": path, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", **environment}
    command = ["snakemake", "--workflow-profile", "profiles/slurm", "--configfile=config/slurm.yaml", *FAST]
    result = subprocess.run(
        [*command, *arguments],
        check=False,
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
    return {re.sub(r"^rule_|_wildcards_.*", "", job["Comment"]): job for job in all_jobs(cluster)}


def all_jobs(cluster: dict[str, str]) -> list[dict[str, str]]:
    lines = subprocess.run(
        ["scontrol", "--oneliner", "show", "jobs"], check=True, env=cluster, capture_output=True, text=True
    )
    return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines.stdout.splitlines()]


def test_slurm_ran_the_dag_with_what_each_rule_asked_for(checkout, cluster):
    made = {path.stem for path in (checkout / "timings/smoke").glob("*.tsv")}
    ran = jobs(cluster)
    rules = "make_world train_foundation_sd predict_text predict_pictures predict_attention score figures tables"
    assert set(rules.split()) <= set(ran)
    assert {f"train_{stage}" for stage in load(checkout / "config/smoke.yaml").stages} <= made & set(ran)
    assert {job["JobState"] for job in ran.values()} == {"COMPLETED"}
    assert len(all_jobs(cluster)) == len(made), "one job of Slurm for each job of the DAG"
    training = ran["train_align_creation"]
    assert training["TresPerJob"] == "gres:gpu:1" and training["NumNodes"] == "1"
    assert training["TimeLimit"] == "01:00:00" and "mem=1000M" in training["TRES"]
    assert "TresPerJob" not in ran["make_world"]
    assert {job["Partition"] for job in ran.values()} == {"main"}  # the default one
    assert (checkout / "results/tables/table1.md").exists() and (checkout / "results/figures/drawings.png").exists()
    assert json.loads((checkout / SCORE).read_text())["benchmark"] == "captions"


def test_a_training_runs_on_two_gpus_and_on_two_nodes_to_the_same_losses(checkout, cluster):
    """Through srun and accelerate, with FSDP; another number of nodes trains nothing again, unless it is forced."""
    alone = test_train.losses(checkout / CHECKPOINT)
    two = {"{gpus: 2, sharding: full_shard, memory_mb: 1000}": "main"}
    two["{gpus: 1, nodes: 2, sharding: full_shard, memory_mb: 1000}"] = "other"
    for machine, partition in two.items():
        assert "Nothing to be done" in snakemake(checkout, cluster, machine, "--", CHECKPOINT)
        forced = ("--forcerun", "train_align_creation", "--", CHECKPOINT)
        snakemake(checkout, cluster, machine, *forced, SBATCH_PARTITION=partition)
        job = jobs(cluster)["train_align_creation"]
        if "nodes" in machine:
            assert job["NumNodes"] == "2" and job["TresPerNode"] == "gres:gpu:1"
        else:
            assert job["NumNodes"] == "1" and job["TresPerJob"] == "gres:gpu:2"
        assert job["Partition"] == partition
        for found, wanted in zip(test_train.losses(checkout / CHECKPOINT), alone, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4, nan_ok=True)


def test_sigterm_stops_a_training_and_snakemake_submits_it_again(checkout, cluster):
    """What a preemption or the end of the time limit sends, to all processes of the job's step. Bit-equal resuming is
    in test_preemption.py."""
    log = checkout / "logs/smoke/train_align_creation.log"
    log.unlink()
    with ThreadPoolExecutor(1) as thread:
        machine = "{gpus: 1, memory_mb: 1000}"
        run = thread.submit(snakemake, checkout, cluster, machine, "--retries", "1", "--", CHECKPOINT, steps=300)
        while not (log.exists() and "step 1 of 300" in log.read_text()):
            assert not run.done(), run.result()
            time.sleep(0.05)
        (job,) = (job["JobId"] for job in all_jobs(cluster) if job["JobState"] == "RUNNING")
        subprocess.run(["scancel", "--signal=TERM", job], check=True, env=cluster)
        said = run.result()
    assert said.count("Trying to restart job") == 1
    assert re.search(r"resuming after step \d+ of 300", log.read_text())
    assert [row["step"] for row in test_train.losses(checkout / CHECKPOINT)] == list(range(1, 301))

"""SIGTERM (preemption, time limit) and dead nodes: a training saves, ends soon, and goes on by itself.

Below Snakemake the verbs are those of stub_verbs.py; test_slurm.py has a real scheduler.
"""

from __future__ import annotations

import os
import re
import signal
import threading

import pytest

import ranks
import repository
import test_scale
import test_train
from dreamllm.train import preemption, trainer

world = test_train.world


def sigterm_in_step(monkeypatch: pytest.MonkeyPatch, wanted: int) -> None:
    """Send SIGTERM to this process in the step with this number, counted from 0."""
    rate = trainer.learning_rate

    def send(step: int, *others) -> float:
        if step == wanted:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(step, *others)

    monkeypatch.setattr(trainer, "learning_rate", send)


def test_sigterm_saves_after_the_running_step_and_the_same_command_ends_bit_equal(world, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    whole = test_train.run(world, tmp_path / "whole", test_train.experiment())
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        sigterm_in_step(patched, 2)
        test_train.run(world, tmp_path / "stopped", test_train.experiment())
    assert stopped.value.code == preemption.STATUS == 143
    assert test_train.saved_step(tmp_path / "stopped" / "work") == 3 and not (tmp_path / "stopped" / "out").exists()
    assert re.search(r"SIGTERM: saved after step 3 in \d+\.\d s; the same command", capsys.readouterr().out)
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = test_train.run(world, tmp_path / "stopped", test_train.experiment())
    assert "resuming after step 3 of 6" in capsys.readouterr().out
    for name in test_train.FILES:
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


def test_sigterm_in_the_last_step_does_not_keep_the_training_from_its_end(world, tmp_path, monkeypatch):
    sigterm_in_step(monkeypatch, 5)
    assert (test_train.run(world, tmp_path, test_train.experiment()) / "trained.safetensors").exists()


@pytest.mark.parametrize("machine", [{}, {"sharding": "full_shard"}], ids=["whole", "sharded"])
def test_sigterm_to_one_of_two_processes_stops_both_after_the_same_step(world, tmp_path, machine):
    def child(rank: int) -> None:
        if rank == 1:
            sigterm_in_step(pytest.MonkeyPatch(), 1)
        test_train.run(world, tmp_path, test_scale.experiment(machine))

    errors = ranks.run(2, child, tmp_path)
    assert [error.splitlines()[-1] for error in errors] == ["SystemExit: 143"] * 2
    assert test_train.saved_step(tmp_path / "work") == 2 and not (tmp_path / "out").exists()
    assert test_scale.train(world, tmp_path, test_scale.experiment()) == [""]
    assert test_scale.train(world, tmp_path / "alone", test_scale.experiment()) == [""]
    rows = (test_train.losses(folder / "out") for folder in (tmp_path, tmp_path / "alone"))
    for row, wanted in zip(*rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_in_a_thread_sigterm_is_left_to_the_program():
    seen = []

    def enter() -> None:
        with preemption.sigterm_recorded() as received:
            seen.append(signal.getsignal(signal.SIGTERM))
            seen.append(received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM), []]


DIES_ONCE = """
import os, signal, sys
from pathlib import Path
if "--stage" in sys.argv:
    work = Path(sys.argv[sys.argv.index("--work") + 1])
    work.mkdir(parents=True, exist_ok=True)
    (work / "parent").write_bytes(Path(f"/proc/{os.getppid()}/cmdline").read_bytes())
    if not (work / "state").exists():
        (work / "state").write_text("saved before the node died")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_snakemake_retries_a_training_whose_node_died_in_the_same_work_folder(tmp_path):
    folder = repository.copy(tmp_path / "checkout")
    verbs = (repository.ROOT / "tests/stub_verbs.py").read_text()
    (folder / "src/dreamllm/__main__.py").write_text(DIES_ONCE + verbs)
    checkpoint = "results/checkpoints/smoke/align_creation"
    options = ("--cores", "1", "--configfile=config/smoke.yaml", "--retries", "1")
    said = repository.run(folder, "snakemake", *options, "--", checkpoint).stdout
    assert said.count("Trying to restart job") == 1
    assert (folder / "logs/ran.txt").read_text().split().count("train") == 1, "the second attempt comes to its end"
    assert (folder / checkpoint / "trained.safetensors").exists()
    work = folder / "scratch/smoke/align_creation"
    assert (work / "state").read_text() == "saved before the node died"
    parent = (work / "parent").read_bytes().split(b"\0")
    assert any(word.endswith(b"snakemake") for word in parent), f"no shell that SIGTERM would end first: {parent}"

"""Predictions in several processes: the same bytes as in one, whatever dies on the way; `machine.compile` in them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import yaml

import ranks
import test_launch
import test_pictures
import test_predict
from dreamllm.config.machine import Machine
from dreamllm.evaluate import predict, predictions, tasks
from dreamllm.evaluate.job import PredictionJob
from dreamllm.model import generate

world = test_predict.world


@pytest.fixture
def config(world, tmp_path) -> Path:
    """Batches of two, so that a benchmark has some to divide."""
    batches = {"text": {"max_new_tokens": 6, "batch_size": 2}, "drawing": {"steps": 2, "batch_size": 2}}
    return test_pictures.configure(world, tmp_path, **batches)


def arguments(world: Path, config: Path, out: Path, benchmark: str, model: str = "stage") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    flags = f"--config {config} --model {model} --benchmark {benchmark} --split test --out {out} --work {out.parent}/w"
    flags += f" --benchmarks {world}/benchmarks --foundations {world}/foundations"
    stages = ["--checkpoints", str(world / "stage")] if model == "stage" else []
    return parser.parse_args([*flags.split(), *stages])


def in_processes(number: int, given: argparse.Namespace, before=lambda rank: None) -> list[str]:
    """Predict in forked processes; `before` is called in each of them. Returns their errors by rank."""

    def child(rank: int) -> None:
        before(rank)
        predict.main(given)

    return ranks.run(number, child, given.out.parent / "errors")


@pytest.mark.parametrize("benchmark", ["captions", "language", "draw", "illustrations", "stories"])
def test_any_number_of_processes_writes_the_same_bytes(world, config, tmp_path, benchmark):
    name = f"out.{tasks.about(benchmark).predictions}"
    assert in_processes(1, arguments(world, config, tmp_path / "one" / name, benchmark)) == [""]
    for number in (2, 3):
        given = arguments(world, config, tmp_path / str(number) / name, benchmark)
        assert in_processes(number, given) == [""] * number
        assert given.out.read_bytes() == (tmp_path / "one" / name).read_bytes(), number
        assert list(given.work.iterdir()) == [], "nothing is left"


def test_the_launcher_starts_a_process_per_gpu(world, config, tmp_path):
    given = arguments(world, config, tmp_path / "one" / "out.jsonl", "captions")
    assert in_processes(1, given) == [""]
    out = tmp_path / "two" / "out.jsonl"
    flags = ["--config", config, "--model", "stage", "--benchmark", "captions", "--split", "test", "--out", out]
    flags += ["--benchmarks", world / "benchmarks", "--foundations", world / "foundations"]
    flags += ["--checkpoints", world / "stage", "--work", tmp_path / "two" / "w"]
    result = test_launch.launch([1, 2, "predict", *flags], OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    assert out.read_bytes() == given.out.read_bytes()


def test_each_process_predicts_a_part(world, config, tmp_path):
    """The batches of two, of eight images, that each of three processes writes captions for."""
    given = arguments(world, config, tmp_path / "out.jsonl", "captions")

    def note(rank: int) -> None:
        in_batches = PredictionJob.in_batches

        def noted(job, name, items, size, predict):
            def predict_and_note(batch):
                with (tmp_path / f"seen-{rank}").open("a") as file:
                    file.write(" ".join(item.id for item in batch) + "\n")
                return predict(batch)

            return in_batches(job, name, items, size, predict_and_note)

        PredictionJob.in_batches = noted

    assert in_processes(3, given, note) == [""] * 3
    ids = [item.id for item in tasks.load("captions", world / "benchmarks", "test")]
    pairs = [" ".join(ids[start : start + 2]) for start in range(0, len(ids), 2)]
    seen = [(tmp_path / f"seen-{rank}").read_text().splitlines() for rank in range(3)]
    assert seen == [pairs[rank::3] for rank in range(3)]


@pytest.mark.parametrize(("benchmark", "function", "left"), [("captions", "write", 2), ("draw", "draw", 1)])
def test_when_a_process_dies_the_batches_of_the_others_are_kept(
    world, config, tmp_path, monkeypatch, benchmark, function, left
):
    name = f"out.{tasks.about(benchmark).predictions}"
    assert in_processes(1, arguments(world, config, tmp_path / "whole" / name, benchmark)) == [""]
    given = arguments(world, config, tmp_path / "died" / name, benchmark)
    errors = in_processes(2, given, lambda rank: rank == 1 and setattr(generate, function, None))
    assert "'NoneType' object is not callable" in errors[1] and not given.out.exists()
    calls, plain = [], getattr(generate, function)
    monkeypatch.setattr(generate, function, lambda *args, **kw: calls.append(args) or plain(*args, **kw))
    predict.main(given)  # in one process
    assert len(calls) == left, "batches of the dead process"
    assert given.out.read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_batches_of_other_settings_or_another_batch_size_are_not_taken_for_these(world, config, tmp_path, monkeypatch):
    def killed(job, header, records, images=None):
        raise KeyboardInterrupt

    given = arguments(world, config, tmp_path / "out.jsonl", "captions")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PredictionJob, "write", killed)
        predict.main(given)
    (folder,) = given.work.iterdir()
    content = yaml.safe_load(config.read_text())
    content["evaluation"]["text"]["max_new_tokens"] = 3
    config.write_text(yaml.safe_dump(content))
    predict.main(given)
    assert list(given.work.iterdir()) == [folder], "its own is gone, the other one is not touched"
    (batches,) = folder.iterdir()
    assert batches.name == "answers-2" and len(list(batches.iterdir())) == 4


def test_several_processes_need_a_common_folder_and_a_benchmark_that_can_be_divided(world, config, tmp_path):
    given = arguments(world, config, tmp_path / "out.jsonl", "latency")
    assert all("task latency in 2 processes: is predicted by one process" in each for each in in_processes(2, given))
    given = arguments(world, config, tmp_path / "out.jsonl", "captions")
    given.work = None
    assert all("needs --work, a folder that they all see" in each for each in in_processes(2, given))


def test_every_benchmark_that_is_not_divided_says_so():
    assert {name for name in tasks.NAMES if not tasks.about(name).parallel} == {"attention", "harness", "latency"}


def test_a_prediction_takes_no_more_gpus_than_there_are():
    with pytest.raises(ValueError, match="gpus_per_prediction is 4, more than the 2 of `gpus`"):
        Machine(gpus=2, gpus_per_prediction=4)
    assert Machine().gpus_per_prediction == Machine(gpus=8).gpus_per_prediction == 1


@pytest.mark.parametrize("model", ["stage", "sd"])
def test_with_compile_the_unet_is_compiled_and_draws_the_same(world, config, tmp_path, monkeypatch, model):
    """With the tracer alone: what a C++ or CUDA compiler makes of the traces is not ours to test."""
    predict.main(arguments(world, config, tmp_path / "plain.tar", "draw", model))
    compiled, compile_ = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: compiled.append(f) or compile_(f, backend="aot_eager", **kw))
    content = yaml.safe_load(config.read_text()) | {"machine": {"compile": True}}
    config.write_text(yaml.safe_dump(content))
    predict.main(arguments(world, config, tmp_path / "compiled.tar", "draw", model))
    assert len(compiled) == 4, "the transformer blocks of the tiny UNet"
    plain, fused = (predictions.read(tmp_path / f"{name}.tar") for name in ("plain", "compiled"))
    assert fused.header["protocol"].pop("compiled") is True and fused.header == plain.header
    for record in plain.records.values():
        here, there = (
            torch.frombuffer(bytearray(one.image(record["image"], "").tobytes()), dtype=torch.uint8)
            for one in (plain, fused)
        )
        assert (here.int() - there.int()).abs().max() <= 1

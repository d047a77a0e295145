"""A stage trains the parameters that it names, is reproducible to the byte, and resumes bit-equal after a kill.

Where the golden losses are missing, their test writes them and fails; a change of them needs a line in CHANGELOG.md.
"""

import csv
import importlib.machinery
import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import tracking
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import tiny
from dreamllm.config import machine
from dreamllm.config.experiment import Experiment
from dreamllm.config.machine import Machine
from dreamllm.data import shards
from dreamllm.data.mixture import Mixture, pair_mode
from dreamllm.data.stream import Stream, start_position
from dreamllm.seeds import seed_of
from dreamllm.train import distributed, resume, trainer
from dreamllm.train.checkpoint import load_model
from dreamllm.train.log import NonFiniteLoss
from dreamllm.train.schedule import learning_rate
from dreamllm.train.trainer import train

GOLDEN = Path(__file__).parent / "golden" / "losses_tiny.csv"
FILES = ("checkpoint.json", "losses.csv", "trained.safetensors")
EVERYTHING = ["language_model", "visual_projector", "dream_queries", "condition_projector"]


def experiment(precision: str = "fp32", **changes) -> Experiment:
    """One stage, called `igpt`, of a few tiny steps. precision: not auto, so that the losses are the same everywhere"""
    igpt = {
        "trains": EVERYTHING,
        "mode": "joint",
        "mixture": {"pairs": 2.0, "stories": 1.0, "instructions": 1.0, "text": 1.0},
        "steps": 6,
        "rows_per_batch": 2,
        "context": 128,
        "learning_rate": 0.003,
        "warmup_ratio": 0.3,
        "weight_decay": 0.01,
        "condition_dropout": 0.1,
        **changes,
    }
    return Experiment.model_validate(
        {
            "name": "tiny",
            "precision": precision,
            "foundations": {"source": "fetch", "md5": "0" * 32 + ".dir", "sha256": "0" * 64},
            "model": {"num_dream_queries": 4, "template": "plain"},
            "stages": {"igpt": igpt},
        }
    )


def write_world(folder: Path, **changes) -> Path:
    """Foundations and shard sets of every kind of document."""
    tiny.foundations(folder / "foundations", **changes)
    makers = {"pairs": tiny.pair, "stories": tiny.story, "instructions": tiny.conversation, "text": tiny.text}
    for name, make in makers.items():
        shards.write((make(seed) for seed in range(8)), folder / "data" / name, per_shard=4)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def run(world: Path, folder: Path, settings: Experiment, **options) -> Path:
    AcceleratorState._reset_state()  # it would keep the precision of the process's first training
    paths = {"foundations": world / "foundations", "data": [world / "data"], "init": [], "work": folder / "work"}
    train(settings, "igpt", **{**paths, "out": folder / "out", **options})
    return folder / "out"


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    """The checkpoint of an uninterrupted run."""
    return run(world, tmp_path_factory.mktemp("trained"), experiment())


def losses(folder: Path) -> list[dict[str, float]]:
    with (folder / "losses.csv").open() as file:
        return [{key: float(value or math.nan) for key, value in row.items()} for row in csv.DictReader(file)]


# ---- what is trained -----------------------------------------------------------------------------------------------


def test_losses_are_the_golden_ones(trained):
    if not GOLDEN.exists():
        GOLDEN.write_bytes((trained / "losses.csv").read_bytes())
        pytest.fail(f"{GOLDEN} was missing and has been written: look at it and run again")
    with GOLDEN.open() as file:
        golden = [{key: float(value or math.nan) for key, value in row.items()} for row in csv.DictReader(file)]
    found = losses(trained)
    assert [row.keys() for row in found] == [row.keys() for row in golden]
    for row, wanted in zip(found, golden, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3, nan_ok=True), f"step {wanted['step']:.0f}"


@pytest.mark.parametrize(
    ("mode", "trains", "weights"),
    [
        ("comprehension", ["visual_projector"], (1.0, 0.0)),
        ("creation", ["dream_queries", "condition_projector"], (0.0, 1.0)),
        ("joint", EVERYTHING, (1.0, 10.0)),
    ],
)
def test_exactly_the_trained_parts_have_gradients(world, mode, trains, weights):
    settings = experiment(mode=mode, trains=trains, loss_weights={"language": weights[0], "diffusion": weights[1]})
    model, processor = load_model(world / "foundations", [], {"num_dream_queries": 4, "template": "plain", "seed": 0})
    trainer.apply_stage(model, settings.stages["igpt"])
    sequences = [s for n in range(2) for s in processor.lay_out(tiny.story(n), mode, 128)]
    batch = processor.collate([[sequence] for sequence in sequences])
    output = model(**batch.inputs(), generator=torch.Generator().manual_seed(0))
    output.loss.backward()
    norms = {name: parameter.grad.norm() for name, parameter in model.named_parameters() if parameter.grad is not None}
    wanted = {name for name, _ in model.named_parameters() if name.split(".")[0] in trains}
    assert set(norms) == wanted
    assert all(norm > 0 for norm in norms.values()), norms
    losses = [0.0 if x is None else x.item() for x in (output.language_loss, output.diffusion_loss)]
    assert output.loss.item() == pytest.approx(weights[0] * losses[0] + weights[1] * losses[1])
    assert not model.unet.training and not model.vision_model.training
    assert model.language_model.training == ("language_model" in trains)


def test_a_stage_changes_only_its_parts_and_loads_those_of_earlier_stages(world, tmp_path):
    two = experiment(steps=2)
    first = run(world, tmp_path / "1", experiment(steps=2, mode="comprehension", trains=["visual_projector"]))
    second = run(world, tmp_path / "2", experiment(steps=2, mode="creation", trains=["dream_queries"]), init=[first])
    assert set(load_file(first / "trained.safetensors")) == {"visual_projector.weight", "visual_projector.bias"}
    assert set(load_file(second / "trained.safetensors")) == {"dream_queries"}
    options = {**two.model.model_dump(), "seed": seed_of(0, "model")}
    fresh = load_model(world / "foundations", [], options)[0].state_dict()
    final = load_model(world / "foundations", [first, second])[0].state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], final[name])}
    assert changed == {"visual_projector.weight", "visual_projector.bias", "dream_queries"}
    assert len(json.loads((second / "checkpoint.json").read_text())["init"]) == 1


def test_weight_decay_spares_embeddings_norms_and_biases(world):
    model, _ = load_model(world / "foundations", [], {"num_dream_queries": 4, "seed": 0})
    parameters = {name: p for name, p in model.named_parameters() if name.split(".")[0] in EVERYTHING}
    decaying, others = trainer.parameter_groups(model, parameters, 0.1)
    names = {id(parameter): name for name, parameter in parameters.items()}
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    spared = {names[id(parameter)] for parameter in others["params"]}
    assert {"dream_queries", "visual_projector.bias", "language_model.model.embed_tokens.weight"} <= spared
    assert all("norm" in name or "embed" in name for name in spared - {"dream_queries", "visual_projector.bias"})
    assert len(spared) + len(decaying["params"]) == len(parameters)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 100, 2.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1.0) and 0 < rates[-1] < 0.001
    assert learning_rate(0, 1, 2.0, 0.0) == 2.0 == learning_rate(0, 1, 2.0, 1.0)


# ---- checkpoint ----------------------------------------------------------------------------------------------------


def test_equal_runs_give_equal_bytes(world, trained, tmp_path):
    again = run(world, tmp_path, experiment())
    for name in FILES:
        assert (again / name).read_bytes() == (trained / name).read_bytes()


def test_metadata_tells_where_the_checkpoint_comes_from(world, trained):
    content = (trained / "checkpoint.json").read_text()
    about = json.loads(content)
    assert str(world) not in content
    assert about["stage"] == "igpt" and about["config"]["steps"] == 6 and about["model"]["num_dream_queries"] == 4
    assert set(about["foundations"]) == {"llm", "clip", "sd"} and len(about["data"]["pairs"]["pairs-00001.tar"]) == 64
    assert {"torch", "transformers", "diffusers"} <= set(about["versions"])
    rows = losses(trained)
    assert about["totals"]["steps"] == 6 and about["totals"]["skipped_documents"] == 0
    assert about["totals"]["pictures_drawn"] == sum(row["pictures_drawn"] for row in rows) > 0
    assert about["totals"]["final"]["loss"] == pytest.approx(rows[-1]["loss"], rel=1e-5)
    assert 0 < about["totals"]["tokens"] <= 6 * 2 * 128


def test_logs_can_be_read_by_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.parent / "work" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert events.Scalars("loss")[3].value == pytest.approx(losses(trained)[3]["loss"], rel=1e-4)


def test_losses_go_to_the_tracker_of_the_configuration(tmp_path, monkeypatch):
    """With wandb's interface: its package is not part of this repository."""
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((values, step))

        def finish(self):
            calls.append("finished")

    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.init = lambda **options: calls.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.WANDB])
    AcceleratorState._reset_state(True)
    settings = experiment("fp32").model_copy(update={"machine": Machine(tracker="wandb")})
    stage = next(iter(settings.stages))
    accelerator = distributed.start_accelerator(settings.stages[stage], settings.machine, torch.float32, tmp_path)
    distributed.start_tracker(accelerator, settings, stage, tmp_path, done=0)
    accelerator.log({"loss": 0.5}, step=1)
    accelerator.end_training()
    begun, logged, ended = calls
    assert begun["project"] == "dreamllm" and begun["name"] == f"{settings.name}-{stage}"
    assert begun["config"]["steps"] == settings.stages[stage].steps and begun["dir"] == str(tmp_path)
    assert logged == ({"loss": 0.5}, 1) and ended == "finished"


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    settings = experiment("fp32")
    [stage, *_] = settings.stages.values()
    with pytest.raises(distributed.MachineProblem, match=r"machine.tracker: trackio is not installed here; `pip"):
        distributed.start_accelerator(stage, Machine(tracker="trackio"), torch.float32, tmp_path)


# ---- resume --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_resumes_bit_equal(world, tmp_path, precision):
    settings = experiment(precision, steps=30)
    whole = run(world, tmp_path / "whole", settings)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    work = tmp_path / "killed" / "work"
    arguments = ["--stage", "igpt", "--config", tmp_path / "config.yaml", "--foundations", world / "foundations"]
    arguments += ["--data", world / "data", "--out", tmp_path / "killed" / "out", "--work", work, "--save-every", "0"]
    code = """if True:
        import argparse
        from dreamllm.verbs import train
        parser = argparse.ArgumentParser()
        train.add_arguments(parser)
        train.main(parser.parse_args())"""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.DEVNULL)
    while process.poll() is None and saved_step(work) < 3:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= saved_step(work) < 30 and not (tmp_path / "killed" / "out").exists()

    resumed = run(world, tmp_path / "killed", settings)
    for name in FILES:
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(path.name for path in work.iterdir()) == ["lock", "tensorboard"]


def saved_step(work: Path) -> int:
    path = work / "state.json"
    return json.loads(path.read_text())["step"] if path.exists() else 0


def test_two_trainers_never_share_a_work_folder(world, tmp_path):
    with resume.locked(tmp_path / "work"), pytest.raises(resume.FolderInUse, match="another training"):
        run(world, tmp_path, experiment())
    run(world, tmp_path, experiment(steps=1))  # free again


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_step_and_documents(world, tmp_path):
    words = r"step [23]: loss .*learning rate.*(pair|story|text|conversation) \d"
    with pytest.raises(NonFiniteLoss, match=words) as error:
        run(world, tmp_path, experiment(learning_rate=1e30, warmup_ratio=0.0), save_every=0)
    assert "nan" in str(error.value) or "inf" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_document_is_skipped_reported_and_shifts_no_picture(tmp_path, capsys):
    world = write_world(tmp_path)
    path = world / "data" / "stories-00000.tar"
    record = shards.index(path)[2]
    _, offset, size = record.members[0]
    with path.open("r+b") as file:  # in the middle of its first picture
        file.seek(offset + size // 2)
        file.write(bytes(40))

    _, processor = load_model(world / "foundations", [], {"num_dream_queries": 4, "template": "plain", "seed": 0})
    names = ("pairs", "stories", "instructions", "text")
    mixture = Mixture({name: shards.find(world / "data" / name) for name in names}, dict.fromkeys(names, 1.0), seed=0)
    stream = Stream(
        mixture,
        lambda document, epoch: processor.lay_out(document, pair_mode("joint", document, epoch, 0), 128),
        processor.collate,
        rows=2,
        context=128,
        position=start_position(mixture),
    )
    makers = (tiny.pair, tiny.story, tiny.conversation, tiny.text)
    documents = {document.id: document for document in (make(n) for n in range(8) for make in makers)}
    batches = list(islice(stream, 12))
    problems = {(problem.file, problem.record) for item in batches for problem in item.problems}
    assert problems == {(str(path), record.key)}
    for batch in (item.collated for item in batches):
        assert "story 2" not in [name for row in batch.document_ids for name in row]
        for slots, pixels, prepare in (
            (batch.read_slots, batch.read_pixels, processor.read_pixels),
            (batch.draw_slots, batch.draw_pixels, processor.draw_pixels),
        ):
            for (row, place), found in zip(slots.tolist(), pixels if len(slots) else [], strict=True):
                owner = (batch.position_ids[row, : place + 1] == 0).sum() - 1  # which document of the row
                pictures = documents[batch.document_ids[row][owner]].pictures
                assert any(torch.equal(found, one) for one in prepare(pictures))

    out = run(world, tmp_path, experiment(steps=6, mixture={"stories": 1.0}))
    assert json.loads((out / "checkpoint.json").read_text())["totals"]["skipped_documents"] >= 1
    assert f"skipped a damaged document (1 so far): {path}, record {record.key}" in capsys.readouterr().err


def test_a_shard_set_must_be_in_exactly_one_folder(world, tmp_path):
    with pytest.raises(ValueError, match=r"'pairs'.* found in 0 of the folders"):
        run(world, tmp_path, experiment(), data=[tmp_path])
    with pytest.raises(ValueError, match="found in 2 of the folders"):
        run(world, tmp_path, experiment(), data=[world / "data", world / "data"])


def test_a_stage_without_pictures_or_without_language_targets_trains(world, tmp_path):
    text = losses(run(world, tmp_path / "text", experiment(steps=2, mixture={"text": 1.0})))
    assert all(math.isnan(row["diffusion_loss"]) and row["language_loss"] > 0 for row in text)
    weights = {"language": 0.0, "diffusion": 1.0}
    pairs = experiment(steps=2, mixture={"pairs": 1.0}, mode="creation", trains=["dream_queries"], loss_weights=weights)
    drawn = losses(run(world, tmp_path / "pairs", pairs))
    assert all(math.isnan(row["language_loss"]) and row["loss"] == row["diffusion_loss"] > 0 for row in drawn)


def test_a_training_in_another_precision_starts_anew_and_says_so(world, tmp_path, monkeypatch, capsys):
    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    save = resume.Checkpointer.save
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(resume.Checkpointer, "save", save_and_stop)
        run(world, tmp_path, experiment("bf16"), save_every=0)
    assert saved_step(tmp_path / "work") == 1
    out = run(world, tmp_path, experiment("fp32"))
    assert "the saved state is of a training with different precision; starting from step 0" in capsys.readouterr().out
    assert json.loads((out / "checkpoint.json").read_text())["precision"] == "fp32"
    assert losses(out) == losses(run(world, tmp_path / "anew", experiment("fp32")))


def test_with_several_draws_a_stage_trains_alike_however_its_rows_are_divided(world, tmp_path):
    settings = {"noise_draws": 3, "stratified_timesteps": True, "condition_dropout": 0.5}
    whole = run(world, tmp_path / "whole", experiment(**settings))
    parts = Experiment.model_validate(experiment(**settings).model_dump() | {"machine": {"rows_at_a_time": 1}})
    for row, wanted in zip(losses(run(world, tmp_path / "parts", parts)), losses(whole), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6, nan_ok=True)
    assert losses(whole)[0]["diffusion_loss"] != losses(run(world, tmp_path / "one", experiment()))[0]["diffusion_loss"]


def test_a_stage_without_any_loss_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="set at least one of them"):
        run(world, tmp_path, experiment(loss_weights={"language": 0.0, "diffusion": 0.0}))

"""Losses, gradients and order of documents do not depend on the number of processes or on micro-batches.

Processes are forked and talk through gloo on this machine; one test goes through `accelerate launch`.
"""

from __future__ import annotations

import json
import os
import re
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ranks
import test_launch
import test_train
import tiny
from dreamllm.config.experiment import Experiment
from dreamllm.data import shards
from dreamllm.data.layout import IGNORE, TokenSequence
from dreamllm.data.mixture import Mixture
from dreamllm.data.packing import pack
from dreamllm.data.stream import Position, SequencePlan, StepBatch, Stream, start_position
from dreamllm.model import build
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.processor import DreamLLMProcessor
from dreamllm.train import checkpoint, distributed, resume, trainer
from dreamllm.train.log import count_rows

STEPS = 4


def experiment(machine: dict | None = None, **changes) -> Experiment:
    """Four rows per batch, so that 1, 2 and 4 processes can share them; half of the pictures lose their condition."""
    settings = test_train.experiment(**{"rows_per_batch": 4, "steps": STEPS, "condition_dropout": 0.5, **changes})
    return Experiment.model_validate({**settings.model_dump(mode="json"), "machine": machine or {}})


def train(world: Path, folder: Path, settings: Experiment, processes: int = 1, **options) -> list[str]:
    """Train in forked processes; the gradients of the first step are kept in `folder`. Returns the errors by rank."""

    def child(rank: int) -> None:
        clip, written = distributed.clip_gradients, []

        def keep_and_clip(parameters, max_norm):
            if not written:
                written.append(True)
                gradients = [
                    distributed.full_tensor(p.grad if p.grad is not None else torch.zeros_like(p)) for p in parameters
                ]
                if rank == 0:
                    save_file({str(n): gradient.detach().clone() for n, gradient in enumerate(gradients)}, kept)
            return clip(parameters, max_norm)

        distributed.clip_gradients = keep_and_clip
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
    not_compared = {"totals": None, "commit": None, "tensors": None}  # the last: a digest of rounded numbers
    assert {**about, **not_compared} == {**other, **not_compared}
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
        (2, {"sharding": "shard_grad_op", "rows_at_a_time": 1, "pictures_at_a_time": 2, "attention": "varlen"}),
        (2, {"sharding": "full_shard"}),
        (2, {"sharding": "full_shard", "rows_at_a_time": 1, "gradient_checkpointing": True}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_the_machine_changes_nothing_about_losses_and_gradients(world, alone, tmp_path, processes, machine):
    assert train(world, tmp_path, experiment(machine), processes) == [""] * processes
    assert_same_training(tmp_path, alone)


def test_compiled_layers_compute_what_they_computed_before(monkeypatch):
    """With the tracer alone: what a C++ or CUDA compiler makes of the traces is not ours to test."""
    compiled = []
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: compiled.append(f) or plain(f, backend="aot_eager", **kw))
    model, words = tiny.build()
    model.train()
    batch = words.collate(pack(words.lay_out(tiny.story(), "joint", 96), 96))
    noise = model.draw_noise(len(batch.draw_slots), torch.Generator().manual_seed(0))
    before = losses_and_gradients(model, batch, noise)
    distributed.checkpoint_activations(model)
    distributed.compile_layers(model)
    after = losses_and_gradients(model, batch, noise)
    blocks = 5 + 3  # of the UNet: two on each side and the middle one; of the VAE's encoder: two and the middle one
    assert len(compiled) == model.config.text_config.num_hidden_layers + blocks
    assert after[0] == pytest.approx(before[0], rel=1e-6)
    assert before[1].keys() == after[1].keys()
    for name, gradient in before[1].items():
        torch.testing.assert_close(after[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def losses_and_gradients(model, batch, noise) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch, and the gradients of whatever takes them."""
    model.zero_grad(set_to_none=True)
    loss = model(**batch.inputs(), noise=noise).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_official_averaging_would_be_noticed(world, alone, tmp_path):
    """Each part averaged by itself (the official code's way) gives other losses: the test above can fail."""
    plain = trainer.count_rows

    def child(rank: int) -> None:
        trainer.count_rows = lambda rows: replace(plain(rows), targets=plain(rows).targets // 2)
        test_train.run(world, tmp_path, experiment())

    assert ranks.run(1, child, tmp_path) == [""]
    with pytest.raises(AssertionError):
        assert test_train.losses(tmp_path / "out")[0] == pytest.approx(test_train.losses(alone / "out")[0], rel=1e-5)


@pytest.mark.parametrize("trains", [test_train.EVERYTHING, ["dream_queries", "condition_projector"]])
def test_a_stage_with_one_loss_trains_in_two_processes_although_parameters_stay_unused(world, tmp_path, trains):
    weights = {"language": 0.0, "diffusion": 1.0}
    settings = {"mode": "creation", "mixture": {"pairs": 1.0}, "loss_weights": weights, "trains": trains}
    folders = [tmp_path / name for name in ("alone", "two", "sharded")]
    assert train(world, folders[0], experiment(**settings)) == [""]
    assert train(world, folders[1], experiment(**settings), 2) == ["", ""]
    assert train(world, folders[2], experiment({"sharding": "full_shard"}, **settings), 2) == ["", ""]
    for folder in folders[1:]:
        assert_same_training(folder, folders[0])


def test_processes_without_pictures_do_not_deadlock(world, tmp_path):
    """Text beside few pictures: most parts draw nothing, and yet go through the sharded model equally often."""
    settings = {"mixture": {"text": 8.0, "pairs": 1.0}, "context": 64, "condition_dropout": 0.9}
    machine = {"sharding": "full_shard", "rows_at_a_time": 1}
    assert train(world, tmp_path / "alone", experiment(**settings)) == [""]
    assert train(world, tmp_path / "two", experiment(machine, **settings), 2) == ["", ""]
    rows = test_train.losses(tmp_path / "alone" / "out")
    assert any(row["pictures_drawn"] < 4 for row in rows)
    assert_same_training(tmp_path / "two", tmp_path / "alone")


@given(st.data())
def test_counting_rows_is_counting_their_batch(data):
    model_free = processor()
    makers = st.sampled_from([tiny.pair, tiny.story, tiny.conversation, tiny.text])
    documents = data.draw(
        st.lists(st.builds(lambda make, n: make(n), makers, st.integers(0, 9)), min_size=1, max_size=6)
    )
    sequences = [
        sequence
        for document in documents
        for sequence in model_free.lay_out(document, "creation" if document.kind == "pair" else "joint", 96)
    ]
    rows = pack(sequences, 96)
    batch, counts = model_free.collate(rows), count_rows([map(SequencePlan.of, row) for row in rows])
    assert counts.tokens == sum(len(sequence) for sequence in sequences)
    assert counts.targets == int((batch.labels[:, 1:] != IGNORE).sum())
    assert (counts.pictures_read, counts.pictures_drawn) == (len(batch.read_slots), len(batch.draw_slots))


@cache
def processor():
    return tiny.build()[1]


def test_in_bfloat16_the_weights_that_are_trained_stay_in_fp32(world, alone, tmp_path):
    """What a GPU does, on the CPU: also where FSDP gathers bf16 copies of fp32 shards."""

    settings = experiment({"sharding": "full_shard"}, precision="bf16")
    for name, processes in (("alone", 1), ("two", 2)):
        assert train(world, tmp_path / name, settings, processes) == [""] * processes
        found = test_train.losses(tmp_path / name / "out")
        for row, wanted in zip(found, test_train.losses(alone / "out"), strict=True):
            assert row["loss"] == pytest.approx(wanted["loss"], rel=0.02)
        assert found[0]["loss"] != test_train.losses(alone / "out")[0]["loss"]
        tensors = load_file(tmp_path / name / "out" / "trained.safetensors")
        weight = tensors["language_model.model.layers.0.self_attn.q_proj.weight"]
        assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float())


def test_a_frozen_language_model_is_sharded_in_bfloat16_beside_trained_fp32(world, tmp_path):
    """Stage I on GPUs: queries and projector are trained in fp32 in one unit with frozen embeddings in bfloat16."""
    weights = {"language": 0.0, "diffusion": 1.0}
    settings = {"mode": "creation", "mixture": {"pairs": 1.0}, "loss_weights": weights}
    settings["trains"] = ["dream_queries", "condition_projector"]

    def child(rank: int) -> None:
        prepare = distributed.prepare_model

        def prepare_and_check(model, *others):
            result = prepare(model, *others)
            dtypes = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
            assert dtypes == {torch.bfloat16}
            assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
            return result

        distributed.prepare_model = prepare_and_check
        test_train.run(world, tmp_path / "two", experiment({"sharding": "full_shard"}, precision="bf16", **settings))

    assert train(world, tmp_path / "alone", experiment(**settings)) == [""]
    assert ranks.run(2, child, tmp_path / "two") == ["", ""]
    found, wanted = (test_train.losses(tmp_path / name / "out") for name in ("two", "alone"))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=0.02)


# ---- building the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [{}, {"sharding": "full_shard"}], ids=["whole", "sharded"])
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_the_first_process_alone_reads_weights(world, tmp_path, machine, tied):
    """The others get all of them from it, also where the language model's head and embeddings are one tensor."""
    tiny.foundations(tmp_path / "foundations", tiny.llm_config(tie_word_embeddings=tied))
    (tmp_path / "data").symlink_to(world / "data")

    def child(rank: int) -> None:
        if rank:
            build._load_parts = checkpoint.load_model = None  # not to be called
        test_train.run(tmp_path, tmp_path / "two", experiment(machine))

    assert train(tmp_path, tmp_path / "alone", experiment()) == [""]
    assert ranks.run(2, child, tmp_path / "two") == ["", ""]
    for row, wanted in zip(*(test_train.losses(tmp_path / name / "out") for name in ("two", "alone")), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, nan_ok=True), f"step {wanted['step']:.0f}"
    found, wanted = (load_file(tmp_path / name / "out" / "trained.safetensors") for name in ("two", "alone"))
    assert found.keys() == wanted.keys()


# ---- order of documents --------------------------------------------------------------------------------------------


def stream(mixture: Mixture, position: Position, rank: int, processes: int, join) -> Stream:
    rows = 4 // processes

    def lay_out(document, epoch):
        return [TokenSequence(document, (0,) * 7, (epoch,) * 7)]

    def collate(packed):
        assert all(part.image.size != (1, 1) for row in packed for s in row for part in s.document.parts[1:])
        return [(sequence.document.id, sequence.labels[0]) for row in packed for sequence in row]

    return Stream(mixture, lay_out, collate, 4, 20, position, slice(rank * rows, rank * rows + rows), join)


def in_step(mixture: Callable[[], Mixture], position: Position, processes: int, batches: int) -> list[list[StepBatch]]:
    """The next batches of some processes, which are threads here; by process."""
    found: list[dict] = [{} for _ in range(processes)]
    barrier = threading.Barrier(processes, timeout=30)
    results: list[list[StepBatch]] = [[] for _ in range(processes)]

    def work(rank: int) -> None:
        def join(damaged: dict) -> dict:
            found[rank] = damaged
            barrier.wait()
            joined = {key: value for one in found for key, value in one.items()}
            barrier.wait()
            return joined

        results[rank] = list(islice(stream(mixture(), position, rank, processes, join), batches))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("damaged", [(), (3,)])
def test_each_document_comes_once_an_epoch_while_the_number_of_processes_changes(tmp_path, damaged):
    paths = shards.write((tiny.pair(n) for n in range(12)), tmp_path / "pairs", per_shard=5)
    records = [record for path in paths for record in shards.index(path)]
    for number in damaged:
        _, offset, size = records[number].members[0]
        with records[number].file.open("r+b") as file:
            file.seek(offset + size // 2)
            file.write(bytes(40))

    def mixture() -> Mixture:
        return Mixture({"pairs": paths}, {"pairs": 1.0}, seed=1)

    position, seen, problems = start_position(mixture()), Counter(), 0
    for processes in (2, 1, 4, 2):
        results = in_step(mixture, position, processes, 3)
        assert all([item.position for item in result] == [item.position for item in results[0]] for result in results)
        position = Position.from_json(json.loads(json.dumps(results[0][-1].position.to_json())))
        seen.update(document for result in results for item in result for document in item.collated)
        problems += sum(len(item.problems) for item in results[0])
    whole_epochs = position.drawn["pairs"] // 12 - 1
    assert whole_epochs >= 3 and set(seen.values()) == {1}
    good = {f"pair {n}" for n in range(12) if n not in damaged}
    for epoch in range(whole_epochs):
        assert {name for name, number in seen if number == epoch} == good
    assert position.skipped == problems >= len(damaged) * whole_epochs


# ---- interruptions and errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_a_killed_training_resumes_with_another_number_of_processes(world, alone, tmp_path, before, after):
    save = resume.Checkpointer.save

    def killed(rank: int) -> None:
        def save_and_die(self, state):
            save(self, state)
            if state.step == 2:
                self.wait()
                os._exit(9)

        resume.Checkpointer.save = save_and_die
        test_train.run(world, tmp_path, experiment({"sharding": "full_shard"}), save_every=0)

    ranks.run(before, killed, tmp_path)
    assert test_train.saved_step(tmp_path / "work") == 2 and not (tmp_path / "out").exists()
    machine = {"sharding": "none" if after == 4 else "shard_grad_op"}
    assert train(world, tmp_path, experiment(machine), after) == [""] * after
    for row, wanted in zip(test_train.losses(tmp_path / "out"), test_train.losses(alone / "out"), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, nan_ok=True)
    about, other = (json.loads((path / "out" / "checkpoint.json").read_text()) for path in (tmp_path, alone))
    assert about["totals"]["documents"] == other["totals"]["documents"]


def test_ddp_is_gone_before_the_process_group_is_destroyed(world, tmp_path):
    """Otherwise its destructor joins the group's threads while it holds the GIL that these wait for, and hangs."""

    def child(rank: int) -> None:
        seen, end_training, prepare_model = [], Accelerator.end_training, Accelerator.prepare_model

        def prepare_and_keep(self, model):
            prepared = prepare_model(self, model)
            seen.append(weakref.ref(prepared))
            return prepared

        def check_and_end(self):
            seen.append(seen[0]())
            end_training(self)

        Accelerator.prepare_model, Accelerator.end_training = prepare_and_keep, check_and_end
        test_train.run(world, tmp_path, experiment())
        assert seen[1:] == [None], "DDP is alive"

    assert ranks.run(2, child, tmp_path) == ["", ""]


def test_a_loss_that_is_not_finite_stops_every_process_with_the_documents(world, tmp_path):
    errors = train(world, tmp_path, experiment(learning_rate=1e30, warmup_ratio=0.0), 2)
    assert len(errors) == 2
    for error in errors:
        assert "NonFiniteLoss: step" in error and re.search(r"documents of this step: .*(pair|story|text) \d", error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["collate", "draw_noise"])  # ahead of the training in a thread; in the training
def test_an_error_in_one_process_ends_the_others(world, tmp_path, where):
    def child(rank: int) -> None:
        if rank == 1:
            owner = {"collate": DreamLLMProcessor, "draw_noise": DreamLLMForConditionalGeneration}[where]

            def fail(*_, **__):
                raise OSError("the disk is gone")

            setattr(owner, where, fail)
        test_train.run(world, tmp_path, experiment())

    errors = ranks.run(2, child, tmp_path, timeout=60)
    assert "the disk is gone" in errors[1] and errors[0] and "the disk is gone" not in errors[0]


def test_rows_that_cannot_be_divided_evenly_are_refused(world, tmp_path):
    errors = train(world, tmp_path, experiment(rows_per_batch=3), 2)
    assert all(errors)  # who is told first may be gone before the other one is there
    assert any("rows_per_batch 3 cannot be divided evenly among 2 processes" in error for error in errors)


# ---- starting ------------------------------------------------------------------------------------------------------


def test_the_launcher_starts_a_process_per_gpu(world, alone, tmp_path):
    settings = experiment({"sharding": "full_shard"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    arguments = ["--stage", "igpt", "--config", tmp_path / "config.yaml", "--foundations", world / "foundations"]
    arguments += ["--data", world / "data", "--out", tmp_path / "out", "--work", tmp_path / "work"]
    result = test_launch.launch([1, 2, "train", *arguments], OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    for row, wanted in zip(test_train.losses(tmp_path / "out"), test_train.losses(alone / "out"), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, nan_ok=True)

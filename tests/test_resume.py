"""A resume state is written by several processes together, whole at any moment, and read by any number of them."""

import json
import math
import os
import pickle
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import ranks
from dreamllm.data.stream import Position
from dreamllm.train import distributed, resume

SHAPES = {"matrix": (5, 3), "one_row": (1, 4, 2), "vector": (7,), "scalar": ()}  # not all divide among 2 or 4 processes
POSITION = Position({"a": 3}, (("a", 2, 0),), 1)


def checkpointer(work: Path, identity: dict | None = None, shards: int = 1) -> resume.Checkpointer:
    """Of parameters that are 0, and AdamW; sharded as FSDP does among some processes, except for the scalar."""
    mesh = init_device_mesh("cpu", (shards,)) if shards > 1 else None
    parameters = {}
    for name, shape in SHAPES.items():
        tensor = torch.zeros(shape)
        if mesh:
            tensor = distribute_tensor(tensor, mesh, [Shard(0) if shape else Replicate()])
        parameters[name] = torch.nn.Parameter(tensor)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1, fused=True)
    return resume.Checkpointer(work, {"seed": 1} if identity is None else identity, parameters, optimizer)


@torch.no_grad()
def step(training: resume.Checkpointer, number: int) -> resume.State:
    """Set parameters and AdamW's state in place to what follows from the number of steps alone; returns the rest.

    (AdamW itself rounds its moments differently on shards of different sizes.)
    """
    for name, parameter in training.parameters.items():
        state = training.optimizer.state[parameter]
        for key in ("exp_avg", "exp_avg_sq"):
            state.setdefault(key, torch.zeros_like(parameter, requires_grad=False))
        state.setdefault("step", torch.zeros(())).fill_(number)
        values = torch.arange(1.0, math.prod(SHAPES[name]) + 1).reshape(SHAPES[name]) * number
        for multiple, tensor in enumerate((parameter, state["exp_avg"], state["exp_avg_sq"]), 1):
            whole = values * multiple
            sharded = isinstance(tensor, DTensor)
            tensor.copy_(distribute_tensor(whole, tensor.device_mesh, tensor.placements) if sharded else whole)
    return resume.State(number, POSITION, torch.full((number, 2), 0.1, dtype=torch.float64))


def contents(training: resume.Checkpointer) -> dict[str, torch.Tensor]:
    """Whole parameters and optimiser state."""
    found = {name: parameter.detach() for name, parameter in training.parameters.items()}
    for name, parameter in training.parameters.items():
        found |= {f"{name}/{key}": value for key, value in training.optimizer.state[parameter].items()}
    return {name: distributed.full_tensor(tensor).clone() for name, tensor in found.items()}


def expected(work: Path, steps: int) -> dict[str, torch.Tensor]:
    """What one process has after some steps."""
    training = checkpointer(work)
    step(training, steps)
    return contents(training)


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


def save_steps(work: Path, steps: int, shards: int = 1) -> None:
    """Make some steps and save after each."""
    training = checkpointer(work, shards=shards)
    for number in range(1, steps + 1):
        training.save(step(training, number))
    training.wait()
    training.close()


def in_ranks(number: int, folder: Path, function) -> list[str]:
    """Call function(rank) in some processes that are connected; returns their errors."""

    def child(rank: int) -> None:
        PartialState(cpu=True)
        function(rank)

    return ranks.run(number, child, folder)


# ---- one process ---------------------------------------------------------------------------------------------------


def test_a_state_is_restored_exactly_and_only_for_its_own_training(tmp_path, capsys):
    identity = {"seed": 1, "data": {"a": ["x"]}}
    training = checkpointer(tmp_path, identity)
    assert training.load() is None
    saved = step(training, 1)
    saved.log[0, 1] = math.nan
    training.save(saved)
    step(training, 2)  # while it is being saved
    training.wait()
    fresh = checkpointer(tmp_path, identity)
    found = fresh.load()
    assert (found.step, found.position) == (1, POSITION)
    assert torch.equal(found.log.nan_to_num(7), saved.log.nan_to_num(7)) and found.log.dtype == torch.float64
    assert_equal(contents(fresh), expected(tmp_path, 1))
    never_stopped = checkpointer(tmp_path)
    step(never_stopped, 1)
    for one in (fresh, never_stopped):
        for parameter in one.parameters.values():
            parameter.grad = torch.full_like(parameter, 0.3)
        one.optimizer.step()
    assert_equal(contents(fresh), contents(never_stopped))
    assert capsys.readouterr().out == ""
    assert checkpointer(tmp_path, identity | {"seed": 2}).load() is None
    assert "different seed; starting from step 0" in capsys.readouterr().out
    training.clear()
    assert list(tmp_path.iterdir()) == []


def test_only_the_last_state_is_kept_and_leftovers_of_killed_saves_are_removed(tmp_path):
    (tmp_path / "state-3").mkdir()
    left = {"matrix": torch.ones(9, 3)}
    save_file(left, tmp_path / "state-3/part-00004.safetensors")  # as four processes would leave it
    (tmp_path / "state-9").mkdir()
    (tmp_path / ".state.json.host-123").write_text("{")
    save_file(left, tmp_path / "state-7.safetensors")  # of an earlier version
    save_steps(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-3", "state.json"]
    assert [path.name for path in (tmp_path / "state-3").iterdir()] == ["part-00001.safetensors"]
    training = checkpointer(tmp_path)
    assert training.load().step == 3
    assert_equal(contents(training), expected(tmp_path, 3))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda part: part.write_bytes(part.read_bytes()[:-1]), "are not the saved ones"),
        (lambda part: part.unlink(), "are not the saved ones"),
        (lambda part: save_file({"matrix": torch.ones(9, 3)}, part.with_name("a.safetensors")), "not the saved ones"),
        (lambda part: rewrite(part, matrix=torch.ones(4, 3)), r"matrix is torch.float32 \[4, 3\], not .* \[5, 3\]"),
        (lambda part: rewrite(part, matrix=torch.ones(5, 3).half()), "matrix is torch.float16"),
        (lambda part: rewrite(part, matrix=None), "it lacks matrix"),
        (lambda part: rewrite(part, plugin=torch.ones(1)), "'plugin' is no trained parameter"),
        (lambda part: rewrite(part, {"matrix": [2, 0]}), "'matrix' is not whole"),
        (lambda part: rewrite(part, {"matrix": [2**70, 0]}), "cannot be read"),
        (lambda part: rewrite(part, {"matrix": "ab"}), "cannot be read"),
        (lambda part: rewrite(part, **{"/log": torch.ones(1, 2).double()}), "the log of 1 steps, not of 2"),
        (lambda part: rewrite(part, **{"/log": None}), "it lacks /log"),
    ],
    ids=lambda value: value if isinstance(value, str) else "damage",
)
def test_a_state_that_is_not_whole_or_does_not_fit_starts_the_training_anew(tmp_path, capsys, damage, words):
    save_steps(tmp_path, 2)
    damage(tmp_path / "state-2/part-00001.safetensors")
    training = checkpointer(tmp_path)
    assert training.load() is None
    out = capsys.readouterr().out
    assert "the saved state cannot be read" in out and "starting from step 0" in out
    assert re.search(words, out), out
    assert all((tensor == 0).all() for tensor in training.parameters.values()), "nothing has been loaded"


def rewrite(part: Path, at: dict | None = None, /, **changes: torch.Tensor | None) -> None:
    """Write a part again with other tensors, or with tensors in other places, and name its size in state.json."""
    tensors = load_file(part) | changes
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    places = {name: {"saved_offsets": [0] * tensor.ndim} for name, tensor in tensors.items()}
    places |= {name: {"saved_offsets": place} for name, place in (at or {}).items()}
    save_file(tensors, part, {"DCP_SHARDING_INFO": json.dumps(places)})
    state = part.parents[1] / resume.STATE
    content = json.loads(state.read_text()) | {"files": {part.name: part.stat().st_size}}
    state.write_text(json.dumps(content))


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_pickle_in_a_resume_folder_is_loaded(tmp_path):
    save_steps(tmp_path, 1)
    folder, trap = tmp_path / "state-1", tmp_path / "executed"
    bomb = pickle.dumps(Evil(trap))
    for name in (".metadata", "__0.metadata", "__0_0.distcp"):
        (folder / name).write_bytes(bomb)
    assert checkpointer(tmp_path).load().step == 1
    (folder / "part-00001.safetensors").write_bytes(bomb)
    content = json.loads((tmp_path / resume.STATE).read_text())
    (tmp_path / resume.STATE).write_text(json.dumps(content | {"files": {"part-00001.safetensors": len(bomb)}}))
    assert checkpointer(tmp_path).load() is None
    assert not trap.exists()
    pickle.loads(bomb)
    assert trap.exists(), "the trap works"


def test_a_save_that_fails_is_told_at_the_next_chance_as_the_error_of_the_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    save_steps(tmp_path, 1)
    training = checkpointer(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(resume, "save_file", full)
        training.save(step(training, 1))
        with pytest.raises(OSError, match="No space left on device"):
            while training.is_saving():
                time.sleep(0.01)
        training.save(step(training, 2))
        training.close()  # an error of the training itself is not hidden by this one


def test_the_files_are_those_of_dcp(tmp_path):
    save_steps(tmp_path, 1)
    about = HuggingFaceStorageReader(str(tmp_path / "state-1")).read_metadata().state_dict_metadata
    assert {name: tuple(about[name].size) for name in SHAPES} == SHAPES


# ---- several processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [True, False], ids=["sharded", "whole"])
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (4, 1)])
def test_another_number_of_processes_loads_the_same_state(tmp_path, before, after, sharded):
    work = tmp_path / "work"
    work.mkdir()
    assert in_ranks(before, tmp_path, lambda rank: save_steps(work, 2, before if sharded else 1)) == [""] * before
    parts = {path.name: load_file(path) for path in (work / "state-2").iterdir()}
    assert len(parts) == before, "every process writes"
    numbers = [sum(tensor.numel() for tensor in part.values()) for part in parts.values()]
    whole = expected(tmp_path, 2) | {"/log": torch.zeros(2, 2)}
    assert sum(numbers) == sum(tensor.numel() for tensor in whole.values()), "and nothing twice"
    assert max(numbers) <= 0.75 * sum(numbers)

    def load(rank: int) -> None:
        training = checkpointer(work, shards=after)
        found = training.load()
        assert (found.step, found.position, found.log.shape) == (2, POSITION, (2, 2))
        assert_equal(contents(training), expected(tmp_path, 2))

    assert in_ranks(after, tmp_path, load) == [""] * after


MOMENTS = {
    "before a process writes its part": ("write_data", "before", 1),
    "after a process has written its part": ("write_data", "after", 1),
    "before state.json is written": ("finish", "before", 1),
    "while state.json is written": ("write_text", "after", 1),
    "before the former state is removed": ("_remove_states", "before", 2),
    "after the former state is removed": ("_remove_states", "after", 2),
}


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_state(tmp_path, moment, processes):
    work = tmp_path / "work"
    work.mkdir()
    name, when, left = MOMENTS[moment]
    owner = {"_remove_states": resume, "write_text": Path}.get(name, resume._Writer)

    def child(rank: int) -> None:
        training = checkpointer(work, shards=processes)
        training.save(step(training, 1))
        training.wait()
        function = getattr(owner, name)

        def die(*arguments, **options):
            if when == "after":
                function(*arguments, **options)
            if rank == (processes - 1 if name == "write_data" else 0):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        setattr(owner, name, die)
        training.save(step(training, 2))
        training.wait()

    in_ranks(processes, tmp_path, child)
    training = checkpointer(work)
    assert training.load().step == left
    assert_equal(contents(training), expected(tmp_path, left))
    save_steps(work, 3)  # the next training removes what is left
    assert {path.name for path in work.iterdir()} == {"state-3", "state.json"}


@pytest.mark.parametrize("processes", [2, 4])
def test_a_kill_at_a_random_moment_leaves_a_whole_state(tmp_path, processes):
    """At a random part of the time that a save takes on this machine now."""
    random.seed(processes)
    for attempt in range(4):
        work = tmp_path / str(attempt)
        work.mkdir()
        saves = random.uniform(0, 3)

        def child(rank: int, work: Path = work, saves: float = saves) -> None:
            training = checkpointer(work, shards=processes)
            for number in (1, 2):  # the first one imports modules
                begin = time.monotonic()
                training.save(step(training, number))
                training.wait()
            delay = saves * (time.monotonic() - begin) * (1 + 0.1 * rank)  # a launcher does not kill all at once either
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            for number in range(3, 10**9):
                training.save(step(training, number))

        in_ranks(processes, tmp_path, child)
        training = checkpointer(work)
        found = training.load()
        assert found is not None and found.step >= 2
        assert_equal(contents(training), expected(tmp_path, found.step))


def test_a_work_folder_that_nodes_do_not_share_is_refused(tmp_path):
    def child(rank: int) -> None:
        work = tmp_path / f"node-{rank}"
        work.mkdir()
        save_steps(work, 1, 2)

    errors = in_ranks(2, tmp_path, child)
    assert all("put the work folder on a file system that all nodes share" in error for error in errors)
    assert not (tmp_path / "node-0" / resume.STATE).exists()

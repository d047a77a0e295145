"""The state of an unfinished training in its work folder, so that a killed run goes on bit-equal.

    WORK/lock               held by the trainer that is at work
    WORK/state.json         how far it is, for which training, and the file of the tensors; written last
    WORK/state-N.safetensors   trained parameters, optimiser state and the log after N steps

No random state is kept: every random number follows from a named seed and the step (`seeds.py`).
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dreamllm.atomic import new_file
from dreamllm.data.stream import Position
from dreamllm.train import distributed

STATE = "state.json"


@dataclass(frozen=True)
class State:
    """A training after `step` steps. tensors: see `collect`; log: one row per step (steps, columns) in fp64."""

    step: int
    position: Position
    tensors: dict[str, torch.Tensor]
    log: torch.Tensor


@contextmanager
def locked(work: str | Path) -> Iterator[None]:
    """Hold the work folder, so that two trainers never share it. The system frees the lock of a killed process.

    Raises RuntimeError when another process holds it.
    """
    path = Path(work) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{work}: another training is at work in this folder; wait for it or stop it") from None
        yield


def collect(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """Everything that a step changes, by name: "NAME" for parameters, "NAME/exp_avg" and alike for optimiser state.

    Where they are sharded, all processes must call this; those that do not `keep` the whole tensors get none.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[name] = parameter
        tensors |= {f"{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    return distributed.gathered(tensors, keep=keep)


@torch.no_grad()
def restore(
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor | None],
) -> None:
    """Undo `collect`: put the tensors into the parameters and the optimiser, on all processes.

    tensors: those of the first process count; the others give the same names, in the same order, with None.
    """
    for key, tensor in tensors.items():
        name, _, entry = key.partition("/")
        parameter = parameters[name]
        if not entry:
            parameter.copy_(distributed.broadcast_like(tensor, parameter))
        elif entry == "step":  # AdamW keeps its step count on the CPU unless fused, its moments beside the parameter
            device = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
            optimizer.state[parameter][entry] = distributed.broadcast_like(tensor, torch.zeros((), device=device))
        else:
            optimizer.state[parameter][entry] = distributed.broadcast_like(tensor, parameter)


def broadcast_state(
    state: State | None, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> State | None:
    """Put the state that the first process has read (None elsewhere) into all processes.

    Returns it without its tensors, or None everywhere where the first process has none.
    """
    names: dict[str, Any] = dict.fromkeys(state.tensors) if state else {}
    outline = distributed.from_first(state and replace(state, tensors=names))
    if outline:
        restore(parameters, optimizer, state.tensors if state else outline.tensors)
    return outline


def save(work: str | Path, identity: Mapping[str, Any], state: State) -> None:
    """Write the state; a kill at any moment leaves this one or the one before."""
    work = Path(work)
    file = work / f"state-{state.step}.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    with new_file(file) as path:
        save_file(tensors | {"/log": state.log}, path)
    content = {"identity": identity, "step": state.step, "position": state.position.to_json(), "tensors": file.name}
    with new_file(work / STATE) as path:
        path.write_text(json.dumps(content), encoding="utf-8")
    _remove_tensors(work, except_for=file)


def load(work: str | Path, identity: Mapping[str, Any]) -> State | None:
    """Read the state of this very training; None, with a word why, where there is nothing to go on from.

    identity: everything that the training's result depends on, as JSON.
    """
    work = Path(work)
    if not (work / STATE).exists():
        return None
    try:
        content = json.loads((work / STATE).read_text(encoding="utf-8"))
        tensors = load_file(work / content["tensors"])
    except (ValueError, KeyError, OSError, SafetensorError) as error:
        print(f"{work}: the saved state cannot be read ({error}); starting over")
        return None
    identity = json.loads(json.dumps(identity))
    if content["identity"] != identity:
        saved = content["identity"]
        differing = sorted(key for key in identity.keys() | saved.keys() if identity.get(key) != saved.get(key))
        print(f"{work}: the saved state belongs to a training with other {', '.join(differing)}; starting over")
        return None
    return State(content["step"], Position.from_json(content["position"]), tensors, tensors.pop("/log"))


def clear(work: str | Path) -> None:
    """Forget the state of a finished training."""
    (Path(work) / STATE).unlink(missing_ok=True)
    _remove_tensors(Path(work))


def _remove_tensors(work: Path, except_for: Path | None = None) -> None:
    for path in (*work.glob("state-*.safetensors"), *work.glob(".state*")):
        if path != except_for:
            path.unlink()

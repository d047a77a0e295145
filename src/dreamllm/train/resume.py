"""Resume state of an unfinished training, in its work folder: a killed run continues from it, on a CPU bit for bit.

    WORK/lock                  locked by the running training
    WORK/state.json            identity of the training, steps done, stream position, file of the tensors; written last
    WORK/state-N.safetensors   trained parameters, optimiser state and the log after N steps

No state of random number generators is saved: every seed follows from the name of its use and the step (`seeds.py`).
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
from dreamllm.safe_join import safe_join
from dreamllm.train import distributed

STATE = "state.json"


@dataclass(frozen=True)
class State:
    """A training after `step` steps. tensors: of `gather_tensors`.  log: (steps, columns of losses.csv) in fp64."""

    step: int
    position: Position
    tensors: dict[str, torch.Tensor]
    log: torch.Tensor


class FolderInUse(ValueError):
    """Another process trains in this work folder."""


@contextmanager
def locked(work: str | Path) -> Iterator[None]:
    """Lock the work folder, so that two trainings never share it. The system releases the lock of a killed process.

    Raises FolderInUse when another process holds the lock.
    """
    path = Path(work) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(f"{work}: another training is running in this folder; wait for it or stop it") from None
        yield


def gather_tensors(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """All tensors that a step changes, on the CPU: NAME is a parameter, NAME/exp_avg and so on its optimiser state.

    All processes must call this, because the tensors may be sharded; without `keep` it returns an empty dict.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[name] = parameter
        tensors |= {f"{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    return distributed.gather_full_tensors(tensors, keep=keep)


@torch.no_grad()
def restore(
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor | None],
) -> None:
    """The inverse of `gather_tensors`: load the first process's tensors into parameters and optimiser of all processes.

    tensors: in the other processes, the same names in the same order, with None as values.
    """
    for key, tensor in tensors.items():
        name, _, entry = key.partition("/")
        parameter = parameters[name]
        if not entry:
            parameter.copy_(distributed.broadcast_like(tensor, parameter))
        elif entry == "step":  # unless fused, AdamW keeps its step count on the CPU
            device = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
            optimizer.state[parameter][entry] = distributed.broadcast_like(tensor, torch.zeros((), device=device))
        else:
            optimizer.state[parameter][entry] = distributed.broadcast_like(tensor, parameter)


def broadcast_state(
    state: State | None, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> State | None:
    """Load the state that the first process has read into parameters and optimiser of all processes.

    state: None in the other processes, and where there is nothing to resume from.
    Returns the state without its tensors in all processes, or None if the first process has none.
    """
    names: dict[str, Any] = dict.fromkeys(state.tensors) if state else {}
    without_tensors = distributed.broadcast_object(state and replace(state, tensors=names))
    if without_tensors:
        restore(parameters, optimizer, state.tensors if state else without_tensors.tensors)
    return without_tensors


def save(work: str | Path, identity: Mapping[str, Any], state: State) -> None:
    """Save the state. A kill at any moment leaves either this state or the previous one, whole."""
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
    """Read the saved state of this training. Returns None where there is none, and prints why a saved one is not used.

    identity: everything that the result of the training depends on, JSON-serialisable; must equal the saved one.
    """
    work = Path(work)
    if not (work / STATE).exists():
        return None
    try:
        content = json.loads((work / STATE).read_text(encoding="utf-8"))
        tensors = load_file(safe_join(work, content["tensors"]))
        saved, step, position = dict(content["identity"]), int(content["step"]), Position.from_json(content["position"])
        log = tensors.pop("/log")
    except (ValueError, KeyError, TypeError, RecursionError, OSError, SafetensorError) as error:
        print(f"{work}: the saved state cannot be read ({error}); starting from step 0")
        return None
    identity = json.loads(json.dumps(identity))
    if saved != identity:
        differing = sorted(key for key in identity.keys() | saved.keys() if identity.get(key) != saved.get(key))
        print(f"{work}: the saved state is of a training with different {', '.join(differing)}; starting from step 0")
        return None
    return State(step, position, tensors, log)


def clear(work: str | Path) -> None:
    """Delete the state of a finished training."""
    (Path(work) / STATE).unlink(missing_ok=True)
    _remove_tensors(Path(work))


def _remove_tensors(work: Path, except_for: Path | None = None) -> None:
    for path in (*work.glob("state-*.safetensors"), *work.glob(".state*")):
        if path != except_for:
            path.unlink()

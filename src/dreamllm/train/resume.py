"""Resume state of an unfinished training, in its work folder: a killed run continues from it, on a CPU bit for bit.

    WORK/lock         locked by the running training
    WORK/state.json   identity of the training, steps done, stream position, files of the tensors; written last
    WORK/state-N/     trained parameters, optimiser state and the log after N steps: a safetensors file of each process

Saved by all processes with `torch.distributed.checkpoint` (DCP), each of which writes its shards, or its share of the
tensors that all of them hold; in the background, from a copy in CPU memory. Any number of processes can load it. DCP's
own files hold pickles, which could run code when they are loaded, so the files are those of its safetensors storage.

No state of random number generators is saved: every seed follows from the name of its use and the step (`seeds.py`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult

from dreamllm.atomic import new_file
from dreamllm.data.stream import Position
from dreamllm.safe_join import safe_join
from dreamllm.train import distributed

STATE = "state.json"
LOG = "/log"  # among the names of tensors, of which none begins with a slash

warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")  # one process: meant


@dataclass(frozen=True)
class State:
    """A training after `step` steps, without its tensors. log: (steps, columns of losses.csv) in fp64."""

    step: int
    position: Position
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


class Checkpointer:
    """Saves and loads the resume state of one training. All processes call its methods, in the same order.

    work: on a file system that all nodes share.  identity: everything that the result of the training depends on,
    JSON-serialisable; used by the first process only.  parameters: those that are trained, by name
    """

    def __init__(
        self,
        work: str | Path,
        identity: Mapping[str, Any],
        parameters: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.work, self.identity, self.parameters, self.optimizer = Path(work), identity, parameters, optimizer
        self._group = distributed.new_gloo_group()  # its own, because the background thread communicates
        gpu = any(parameter.is_cuda for parameter in parameters.values())
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=gpu
            )
        )
        self._running: Future | None = None

    def save(self, state: State) -> None:
        """Copy all that a step changes to CPU memory, and write the copy in the background; the next step may begin.

        A kill at any moment leaves either this state or the one before it, whole. Waits for a save that is running.
        Raises the OSError of an earlier save.
        """
        self.wait()
        tensors: dict[str, torch.Tensor] = {LOG: state.log}
        for name, parameter in self.parameters.items():
            tensors[name] = parameter.detach()
            tensors |= {f"{name}/{key}": value for key, value in self.optimizer.state[parameter].items()}
        content = {"identity": self.identity, "step": state.step, "position": state.position.to_json()}
        running = async_save(
            distributed.own_share(tensors),
            storage_writer=_Writer(self.work, f"state-{state.step}", content),
            process_group=self._group,
            async_stager=self._stager,
        )
        assert isinstance(running, Future)  # because staging is not asynchronous
        self._running = running

    def is_saving(self) -> bool:
        """Whether a save is still running in this process. Raises the OSError of one that has failed."""
        if self._running and self._running.done():
            self.wait()
        return self._running is not None

    def wait(self) -> None:
        """Wait for a running save. Raises its OSError."""
        running, self._running = self._running, None
        if running:
            with _first_error():
                running.result()

    def close(self) -> None:
        """Wait for a running save, whether or not it fails, and free the memory of the copy."""
        if self._running:
            self._running.exception()
        self._stager.close()

    def load(self) -> State | None:
        """Load the saved state into parameters and optimiser. Returns None where there is none to resume from.

        Prints why a saved one is not used: it is of another training, or not whole. Nothing has been loaded then.
        Raises OSError for files that cannot be read although they are whole.
        """
        found = distributed.broadcast_object(self._find() if distributed.is_first() else None)
        if found is None:
            return None
        step, position, folder = found
        reader = HuggingFaceStorageReader(str(folder))
        tensors = self._tensors_for(reader.read_metadata())
        with _first_error():
            load(tensors, storage_reader=reader, process_group=self._group)
        log = tensors.pop(LOG)
        for key, tensor in tensors.items():
            name, _, entry = key.partition("/")
            if entry:
                self.optimizer.state[self.parameters[name]][entry] = tensor
        return State(step, position, log)

    def clear(self) -> None:
        """Delete the state of a finished training. For the first process alone."""
        (self.work / STATE).unlink(missing_ok=True)
        _remove_states(self.work)

    def _find(self) -> tuple[int, Position, Path] | None:
        """Steps, position and folder of the saved state, if it is whole and of this training."""
        if not (self.work / STATE).exists():
            return None
        try:
            content = json.loads((self.work / STATE).read_text(encoding="utf-8"))
            saved, step, position = dict(content["identity"]), content["step"], Position.from_json(content["position"])
            identity = json.loads(json.dumps(self.identity))
            if saved != identity:
                differing = sorted(key for key in identity.keys() | saved if identity.get(key) != saved.get(key))
                print(
                    f"{self.work}: the saved state is of a training with different {', '.join(differing)}; "
                    "starting from step 0"
                )
                return None
            folder = safe_join(self.work, content["folder"])
            if {path.name: path.stat().st_size for path in folder.glob("*.safetensors")} != content["files"]:
                raise ValueError(f"the files in {folder} are not the saved ones")
            log = self._tensors_for(HuggingFaceStorageReader(str(folder)).read_metadata())[LOG]
            if type(step) is not int or len(log) != step:
                raise ValueError(f"it has the log of {len(log)} steps, not of {ascii(step)[:80]}")
        except (ValueError, LookupError, TypeError, RuntimeError, OverflowError, OSError, SafetensorError) as error:
            print(f"{self.work}: the saved state cannot be read ({error}); starting from step 0")
            return None
        return step, position, folder

    def _tensors_for(self, saved: Metadata) -> dict[str, torch.Tensor]:
        """The tensors to load a state into: the parameters themselves, and new ones sharded as their parameters.

        Raises ValueError for a state that lacks a parameter or a part of a tensor, or does not fit.
        """
        tensors: dict[str, torch.Tensor] = {}
        for key, about in saved.state_dict_metadata.items():
            assert isinstance(about, TensorStorageMetadata)
            _check_whole(key, about)
            name, _, entry = key.partition("/")
            size, dtype = about.size, about.properties.dtype
            if key == LOG:
                tensors[key] = torch.empty(size, dtype=dtype)
            elif (parameter := self.parameters.get(name)) is None:
                raise ValueError(f"{key[:200]!a} is no trained parameter")
            elif not entry:
                tensors[key] = parameter.detach()
            elif entry == "step":  # unless fused, AdamW keeps its step count on the CPU
                on_device = self.optimizer.defaults.get("fused")
                tensors[key] = torch.empty(size, dtype=dtype, device=parameter.device if on_device else None)
            elif size == parameter.size():
                tensors[key] = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
            else:
                tensors[key] = torch.empty(size, dtype=dtype, device=parameter.device)
            if (tensors[key].size(), tensors[key].dtype) != (size, dtype):
                raise ValueError(f"{key} is {dtype} {list(size)}, not {parameter.dtype} {list(parameter.size())}")
        if lacking := [name for name in (LOG, *self.parameters) if name not in tensors]:
            raise ValueError(f"it lacks {lacking[0]}")
        return tensors


class _Writer(HuggingFaceStorageWriter):
    """Writes a state: the file of this process and, when those of all processes are whole, state.json.

    The base class makes each file in memory, keeps other Python threads waiting meanwhile, and does not flush its last
    bytes to the disk. The format is the same.
    """

    def __init__(self, work: Path, folder: str, content: Mapping[str, Any]) -> None:
        super().__init__(str(work / folder), save_distributed=True)
        self.work, self.folder, self.content = work, work / folder, content

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """In the first process, before any writes: what a killed save has left would be read with the new files."""
        for left in self.folder.iterdir():
            left.unlink()
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write the file of this process atomically. The result names it, with its size."""
        tensors: dict[str, torch.Tensor] = {}
        offsets: dict[str, dict[str, list[int]]] = {}
        for item in plan.items:
            tensor, about = planner.resolve_data(item), item.tensor_data
            assert isinstance(tensor, torch.Tensor) and about
            tensors[item.index.fqn] = tensor.contiguous()
            offsets[item.index.fqn] = {SAVED_OFFSETS_KEY: list(about.chunk.offsets)}
        path = self.folder / f"part-{plan.storage_data['shard_index']:05d}.safetensors"
        with new_file(path) as temporary:
            save_file(tensors, temporary, {CUSTOM_METADATA_KEY: json.dumps(offsets)})
        written: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        written.set_result([WriteResult(MetadataIndex(path.name), path.stat().st_size, path.name)])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """In the first process, when all have written: make this the saved state, and remove the one before it."""
        files = {result.storage_data: result.size_in_bytes for part in results for result in part}
        for name in files:
            if not (self.folder / name).is_file():
                raise FileNotFoundError(
                    errno.ENOENT,
                    "was written by another process, but the first one does not see it; put the work folder on a file "
                    "system that all nodes share",
                    str(self.folder / name),
                )
        content = {**self.content, "folder": self.folder.name, "files": files}
        with new_file(self.work / STATE) as path:
            path.write_text(json.dumps(content), encoding="utf-8")
        _remove_states(self.work, except_for=self.folder)


def _check_whole(name: str, about: TensorStorageMetadata) -> None:
    """Raises ValueError unless the saved parts of a tensor, cut along its first dimension, make up all of it."""
    rows, *others = about.size or (1,)
    end = 0
    for chunk in sorted(about.chunks, key=lambda chunk: chunk.offsets):
        fits = tuple(chunk.offsets or (0,)) == (end, *[0] * len(others)) and list(chunk.sizes[1:]) == others
        end = end + (chunk.sizes[0] if about.size else 1) if fits else -1
    if end != rows:
        raise ValueError(f"{name[:200]!a} is not whole")


def _remove_states(work: Path, except_for: Path | None = None) -> None:
    for path in (*work.glob("state-*"), *work.glob(".state*")):
        if path != except_for:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _first_error() -> Iterator[None]:
    """Raise the error of the first process that failed, instead of DCP's list of all."""
    try:
        yield
    except CheckpointException as error:
        raise min(error.failures.items())[1][0] from None

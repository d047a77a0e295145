"""Time how long a training stands still while its resume state is saved by several processes.

    torchrun --nproc-per-node 2 benchmarks/saving.py [--parameters 150e6] [--repeats 3] [--folder /tmp/saving]

gathered: all shards are sent to the first process, which writes them while all wait (as earlier versions did).
by all: every process copies its shards to CPU memory and writes them in the background (`dreamllm.train.resume`).

The state is that of AdamW: 12 bytes for each trained parameter, sharded as FSDP does. Uses GPUs where there are any.
Prints seconds, and CPU seconds of the first process's main thread, which also count where the machine is busy. The copy
is proportional to the number of parameters of a process; times for other sizes follow from that.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from dreamllm.atomic import new_file
from dreamllm.data.stream import Position
from dreamllm.train import distributed, resume

SIDE = 4096  # of a weight matrix, as in LLaMA 7B


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this thread."""
    begin, begin_cpu = time.perf_counter(), time.thread_time()
    function()
    return time.perf_counter() - begin, time.thread_time() - begin_cpu


def make(folder: Path, parameters: float, state: PartialState) -> resume.Checkpointer:
    """Matrices and their optimiser state after one step, sharded along the rows."""
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    named = {}
    for number in range(max(1, round(parameters / SIDE**2))):
        local = torch.full((SIDE // state.num_processes, SIDE), 0.5, device=state.device)
        named[f"layers.{number}.weight"] = torch.nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)]))
    optimizer = torch.optim.AdamW(named.values(), fused=True)
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return resume.Checkpointer(folder, {}, named, optimizer)


def gathered(training: resume.Checkpointer, folder: Path) -> None:
    """Save as earlier versions did."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in training.parameters.items():
        tensors[name] = parameter.detach()
        tensors |= {f"{name}/{key}": value for key, value in training.optimizer.state[parameter].items()}
    whole = distributed.gather_full_tensors(tensors, keep=distributed.is_first())
    if whole:
        with new_file(folder / "gathered.safetensors") as path:
            save_file(whole, path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=150e6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/saving"), help="is deleted afterwards")
    arguments = parser.parse_args()
    state = PartialState(cpu=not torch.cuda.is_available())
    training = make(arguments.folder, arguments.parameters, state)
    seconds: dict[str, list[tuple[float, float]]] = {"gathered": [], "by all": [], "until it is on the disk": []}
    for number in range(arguments.repeats + 1):
        state.wait_for_everyone()
        seconds["gathered"].append(timed(lambda: gathered(training, arguments.folder)))
        state.wait_for_everyone()
        saved = resume.State(number, Position({}), torch.zeros(number, 1, dtype=torch.float64))
        seconds["by all"].append(timed(lambda saved=saved: training.save(saved)))
        seconds["until it is on the disk"].append(timed(training.wait))
    number = sum(parameter.numel() for parameter in training.parameters.values())
    state.print(
        f"{number:,} parameters, {12 * number / 1e9:.2f} GB, {state.num_processes} processes, {state.device.type}"
    )
    for name, values in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*values[1:], strict=True))  # the first allocates
        state.print(f"{name:>24}: {wall:8.3f} s, {cpu:7.3f} CPU-s; the first time {values[0][0]:8.3f} s")
    training.close()
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(arguments.folder)
    state.destroy_process_group()


if __name__ == "__main__":
    main()

"""Runs a function in the processes of a distributed training (gloo). They are forked, so torch is not imported again.

ranks.run(2, function, folder)    calls function(rank) in 2 processes; returns the exception of each as text
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.distributed import TCPStore
from tqdm import tqdm

TIMEOUT = 240  # seconds until a process counts as hanging; on a busy machine, 4 on 2 cores may take a minute


def run(number: int, function: Callable[[int], object], folder: Path, timeout: float = TIMEOUT) -> list[str]:
    """Call function(rank) in `number` processes; returns the traceback of each by rank, "" where nothing was raised.

    folder: for the tracebacks.  Raises TimeoutError if a process does not end within `timeout` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    ports = context.SimpleQueue()
    arguments = [(rank, number, ports, function, timeout, folder / f"error-{rank}.txt") for rank in range(number)]
    processes = [context.Process(target=_child, args=each) for each in arguments]
    for process in processes:
        process.start()
    # The store is made after the processes are forked, since it has a thread, which may hold a lock at that moment; and
    # by this process, as torchrun does: on a port that was free a moment ago, rank 0 could be too late.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in processes:
        ports.put(store.port)
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    if hanging:
        said = "\n".join(f"rank {rank}: {each[-1].read_text()}" for rank, each in enumerate(arguments))
        raise TimeoutError(f"ranks {hanging} did not end within {timeout} s\n{said}")
    return [file.read_text() if (file := each[-1]).exists() else "" for each in arguments]


def _child(
    rank: int, number: int, ports: SimpleQueue, function: Callable[[int], object], timeout: float, error: Path
) -> None:
    error.unlink(missing_ok=True)
    hanging = error.open("w")
    faulthandler.dump_traceback_later(0.9 * timeout, file=hanging)
    tqdm.set_lock(threading.RLock())  # the inherited lock may be held by a thread of the parent
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()  # left over from trainings in the parent
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports.get()), "ACCELERATE_USE_CPU": "true"}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # all are clients of the store
    try:
        function(rank)
    except BaseException:
        error.write_text(traceback.format_exc())
        os._exit(1)
    faulthandler.cancel_dump_traceback_later()
    os._exit(0)

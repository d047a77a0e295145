"""Processes of one training, forked from the test: they need not import torch again.

ranks.run(2, function)    calls function(rank) in 2 processes that can talk through gloo; what each raised, by rank
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.distributed import TCPStore
from tqdm import tqdm

TIMEOUT = 240  # seconds; beyond them a process counts as hanging. Beside other work, 4 on 2 cores may take a minute


def run(number: int, function: Callable[[int], object], folder: Path, timeout: float = TIMEOUT) -> list[str]:
    """Call function(rank) in `number` processes; returns what each raised as text, "" for nothing.

    folder: for files of this function.  Raises TimeoutError where a process does not end.
    """
    # The meeting point is here before anybody looks for it, as with torchrun. Were it made by the first process, on a
    # port that was free a moment ago, another program could have taken that, and the others would wait there.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [(rank, number, store.port, function, timeout, folder / f"error-{rank}.txt") for rank in range(number)]
    processes = [multiprocessing.get_context("fork").Process(target=_child, args=each) for each in arguments]
    for process in processes:
        process.start()
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


def _child(rank: int, number: int, port: int, function: Callable[[int], object], timeout: float, error: Path) -> None:
    error.unlink(missing_ok=True)
    hanging = error.open("w")
    faulthandler.dump_traceback_later(0.9 * timeout, file=hanging)
    tqdm.set_lock(threading.RLock())  # the one from before the fork may be held by a thread that is not here
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()  # of trainings in the test's own process
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # all are clients of the store
    try:
        function(rank)
    except BaseException:
        error.write_text(traceback.format_exc())
        os._exit(1)
    faulthandler.cancel_dump_traceback_later()
    os._exit(0)

"""Data-parallel prediction: the batches of a benchmark are dealt out over the processes of a job.

`accelerate launch` or `torchrun` starts the processes (workflow/launch.sh), each on a GPU of its own. Of n processes,
process r predicts the batches r, r + n, r + 2 n, ... What a batch holds does not depend on n, and every finished batch
is stored in a folder that all processes see; the first process merges all in order. So any number of processes gives
the same predictions, and a killed job continues with the batches that are missing, also with another number of
processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

Item = TypeVar("Item")

TIMEOUT = timedelta(days=7)  # of waiting for the slowest process; if one dies, the launcher ends the others at once


@dataclass(frozen=True)
class Processes:
    """The processes of a job, and which of them this is. index: from 0.  number: of all"""

    index: int = 0
    number: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the result."""
        return self.index == 0

    def share(self, items: Sequence[Item], size: int) -> list[tuple[int, Sequence[Item]]]:
        """The batches of this process, each with its number among all batches of `size` items."""
        batches = [(start // size, items[start : start + size]) for start in range(0, len(items), size)]
        return batches[self.index :: self.number]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.number > 1:
            from torch import distributed

            distributed.barrier()

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process, which alone calls it."""
        if self.number == 1:
            return make()
        from torch import distributed

        values = [make() if self.is_first else None]
        distributed.broadcast_object_list(values)
        return values[0]


ALONE = Processes()
"""A job of one process."""


def start() -> Processes:
    """Connect to the other processes of this job, if the launcher started several, and take this process's GPU.

    They exchange texts through main memory (gloo), and nothing on a GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    return Processes(distributed.get_rank(), distributed.get_world_size())


def stop(processes: Processes) -> None:
    """Disconnect, after all processes have come to the end."""
    processes.wait()
    if processes.number > 1:
        from torch import distributed

        distributed.destroy_process_group()

"""SIGTERM during a training: a scheduler takes the machine back (preemption, time limit, maintenance).

The training finishes its step, saves its resume state and ends with STATUS, so that the scheduler or Snakemake starts
it again, and it continues from there.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 128 + signal.SIGTERM  # as a shell reports a program that SIGTERM ended


@contextmanager
def sigterm_recorded() -> Iterator[list[int]]:
    """Within the block SIGTERM ends nothing; it is appended to the list that is yielded.

    Outside of the main thread Python can set no handler: there the list stays empty, and SIGTERM acts as before.
    """
    received: list[int] = []  # not a threading.Event: a second signal during its `set` would deadlock
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    former = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, former)

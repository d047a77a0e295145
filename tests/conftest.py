"""Settings of all tests, made before torch, transformers or diffusers are imported."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import dreamllm  # noqa: F401  mends torchvision beside CPU torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background; processes of tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked children die if torch uses several threads

# No deadlines, so that a busy machine fails no test; derandomised, so that every run has the same examples.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")

LONGEST = ("test_restore", "test_end_to_end", "test_dvc", "test_scale", "test_reliability", "test_released")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that two workers, which take whole files, end at the same time."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(Path(item.path).stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """Let the next test train in another precision: accelerate keeps that of the process's first training."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()

"""Settings of all tests, made before torch, transformers or diffusers are imported."""

import os
import signal

from hypothesis import settings

import dreamllm  # noqa: F401  mends torchvision beside CPU torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background; processes of tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked children die if torch uses several threads

# No deadlines, so that a busy machine fails no test; derandomised, so that every run has the same examples.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")

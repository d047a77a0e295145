"""What every test needs before torch, transformers or diffusers are imported."""

import os

from hypothesis import settings

import dreamllm  # noqa: F401  mends torchvision beside CPU torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch with several threads dies in the children that tests fork

# No deadlines: a busy machine is no failure. Derandomised: the same examples on every run.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")

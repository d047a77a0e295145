"""Imports the package before any test imports transformers or diffusers: it mends torchvision beside CPU torch."""

from hypothesis import settings

import dreamllm  # noqa: F401

# No deadlines: a busy machine is no failure. Derandomised: the same examples on every run.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")

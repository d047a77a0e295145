"""Registers DreamLLM with the Auto classes of transformers as soon as both packages are imported, in either order.

`import dreamllm` must not load transformers, so the registration waits for the modules of the Auto classes. The
configuration registers the model when one is made (`model/config.py`): an Auto class reads it before it asks for the
model, and diffusers, which the model needs, may be half imported earlier.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module

from dreamllm import _import_hooks

REGISTERED_BY = {"configuration_auto": "dreamllm.model.config", "processing_auto": "dreamllm.model.processor"}


def install() -> None:
    """Install the hooks; costs microseconds and imports nothing, unless transformers is there already."""
    for auto, ours in REGISTERED_BY.items():
        _import_hooks.around(f"transformers.models.auto.{auto}", after=partial(import_module, ours))


def uninstall() -> None:
    """Remove the hooks again, for a process that imports libraries but no module of this package."""
    for auto in REGISTERED_BY:
        _import_hooks.remove(f"transformers.models.auto.{auto}")

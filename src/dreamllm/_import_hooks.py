"""Runs a function before or after a library's module is executed, without importing the library now."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path


def around(
    module: str, *, before: Callable[[Path], object] | None = None, after: Callable[[], object] | None = None
) -> None:
    """Call `before`, with the module's folder, and `after` when `module` is imported; costs microseconds.

    Where it has been imported already, `after` is called now.
    """
    if module not in sys.modules:
        sys.meta_path.insert(0, _Finder(module, before, after))
    elif after:
        after()


def remove(module: str) -> None:
    """Remove what `around` has installed for a module."""
    sys.meta_path[:] = [one for one in sys.meta_path if not (isinstance(one, _Finder) and one.module == module)]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as usual, with a function run just before or after its code."""

    def __init__(self, module, before, after):
        self.module, self.before, self.after = module, before, after

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            if self.before:
                self.before(Path(spec.origin).parent)
            execute(module)
            if self.after:
                self.after()

        spec.loader.exec_module = exec_module
        return spec

"""Lets `import torchvision` work beside a CPU build of torch.

PyPI carries torchvision only as a CUDA build. Beside CPU torch its compiled operators cannot be loaded, and the import
then fails when it registers `torchvision::nms`; transformers and diffusers, which look for torchvision, fail with it.
`install` hooks the import of torchvision: where the operators cannot be loaded, it declares their names first, so that
everything but the operators themselves works. Does nothing where torchvision is absent or its operators load.
"""

from __future__ import annotations

from pathlib import Path

from dreamllm import _import_hooks

_declared: list[object] = []  # torch drops a library's operators when the Library object dies


def install() -> None:
    """Install the hook; costs microseconds and imports nothing."""
    _import_hooks.around("torchvision", before=_declare_operators)


def _declare_operators(folder: Path) -> None:
    """Load the compiled operators of the torchvision in `folder`, or declare their schemas where that fails."""
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    for library in sorted(folder.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:  # a CUDA build beside CPU torch
            continue
    declarations = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        declarations.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(declarations)

"""Reads tensors from one safetensors file or, as transformers splits large ones, from several with an index.

    NAME.safetensors                   all tensors, up to 5 GB
    NAME-00001-of-0000N.safetensors    the tensors in N files, where there are more
    NAME.safetensors.index.json        which of these files holds which tensor

Both are named by the path NAME.safetensors. Without torch, so that the audit can read the shapes.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dreamllm.safe_join import shards_of


def index_of(path: Path) -> Path:
    """The index of the files that hold the tensors of `path` where they are split."""
    return path.with_name(f"{path.name}.index.json")


class TensorFiles:
    """The tensors of a path, opened to read: a context manager with the methods of `safetensors.safe_open`.

    framework: of the tensors that it returns, pt or numpy.
    Raises FileNotFoundError for a missing file, NameProblem for a malformed index and SafetensorError for a file that
    is not whole.
    """

    def __init__(self, path: Path, framework: str = "pt") -> None:
        files = [path.name] if path.is_file() else shards_of(index_of(path))
        self._file_of: dict[str, Any] = {}
        with ExitStack() as opened:
            for name in files:
                file = opened.enter_context(safe_open(path.with_name(name), framework))
                self._file_of |= dict.fromkeys(file.keys(), file)
            self._opened = opened.pop_all()

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def keys(self) -> list[str]:
        """The names of all tensors."""
        return list(self._file_of)

    def get_slice(self, name: str) -> Any:
        """A tensor of which the shape, or a part, can be had without reading all of it."""
        return self._file_of[name].get_slice(name)

    def get_tensor(self, name: str) -> Any:
        """A whole tensor, on the CPU."""
        return self._file_of[name].get_tensor(name)

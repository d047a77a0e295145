"""Loads pretrained weights of transformers and diffusers, after a look at what a file from elsewhere may hold."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dreamllm.safe_join import NameProblem, shards_of


class FoundationProblem(ValueError):
    """A foundation that is missing, or that DreamLLM cannot use: names the folder or class, and the reason."""


def load_weights(kind: Any, folder: str | Path, *, subfolder: str = "", **options: Any) -> Any:
    """`kind.from_pretrained(folder, **options)`, for a class of models or pipelines.

    Raises FoundationProblem for an index that names files elsewhere, a folder that lacks files or has damaged ones,
    and weights with NaN or infinity.
    """
    place = Path(folder) / subfolder
    try:
        for index in sorted(place.rglob("*.index.json")):
            shards_of(index)
    except NameProblem as problem:
        raise FoundationProblem(str(problem)) from None
    loaded = load_part(kind, folder, **({"subfolder": subfolder} if subfolder else {}), **options)
    parts = {"": loaded} if isinstance(loaded, torch.nn.Module) else loaded.components  # of a pipeline
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module) and (bad := not_finite(part.named_parameters())) is not None:
            raise FoundationProblem(f"{place / name}: weight {bad} holds NaN or infinity")
    return loaded


def load_part(kind: Any, folder: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained(folder, **options)`, for tokenizers, image processors and configurations.

    Raises FoundationProblem for a folder that is not there, lacks files or has damaged ones.
    """
    place = Path(folder) / options.get("subfolder", "")
    if not place.is_dir():  # the libraries would take the path for a name on the Hub
        raise FoundationProblem(f"{place}: no such folder")
    try:
        return kind.from_pretrained(folder, **options)
    except SafetensorError as error:
        raise FoundationProblem(f"{place}: its weights are no whole safetensors file ({error})") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        what = " ".join(str(error).split())[:500]
        raise FoundationProblem(
            f"{place}: {kind.__name__} cannot be loaded ({type(error).__name__}: {what})"
        ) from error


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, of the class that its tokenizer_config.json names. Raises FoundationProblem.

    AutoTokenizer takes the class by the model's type for some types (Qwen2 and Phi-3 are among them), also where the
    folder has a tokenizer.json of another kind, which then is read wrongly and without a warning.
    """
    try:
        named = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))["tokenizer_class"]
    except (OSError, ValueError, LookupError, TypeError):
        named = None  # AutoTokenizer tells what is wrong
    plain = named in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return load_part(PreTrainedTokenizerFast if plain else AutoTokenizer, folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises FoundationProblem if there is no folder, or nothing that can be read."""
    if not folder.is_dir():
        raise FoundationProblem(f"{folder}: no such folder")
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise FoundationProblem(f"{folder}: its config.json cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise FoundationProblem(f"{folder}: its config.json holds a {type(content).__name__}, not an object")
    return content


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Name of the first of these tensors, of any shape, that holds NaN or infinity; None when all are finite."""
    return next((name for name, tensor in tensors if not torch.isfinite(tensor).all()), None)

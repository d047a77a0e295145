"""Checkpoints of a stage: what was trained, and what it was trained from.

    FOLDER/trained.safetensors   the trained parameters alone, in fp32, named as in the model's state dict; see lora.py
    FOLDER/checkpoint.json       stage, configuration, digests of the tensors and of everything they were made from,
                                 versions, final losses
    FOLDER/losses.csv            one line per step

A model is its foundations plus the trained parameters of one or more checkpoints. `export.py` writes a whole model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dreamllm.atomic import new_folder
from dreamllm.config.stages import OF_THE_QUERIES
from dreamllm.digests import digest
from dreamllm.model import precision
from dreamllm.model.build import build_from_foundations
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.processor import DreamLLMProcessor
from dreamllm.train import lora

TENSORS, METADATA, LOSSES = "trained.safetensors", "checkpoint.json", "losses.csv"
FOUNDATIONS = ("llm", "clip", "sd")  # folders of the foundations that the model is built from


class CheckpointProblem(ValueError):
    """A checkpoint that does not fit: names the folder, and what does not fit to what."""


def trained_parameters(model: DreamLLMForConditionalGeneration) -> dict[str, torch.nn.Parameter]:
    """The parameters that take gradients (`model.train_only`) by name in the model, tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---- writing -------------------------------------------------------------------------------------------------------


def save_trained(
    folder: str | Path, parameters: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], losses: str
) -> None:
    """Write a checkpoint folder, whole or not at all; the same arguments give the same bytes. Replaces an old one."""
    with new_folder(folder) as temporary:
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in parameters.items()}
        save_file(tensors, temporary / TENSORS, {"format": "pt"})
        about = {**metadata, "tensors": digest(temporary / TENSORS)}
        (temporary / METADATA).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (temporary / LOSSES).write_text(losses, encoding="utf-8")


def foundation_digests(foundations: str | Path) -> dict[str, str]:
    """Digest of each foundation that the model is built from."""
    return {name: digest(Path(foundations) / name) for name in FOUNDATIONS}


# ---- reading -------------------------------------------------------------------------------------------------------


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The checkpoint.json of a checkpoint. Raises CheckpointProblem when it is missing or malformed."""
    path = Path(folder) / METADATA
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointProblem(f"{folder}: not a checkpoint, it has no {METADATA}") from None
    except ValueError as error:
        raise CheckpointProblem(f"{path}: malformed JSON ({error})") from error


def load_model(
    foundations: str | Path, checkpoints: Sequence[str | Path], options: Mapping[str, Any] | None = None
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """Build DreamLLM from its foundations and load the trained parameters of checkpoints, in order, later ones on top.

    options: what DreamLLM adds to its foundations (arguments of `build_from_foundations`); by default as the last
    checkpoint has it, with as many dream queries as the last one that trained them.
    Raises CheckpointProblem when a checkpoint was trained on other foundations, with other options, or when a tensor
    does not fit the model. Another number of dream queries is no matter to a checkpoint that trained neither them nor
    the condition projector: nothing else depends on it, not even in its first random values.
    """
    found = foundation_digests(foundations)
    metadata = [(folder, read_metadata(folder)) for folder in checkpoints]
    if options is None:
        if not metadata:
            raise ValueError("without a checkpoint the model's options must be given")
        of_queries = [about["model"] for folder, about in metadata if trained_queries(folder)]
        options = {**metadata[-1][1]["model"]}
        if of_queries:
            options["num_dream_queries"] = of_queries[-1]["num_dream_queries"]
    for folder, about in metadata:
        for name in FOUNDATIONS:
            if (trained_on := about["foundations"].get(name)) != found[name]:
                raise CheckpointProblem(
                    f"{folder}: was trained on another {name} foundation (digest {str(trained_on)[:12]}) than "
                    f"{Path(foundations) / name} (digest {found[name][:12]}); fetch that one, or train again"
                )
        compared = options.keys() if trained_queries(folder) else options.keys() - {"num_dream_queries"}
        if differing := sorted(key for key in compared if about["model"].get(key) != options[key]):
            pairs = ", ".join(f"{key} {about['model'].get(key)!r}, not {options[key]!r}" for key in differing)
            raise CheckpointProblem(f"{folder}: was trained with other model options: {pairs}")
    model, processor = build_from_foundations(*(Path(foundations) / name for name in FOUNDATIONS), **options)
    for folder in checkpoints:
        load_trained(model, folder)
    return model, processor


def load_for_inference(
    foundations: str | Path, checkpoints: Sequence[str | Path]
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """Load a model to run it: `load_model`, on the GPU if there is one, in `precision.for_inference`'s precision.

    checkpoints: folders in loading order; at least one. Raises CheckpointProblem as `load_model` does.
    """
    model, processor = load_model(foundations, checkpoints)
    precision.for_inference(model, "cuda" if torch.cuda.is_available() else "cpu")
    return model, processor


def trained_queries(folder: str | Path) -> bool:
    """Whether a checkpoint holds parts that fit one number of dream queries. Raises CheckpointProblem for none."""
    with _tensors(folder) as file:
        return any(name.split(".")[0] in OF_THE_QUERIES for name in file.keys())  # noqa: SIM118, it is no mapping


def outline(
    foundations: str | Path, options: Mapping[str, Any]
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """What `load_model` builds, but on the meta device: no file of weights is read, and no memory is taken."""
    folders = (Path(foundations) / name for name in FOUNDATIONS)
    return build_from_foundations(*folders, **options, weights=False)


def load_trained(model: DreamLLMForConditionalGeneration, folder: str | Path) -> None:
    """Copy the trained parameters of one checkpoint into the model, and add its adapters to what they were trained on.

    Raises CheckpointProblem naming each tensor that the model lacks or holds in another shape; nothing is copied then.
    """
    parameters = dict(model.named_parameters())
    with _tensors(folder) as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        for name in [name for name in names if name.endswith(lora.A)]:  # an adapter has the shape of its product
            shapes[name] = (*shapes[name.removesuffix(lora.A) + lora.B][:1], *shapes[name][1:])
        targets = {name: lora.target(name) for name in names if not name.endswith(lora.B)}
        problems = [f"the model has no {target}" for target in targets.values() if target not in parameters]
        for name, target in targets.items():
            if target in parameters and shapes[name] != (shape := tuple(parameters[target].shape)):
                problems.append(f"{name} is {list(shapes[name])} there and {list(shape)} in the model")
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise CheckpointProblem(
                f"{Path(folder) / TENSORS}: does not fit the model: {'; '.join(problems[:5])}{more}"
            )
        for name, target in targets.items():
            if name.endswith(lora.A):
                other = file.get_tensor(name.removesuffix(lora.A) + lora.B)
                lora.merge(parameters[target], file.get_tensor(name), other)
            else:
                parameters[target].data.copy_(file.get_tensor(name))


def _tensors(folder: str | Path) -> Any:
    """The tensors of a checkpoint, opened. Raises CheckpointProblem when they are missing."""
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise CheckpointProblem(f"{folder}: not a checkpoint, it has no {TENSORS}")
    return safe_open(path, framework="pt")

"""Checkpoints of a stage: its trained parameters, and a record of everything they were made from.

    FOLDER/trained.safetensors   the trained parameters only, in fp32, named as in the model's state dict; see lora.py.
                                 More than 5 GB are split into several files with an index (tensor_files.py)
    FOLDER/checkpoint.json       stage, configuration, digests of the tensors and of all inputs, versions, final losses
    FOLDER/losses.csv            one line per step

A model is built from its foundations and the trained parameters of one or more checkpoints. `dreamllm export` writes a
whole model.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError

from dreamllm.atomic import new_folder
from dreamllm.config.base import NAME
from dreamllm.config.stages import DRAWING_OPTIONS, QUERY_PARTS
from dreamllm.digests import digest
from dreamllm.model import precision
from dreamllm.model.build import build_from_foundations
from dreamllm.model.dreamllm import UNFROZEN, DreamLLMForConditionalGeneration
from dreamllm.model.processor import DreamLLMProcessor
from dreamllm.model.weights import not_finite
from dreamllm.safe_join import NameProblem
from dreamllm.train import ancestors, lora
from dreamllm.train.ancestors import OBJECTS, CheckpointProblem
from dreamllm.train.tensor_files import TensorFiles, index_of

TENSORS, METADATA, LOSSES = "trained.safetensors", "checkpoint.json", "losses.csv"
EYE = "clip"  # its folder in that of the foundations
FILES = "trained{suffix}.safetensors"  # where the tensors are split
LARGEST_FILE = 5 * 10**9  # bytes of tensors; more are split
LARGEST_METADATA = 50_000_000  # bytes; one of many thousand shards takes a hundredth of it
MOST_QUERIES = 100_000  # the paper has 64; more than this is no model, but an attack on the memory
MOST_LAYERS = 1000  # of a connector; MetaQuery's has 24
OLDER = {  # options that older checkpoints do not say
    "boundary_tokens": False,
    "visual_projector_type": "linear",
    "connector_layers": 0,
    "language_model": "llm",
    "decoder": "sd",
}
FOLDERS = ("language_model", "decoder")  # options that name a folder of a foundation
KEYWORD = inspect.Parameter.KEYWORD_ONLY


def trained_parameters(model: DreamLLMForConditionalGeneration) -> dict[str, torch.nn.Parameter]:
    """The parameters that require gradients (`model.train_only`), by name in the model; tied ones appear once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---- writing -------------------------------------------------------------------------------------------------------


def save_trained(
    folder: str | Path, parameters: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], losses: str
) -> None:
    """Write a checkpoint folder atomically, replacing an existing one. The same arguments give the same bytes.

    parameters: by name in the model, of any dtype and device.  metadata: content of checkpoint.json, to which the
    digest of the tensors is added.  losses: text of losses.csv
    """
    with new_folder(folder) as temporary:
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in parameters.items()}
        save_torch_state_dict(tensors, temporary, filename_pattern=FILES, max_shard_size=LARGEST_FILE)
        about = {**metadata, "tensors": digest(temporary / TENSORS)}
        (temporary / METADATA).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (temporary / LOSSES).write_text(losses, encoding="utf-8")


def foundation_folders(options: Mapping[str, Any]) -> tuple[str, str, str]:
    """Names of the folders of language model, eye and decoder among the foundations, by a model's options."""
    language_model, decoder = (options.get(key, OLDER[key]) for key in FOLDERS)
    return language_model, EYE, decoder


def foundation_digests(foundations: str | Path, options: Mapping[str, Any] = {}) -> dict[str, str]:
    """Digest of each foundation folder that the model with these options is built from."""
    return {name: digest(Path(foundations) / name) for name in foundation_folders(options)}


# ---- reading -------------------------------------------------------------------------------------------------------


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Read the checkpoint.json of a checkpoint. Raises CheckpointProblem when it is missing, malformed or odd."""
    path = Path(folder) / METADATA
    try:
        if (size := path.stat().st_size) > LARGEST_METADATA:
            raise CheckpointProblem(f"{path}: has {size} bytes, more than {LARGEST_METADATA}")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        what = f"not a checkpoint, it has no {METADATA}" if Path(folder).exists() else "no such file or folder"
        raise CheckpointProblem(f"{folder}: {what}") from None
    except CheckpointProblem:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointProblem(f"{path}: malformed JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointProblem(f"{path}: holds a {type(content).__name__}, not an object")
    for key in OBJECTS:
        if not isinstance(content.get(key, {}), dict):
            raise CheckpointProblem(f"{path}: {key} should be an object, it is {type(content[key]).__name__}")
    return content


def load_model(
    foundations: str | Path, checkpoints: Sequence[str | Path], options: Mapping[str, Any] | None = None
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """Build DreamLLM from its foundations and load the trained parameters of checkpoints in order; the last one wins.

    options: keyword arguments of `build_from_foundations`, and names of folders (FOLDERS); by default `options_of`
    Raises CheckpointProblem when a checkpoint was trained on other foundations, from other checkpoints than those
    before it (`ancestors.py`) or with other options, when its file of tensors is not the one that its checkpoint.json
    describes, or when a tensor does not fit the model. A checkpoint that trained neither dream queries nor condition
    projector fits any DRAWING_OPTIONS, because nothing else depends on them, not even the initialisation.
    """
    metadata = _read_options(checkpoints)
    if options is None:
        options = options_of(checkpoints)
    ancestors.check([read_contents(folder) for folder in checkpoints])
    found = foundation_digests(foundations, options)
    language_model, eye, decoder = found
    for folder, about in metadata:
        has_queries = has_query_parts(folder)
        for name in (language_model, eye, decoder) if has_queries else (language_model, eye):
            if (trained_on := about["foundations"].get(name)) != found[name]:
                raise CheckpointProblem(
                    f"{folder}: was trained on another {name} foundation (digest {str(trained_on)[:12]}) than "
                    f"{Path(foundations) / name} (digest {found[name][:12]}); fetch the former or train again"
                )
        compared = options.keys() if has_queries else options.keys() - {*DRAWING_OPTIONS}
        trained = OLDER | about["model"]
        if differing := sorted(key for key in compared if trained.get(key) != options[key]):
            pairs = ", ".join(f"{key} {trained.get(key)!r}, not {options[key]!r}" for key in differing)
            raise CheckpointProblem(f"{folder}: was trained with other model options: {pairs}")
    model, processor = _build(foundations, options)
    for folder in checkpoints:
        load_trained(model, folder)
    return model, processor


def options_of(checkpoints: Sequence[str | Path]) -> dict[str, Any]:
    """Options of the model that checkpoints make up: those of the last one, with DRAWING_OPTIONS of the last one that
    trained dream queries or condition projector. Raises CheckpointProblem as `load_model` does, ValueError for none."""
    metadata = _read_options(checkpoints)
    if not metadata:
        raise ValueError("pass the model's options, or a checkpoint that has them")
    of_queries = [about["model"] for folder, about in metadata if has_query_parts(folder)]
    drawing = {key: (OLDER | of_queries[-1])[key] for key in DRAWING_OPTIONS} if of_queries else {}
    return {**metadata[-1][1]["model"]} | drawing


def _read_options(checkpoints: Sequence[str | Path]) -> list[tuple[str | Path, dict[str, Any]]]:
    """Each checkpoint with its checkpoint.json, which says what the model is built from."""
    metadata = [(folder, read_metadata(folder)) for folder in checkpoints]
    for folder, about in metadata:
        _check_options(Path(folder) / METADATA, about)
    return metadata


def _build(
    foundations: str | Path, options: Mapping[str, Any], *, weights: bool = True
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    folders = (Path(foundations) / name for name in foundation_folders(options))
    others = {key: value for key, value in options.items() if key not in FOLDERS}
    return build_from_foundations(*folders, **others, weights=weights)


def _check_options(path: Path, about: Mapping[str, Any]) -> None:
    """Raises CheckpointProblem, naming the key, when a checkpoint.json does not say what the model is built from."""
    if lacking := [key for key in ("foundations", "model") if key not in about]:
        raise CheckpointProblem(f"{path}: does not have {' and '.join(lacking)}, so no model can be built from it")
    known = {name for name, one in inspect.signature(build_from_foundations).parameters.items() if one.kind == KEYWORD}
    known |= {*FOLDERS}
    options = about["model"]
    if unknown := sorted(options.keys() - known):
        raise CheckpointProblem(f"{path}: model has the unknown option {unknown[0][:80]!a}")
    if "num_dream_queries" not in options:
        raise CheckpointProblem(f"{path}: model does not have num_dream_queries")
    for key, value in options.items():
        of_text = ("template", "visual_projector_type", *FOLDERS)
        if type(value) is not (str if key in of_text else bool if key == "boundary_tokens" else int):
            raise CheckpointProblem(f"{path}: model.{key} is {ascii(value)[:80]}, of the wrong type")
        if key in FOLDERS and not re.match(NAME, str(value)):
            raise CheckpointProblem(f"{path}: model.{key} is {ascii(value)[:80]}, which is no name of a folder")
    for key, least, most in (("num_dream_queries", 1, MOST_QUERIES), ("connector_layers", 0, MOST_LAYERS)):
        if not least <= (number := options.get(key, least)) <= most:
            raise CheckpointProblem(f"{path}: model.{key} is {number}, not from {least} to {most}")


def load_for_inference(
    foundations: str | Path, checkpoints: Sequence[str | Path], dtype: torch.dtype
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """Load a model to run it: `load_model`, on the GPU if there is one, in the precision `dtype`.

    checkpoints: folders in loading order; at least one. Raises CheckpointProblem as `load_model` does.
    """
    model, processor = load_model(foundations, checkpoints)
    precision.for_inference(model, precision.default_device(), dtype)
    return model, processor


def has_query_parts(folder: str | Path) -> bool:
    """Whether a checkpoint holds dream queries or condition projector, which fit one number of dream queries only.

    Raises CheckpointProblem when the folder is not a checkpoint.
    """
    with _tensors(folder) as file:
        return any(name.split(".")[0] in QUERY_PARTS for name in file.keys())  # noqa: SIM118, it is no mapping


def read_contents(folder: str | Path) -> ancestors.Contents:
    """What a checkpoint holds and what it was trained from.

    Of an ancestor that its checkpoint.json knows by digest alone, written by an older version, the rest is read from
    the folder beside it that holds it; where there is none, it is taken to hold all that is usually trained.
    Raises CheckpointProblem when the file of tensors is not the one that checkpoint.json describes.
    """
    folder, about = Path(folder), read_metadata(folder)
    whole, adapted = _parts(folder)
    now, recorded = digest(folder / TENSORS), about.get("tensors")
    if now != recorded:
        raise CheckpointProblem(
            f"{folder / TENSORS}: is not the file that {METADATA} describes: its sha256 is {now[:12]}, recorded is "
            f"{str(recorded)[:12]}; restore it, or train again"
        )
    inherited, init = [], about.get("init", [])
    for tensors, known in zip(init, about.get("ancestors") or [{}] * len(init), strict=True):
        beside = next((path for path in sorted(folder.parent.glob(f"*/{METADATA}")) if _is_of(path, tensors)), None)
        if not known and beside:
            known = about_ancestor(beside.parent)
        parts = frozenset(known.get("parts", UNFROZEN))
        inherited.append(ancestors.Ancestor(tensors, known.get("stage", ""), parts, beside and beside.parent))
    return ancestors.Contents(folder, now, whole, adapted, tuple(inherited))


def check_finetuned_sd(folder: str | Path, foundation: str | Path) -> None:
    """Raises CheckpointProblem unless a checkpoint of `finetune-sd` is whole and was trained from this foundation."""
    about, unet = read_metadata(folder), Path(folder) / "unet"
    for path, recorded in ((Path(foundation), about.get("foundations", {}).get("sd")), (unet, about.get("tensors"))):
        if (now := digest(path)) != recorded:
            raise CheckpointProblem(
                f"{folder}: its {METADATA} names another {path.name} than {path} (recorded is sha256 "
                f"{str(recorded)[:12]}, there is {now[:12]}); restore it, or fine-tune again"
            )


def about_ancestor(folder: str | Path) -> dict[str, Any]:
    """What the checkpoint.json of a stage says, beside the digest, of a checkpoint that the stage starts from."""
    return {"stage": read_metadata(folder).get("stage", ""), "parts": sorted(frozenset().union(*_parts(folder)))}


def _parts(folder: str | Path) -> tuple[frozenset[str], frozenset[str]]:
    """The parts of the model that a checkpoint replaces, and those that it adapts."""
    with _tensors(folder) as file:
        names = list(file.keys())
    adapted = frozenset(name.split(".")[0] for name in names if name.endswith(lora.A))
    return frozenset(name.split(".")[0] for name in names) - adapted, adapted


def _is_of(metadata: Path, tensors: str) -> bool:
    """Whether a checkpoint.json is of the checkpoint with this digest."""
    try:
        return read_metadata(metadata.parent).get("tensors") == tensors and _is_there(metadata.parent / TENSORS)
    except CheckpointProblem:
        return False


def build_on_meta(
    foundations: str | Path, options: Mapping[str, Any]
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """Build the model of `load_model` on the meta device: reads no weights and takes no memory."""
    return _build(foundations, options, weights=False)


def load_trained(model: DreamLLMForConditionalGeneration, folder: str | Path) -> None:
    """Copy the trained parameters of one checkpoint into the model, and merge its LoRA adapters into their weights.

    Raises CheckpointProblem naming the tensors that the model lacks or has in another shape; then nothing is copied.
    """
    parameters = dict(model.named_parameters())
    with _tensors(folder) as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        problems = []
        for name in [name for name in names if name.endswith((lora.A, lora.B))]:  # shape of the product B A
            module = name.removesuffix(lora.A).removesuffix(lora.B)
            a, b = shapes.get(module + lora.A, ()), shapes.get(module + lora.B, ())
            if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
                problems.append(f"the adapter of {module} is no pair of matrices: A {list(a)}, B {list(b)}")
        for name in [name for name in names if name.endswith(lora.A) and not problems]:
            shapes[name] = (*shapes[name.removesuffix(lora.A) + lora.B][:1], *shapes[name][1:])
        targets = {name: lora.target_parameter(name) for name in names if not name.endswith(lora.B)}
        problems += [f"the model has no {target}" for target in targets.values() if target not in parameters]
        weights = {
            name: lora.adapted_weight(model, target) if name.endswith(lora.A) else parameters[target]
            for name, target in targets.items()
            if target in parameters
        }
        for name, weight in weights.items():
            if shapes[name] != (shape := tuple(weight.shape)):
                problems.append(f"{name} is {list(shapes[name])} in the file and {list(shape)} in the model")
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise CheckpointProblem(
                f"{Path(folder) / TENSORS}: does not fit the model: {'; '.join(problems[:5])}{more}"
            )
        for name, weight in weights.items():
            tensor = _finite(file, name, folder)
            if name.endswith(lora.A):
                lora.merge(weight, tensor, _finite(file, name.removesuffix(lora.A) + lora.B, folder))
            else:
                weight.data.copy_(tensor)


def _finite(file: Any, name: str, folder: str | Path) -> torch.Tensor:
    """A tensor of an opened file. Raises CheckpointProblem when it holds NaN, infinity or integers."""
    tensor = file.get_tensor(name)
    if not tensor.is_floating_point() or not_finite([(name, tensor)]):
        what = "holds NaN or infinity" if tensor.is_floating_point() else f"is of type {tensor.dtype}"
        raise CheckpointProblem(f"{Path(folder) / TENSORS}: tensor {name} {what}; train the stage again")
    return tensor


def _tensors(folder: str | Path) -> TensorFiles:
    """The tensors of a checkpoint, opened. Raises CheckpointProblem when a file of them is missing or damaged."""
    path = Path(folder) / TENSORS
    if not _is_there(path):
        raise CheckpointProblem(f"{folder}: not a checkpoint, it has no {TENSORS}")
    try:
        return TensorFiles(path)
    except (SafetensorError, NameProblem) as error:
        raise CheckpointProblem(f"{path}: is no whole safetensors file ({error})") from None
    except FileNotFoundError as error:
        raise CheckpointProblem(f"{path}: one of the files that its index names is missing ({error})") from None


def _is_there(path: Path) -> bool:
    """Whether there are tensors, in one file or in several."""
    return path.is_file() or index_of(path).is_file()

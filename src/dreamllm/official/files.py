"""Read and write the folder of an official checkpoint; `convert.py` describes its files.

Pickles are read with `weights_only=True`, so that no code in them is run.
"""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from dreamllm.digests import sha256_of_file
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.processor import PAD, SPECIAL_TOKENS
from dreamllm.model.weights import load_part, not_finite
from dreamllm.official import convert
from dreamllm.official.convert import PLUGINS, OfficialProblem
from dreamllm.safe_join import NameProblem, shards_of

TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


# ---- reading -------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises OfficialProblem for a missing or malformed file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise OfficialProblem(f"{path}: no such file; give the folder of an official checkpoint") from None
    except ValueError as error:
        raise OfficialProblem(f"{path}: malformed JSON ({error})") from None
    if not isinstance(content, dict):
        raise OfficialProblem(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def read_tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of an official checkpoint by file and name, memory-mapped.

    Raises OfficialProblem for a plugin's file or a shard that is missing, truncated, or contains anything but tensors.
    """
    plugins = [f"{plugin}.bin" for plugin in PLUGINS]
    if absent := [name for name in plugins if not (folder / name).is_file()]:
        raise OfficialProblem(
            f"{folder}: {', '.join(absent)} missing; a checkpoint needs {', '.join(plugins)} and the language model "
            "(the older formats dream_queries.pt and *_projector.pt are not supported)"
        )
    return {name: read_file(folder / name) for name in [*_language_model_files(folder), *plugins]}


def _language_model_files(folder: Path) -> list[str]:
    """Names of the language model's files; safetensors are preferred to pickles, as in transformers."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [name]
        if index.is_file():
            try:
                shards = shards_of(index)
            except NameProblem as problem:
                raise OfficialProblem(str(problem)) from None
            if absent := [shard for shard in shards if not (folder / shard).is_file()]:
                raise OfficialProblem(f"{folder}: {', '.join(absent)} missing, listed in {index.name}; download it")
            return shards
    raise OfficialProblem(f"{folder}: has no language model, neither model*.safetensors nor pytorch_model*.bin")


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, a pickle or safetensors, by name. Raises OfficialProblem as `read_tensors` does."""
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")[:300]
        raise OfficialProblem(f"{path}: rejected, because its pickle is malformed or contains code: {reason}") from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise OfficialProblem(f"{path}: unreadable, probably truncated; download it again ({error})") from None
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items()
    ):
        raise OfficialProblem(f"{path}: is not a dict from names to tensors")
    if (bad := not_finite(content.items())) is not None:
        raise OfficialProblem(f"{path}: tensor {bad[:200]!a} holds NaN or infinity")
    return dict(content)


def read_tokenizer(folder: Path, ids: Mapping[str, int], vocab_size: int):
    """Load the tokenizer of an official checkpoint.

    ids: of the special tokens by config.json.  vocab_size: the number of the model's token embeddings
    Raises OfficialProblem when the tokenizer is missing, has other ids, or has more tokens than embeddings.
    """
    if not (folder / "tokenizer.model").is_file():
        raise OfficialProblem(f"{folder}: tokenizer.model missing; download it")
    tokenizer = load_part(AutoTokenizer, folder, config=AutoConfig.for_model("llama"))
    known = tokenizer.get_vocab()
    if wrong := {token: (known.get(token), id_) for token, id_ in ids.items() if known.get(token) != id_}:
        differences = "; ".join(
            f"{token} is {there} in the tokenizer and {id_} in config.json" for token, (there, id_) in wrong.items()
        )
        raise OfficialProblem(f"{folder}: tokenizer and config.json do not belong together: {differences}")
    if len(tokenizer) > vocab_size:
        raise OfficialProblem(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, but the model only {vocab_size} embeddings"
        )
    return tokenizer


def model_config(read: convert.OfficialConfig, clip_dir: Path, sd_dir: Path) -> DreamLLMConfig:
    """Our configuration of an official model, with CLIP's and Stable Diffusion's from their folders.

    clip_dir: in transformers' format, with one tower or both.  sd_dir: in diffusers' format. No weights are read.
    Raises OfficialProblem for a folder that is missing.
    """
    for folder in (clip_dir / "config.json", sd_dir / "vae", sd_dir / "unet", sd_dir / "scheduler"):
        if not folder.exists():
            raise OfficialProblem(f"{folder}: missing; give the folders of CLIP and Stable Diffusion")
    vision = load_part(AutoConfig, clip_dir)
    return DreamLLMConfig(
        text_config=read.llm,
        vision_config=getattr(vision, "vision_config", vision),
        vae_config=AutoencoderKL.load_config(sd_dir, subfolder="vae"),
        unet_config=UNet2DConditionModel.load_config(sd_dir, subfolder="unet"),
        scheduler_config=DDPMScheduler.load_config(sd_dir, subfolder="scheduler"),
        num_dream_queries=read.num_dream_queries,
        vision_feature_layer=read.vision_feature_layer,
        bos_token_id=read.ids["<s>"],
        eos_token_id=read.ids["</s>"],
        pad_token_id=read.ids[PAD],
        **{f"{token[1:-1]}_token_id": id_ for token, id_ in read.ids.items() if "_" in token},
    )


def digests(folder: Path) -> dict[str, str]:
    """sha256 of each file of a folder by its path within the folder, without hidden files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = sha256_of_file(path)
    return found


# ---- writing -------------------------------------------------------------------------------------------------------


def write(
    folder: Path, config: Mapping[str, Any], files: Mapping[str, Mapping[str, torch.Tensor]], llm_dir: Path
) -> None:
    """Write an official checkpoint to an empty folder.

    config: from `convert.official_config`.  files: from `convert.split`.  llm_dir: folder of the language model
    Raises OfficialProblem when `llm_dir` has no tokenizer.model.
    """
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    ids = convert.special_ids(config["special_tokens2ids_dict"])
    generation = {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    for name, tensors in files.items():
        # clone each tensor, or torch.save would write the whole storage that it is a view of
        cloned = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
        if name == "model":
            save_torch_state_dict(cloned, folder, max_shard_size="5GB", metadata={"format": "pt"})
        else:
            torch.save(cloned, folder / name)
    write_tokenizer(folder, ids, llm_dir, config)


def write_tokenizer(folder: Path, ids: Mapping[str, int], llm_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the files of a slow LLaMA tokenizer with the special tokens.

    Where the language model's tokenizer has these tokens already, as an imported one does, its files are copied.
    """
    if not (llm_dir / "tokenizer.model").is_file():
        raise OfficialProblem(
            f"{llm_dir}: tokenizer.model missing; the official code supports only sentencepiece tokenizers"
        )
    added = {token: ids[token] for token in sorted(SPECIAL_TOKENS)}
    if (llm_dir / "added_tokens.json").is_file() and read_json(llm_dir / "added_tokens.json") == added:
        for name in TOKENIZER_FILES:
            if (llm_dir / name).is_file():
                shutil.copyfile(llm_dir / name, folder / name)
        return
    shutil.copyfile(llm_dir / "tokenizer.model", folder / "tokenizer.model")
    flags = dict.fromkeys(["lstrip", "normalized", "rstrip", "single_word"], False)
    decoder = {str(id_): {"content": token, **flags, "special": True} for token, id_ in ids.items()}
    additional = sorted((token for token in SPECIAL_TOKENS if token != PAD), key=ids.__getitem__)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": PAD}
    tokenizer_config = {
        "added_tokens_decoder": decoder,
        "additional_special_tokens": additional,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": config["max_position_embeddings"],
        "padding_side": "right",
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        **names,
    }
    contents = {
        "added_tokens.json": added,
        "tokenizer_config.json": tokenizer_config,
        "special_tokens_map.json": {"additional_special_tokens": additional, **names},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

"""Convert tensor names and configurations between the authors' released checkpoints and ours.

A released checkpoint is a folder (official code, modeling_dreamllm.py and modeling_plugins.py):

    config.json                    LLaMA's configuration, ids of the special tokens, settings of three "plugins"
    model*.safetensors             the language model, or pytorch_model*.bin
    dream_embedding.bin            the dream queries
    clip_vision_embedding.bin      CLIP's vision tower and the visual projector
    stable_diffusion_head.bin      VAE, UNet and the condition projector
    tokenizer.model, ...           a LLaMA tokenizer with eight added tokens, whose ids are in no particular order

It does not contain the configurations of CLIP, VAE, UNet and noise schedule. `files.py` reads and writes the files.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LlamaConfig

from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.processor import PAD, SPECIAL_TOKENS

Tensors = Mapping[str, torch.Tensor]

PLUGINS = {  # plugin: prefix of its tensors in the state dict of the official model; PLUGIN.bin omits the prefix
    "clip_vision_embedding": "model.clip_vision_embedding.",
    "dream_embedding": "model.dream_embedding.",
    "stable_diffusion_head": "stable_diffusion_head.",
}
PLUGIN_CLASSES = {  # plugin: its class in the official code; only compared, never imported
    "clip_vision_embedding": "omni.models.dreamllm.modeling_plugins.CLIPVisionEmbedding",
    "dream_embedding": "omni.models.dreamllm.modeling_plugins.DreamEmbedding",
    "stable_diffusion_head": "omni.models.dreamllm.modeling_plugins.StableDiffusionHead",
}
PLUGIN_KINDS = {"clip_vision_embedding": "embedding", "dream_embedding": "embedding", "stable_diffusion_head": "head"}
NO_SDXL = (
    "the SDXL variant cannot be imported: the code that was published with it makes no such checkpoint, so tensors "
    "and tokens of one are unknown (docs/released.md)"
)
IGNORED_SETTINGS = {  # plugin: settings that do not affect the imported model
    "clip_vision_embedding": {"clip_vision_model_name_or_path", "freeze_clip_vision_model", "freeze_embedding_layers"},
    "dream_embedding": {"freeze_dream_queries"},
    "stable_diffusion_head": {"diffusion_name_or_path", "drop_prob", "noise_offset", "input_perturbation", "snr_gamma"}
    | {"resolution", "center_crop", "random_flip", "freeze_vae", "freeze_unet"},
}
IGNORED_IN_ALL = {"pretrained_model_name_or_path", "projector_name_or_path", "freeze_projector", "local_files_only"}
LINEAR = {"projector_type": "linear", "projector_depth": 1}
REQUIRED_SETTINGS: dict[str, dict[str, Any]] = {  # plugin: settings that must have this value where they are given
    "clip_vision_embedding": LINEAR | {"use_additional_post_layernorm": False},
    "dream_embedding": {},
    "stable_diffusion_head": LINEAR,
}
TENSOR_PREFIXES = {  # official prefix of a tensor name: ours; the first match counts
    "model.clip_vision_embedding.clip_vision_model.vision_model.": "vision_model.",
    "model.clip_vision_embedding.projector.projector.": "visual_projector.",
    "model.dream_embedding.dream_queries": "dream_queries",
    "stable_diffusion_head.projector.projector.": "condition_projector.",
    "stable_diffusion_head.vae.": "vae.",
    "stable_diffusion_head.unet.": "unet.",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
RECOMPUTED_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of the names of buffers that older libraries saved; they are computed from the configuration."""
ADDED_TOKENS = tuple(token for token in SPECIAL_TOKENS if token != PAD)
LLAMA_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
LLAMA_OPTIONAL = ("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps")
LLAMA_OPTIONAL += ("attention_bias",)


class OfficialProblem(ValueError):
    """An official checkpoint that cannot be read, or a model that cannot be written as one; names file and reason."""


# ---- configuration -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfficialConfig:
    """The entries of an official config.json that define the model."""

    llm: LlamaConfig
    ids: dict[str, int]  # by token: <s>, </s> and SPECIAL_TOKENS
    num_dream_queries: int
    vision_feature_layer: int


def read_config(content: Mapping[str, Any], where: str) -> OfficialConfig:
    """Read the content of an official config.json; errors name `where`, its path.

    The official code imports and calls the class that `_target_` names. Here the name is only compared with
    PLUGIN_CLASSES. Raises OfficialProblem with every entry that is wrong or would define another model.
    """
    problems = []
    if (model_type := content.get("model_type")) != "dreamllm":
        raise OfficialProblem(
            f"{where}: model_type is {model_type!r}, not 'dreamllm'; give the folder of an official DreamLLM checkpoint"
        )
    for names, type_ in ((LLAMA_REQUIRED, int), (("special_tokens2ids_dict", "plugins_init_kwargs"), dict)):
        problems += [
            f"{name} is missing or not of type {type_.__name__}"
            for name in names
            if not isinstance(content.get(name), type_)
        ]
    if problems:
        raise OfficialProblem(f"{where}: {'; '.join(problems)}")
    plugins = content["plugins_init_kwargs"]
    for name in plugins.keys() ^ PLUGINS.keys():
        problems.append(f"plugin {name} is {'unknown' if name in plugins else 'missing'}")
    for name in plugins.keys() & PLUGINS.keys():
        problems += [f"{name}: {problem}" for problem in _plugin_problems(name, plugins[name], content["hidden_size"])]
    ids = special_ids(content["special_tokens2ids_dict"])
    tokens = ("<s>", "</s>", *SPECIAL_TOKENS)
    problems += [f"special_tokens2ids_dict has no id for {token}" for token in tokens if token not in ids]
    for token, id_ in ids.items():
        if not isinstance(id_, int) or not 0 <= id_ < content["vocab_size"]:
            problems.append(f"the id of {token} is {id_!r}, outside the vocabulary of {content['vocab_size']} tokens")
    problems += [
        f"{' and '.join(token for token in ids if ids[token] == id_)} have the same id {id_}"
        for id_, count in Counter(ids.values()).items()
        if count > 1
    ]
    if content.get("tie_word_embeddings"):
        problems.append("tie_word_embeddings is true, but the official model has a separate output head")
    if problems:
        raise OfficialProblem(f"{where}: {'; '.join(sorted(problems))}")
    return OfficialConfig(
        llm=_llama_config(content, ids),
        ids={token: ids[token] for token in tokens},
        num_dream_queries=plugins["dream_embedding"].get("num_dream_queries", 64),
        vision_feature_layer=plugins["clip_vision_embedding"].get("select_layer", -2),
    )


def _plugin_problems(plugin: str, settings: Mapping[str, Any], hidden_size: int) -> list[str]:
    if not isinstance(settings, Mapping):
        return [f"settings are {settings!r}, not an object"]
    if str(settings.get("_target_")).endswith(".StableDiffusionXLHead"):
        return [NO_SDXL]
    problems = []
    required = REQUIRED_SETTINGS[plugin] | {"_target_": PLUGIN_CLASSES[plugin]}
    chosen = {"embed_hidden_size", "num_dream_queries", "select_layer"}
    for key, value in settings.items():
        if key in required:
            if value != required[key]:
                problems.append(f"{key} is {value!r}, only {required[key]!r} is supported")
        elif key not in IGNORED_SETTINGS[plugin] | IGNORED_IN_ALL | chosen:
            problems.append(f"unknown setting {key}")
    if "_target_" not in settings:
        problems.append("_target_ is missing")
    if (width := settings.get("embed_hidden_size", 4096)) != hidden_size:
        problems.append(f"embed_hidden_size is {width}, but hidden_size is {hidden_size}")
    return problems


def special_ids(content: Mapping[str, Any]) -> dict[str, Any]:
    """Ids by token of a `special_tokens2ids_dict`, where `additional_special_tokens` is a nested dict."""
    return {token: id_ for token, id_ in content.items() if not isinstance(id_, Mapping)} | {
        token: id_ for inner in content.values() if isinstance(inner, Mapping) for token, id_ in inner.items()
    }


def _llama_config(content: Mapping[str, Any], ids: Mapping[str, int]) -> LlamaConfig:
    """The language model's configuration, with rotary embeddings in the format of transformers 5."""
    rope = {"rope_type": "default", "rope_theta": content.get("rope_theta", 10000.0)}
    if scaling := content.get("rope_scaling"):
        rope |= {"rope_type": scaling["type"], "factor": scaling["factor"]}
    return LlamaConfig(
        **{name: content[name] for name in LLAMA_REQUIRED},
        **{name: content[name] for name in LLAMA_OPTIONAL if content.get(name) is not None},
        rope_parameters=rope,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=None,
        tie_word_embeddings=False,
    )


def official_config(
    config: DreamLLMConfig, ids: Mapping[str, int], base: Mapping[str, Any] | None, clip: str, sd: str
) -> dict[str, Any]:
    """The content of the official config.json for one of our models: the inverse of `read_config`.

    ids: as in OfficialConfig.  base: the config.json that the model was imported with, whose other entries are kept
    clip, sd: hub names or folders that the official code loads CLIP and Stable Diffusion from; used without a base only
    Raises OfficialProblem for a language model that is not LLaMA, or a LLaMA with `mlp_bias` or an explicit `head_dim`,
    for another eye than CLIP, and for a projector that is not linear.
    """
    llm = config.text_config
    if config.vision_config.model_type != "clip_vision_model" or config.visual_projector_type != "linear":
        raise OfficialProblem(
            f"the eye is {config.vision_config.model_type} and its projector {config.visual_projector_type}; the "
            "official code supports only CLIP with a linear projector"
        )
    head_size = llm.hidden_size // llm.num_attention_heads
    if llm.model_type != "llama" or getattr(llm, "mlp_bias", False) or (llm.head_dim or head_size) != head_size:
        raise OfficialProblem(
            f"the language model is {llm.model_type}; the official code supports only LLaMA without mlp_bias"
        )
    rope = llm.rope_parameters
    if rope["rope_type"] not in ("default", "linear", "dynamic"):
        raise OfficialProblem(f"the official code has no rotary embeddings of type {rope['rope_type']!r}")
    scaling = None if rope["rope_type"] == "default" else {"type": rope["rope_type"], "factor": rope["factor"]}
    if base is None:
        base = _DEFAULTS | {
            "plugins_init_kwargs": {
                "clip_vision_embedding": {
                    "_target_": PLUGIN_CLASSES["clip_vision_embedding"],
                    "clip_vision_model_name_or_path": clip,
                    "pretrained_model_name_or_path": None,
                },
                "dream_embedding": {
                    "_target_": PLUGIN_CLASSES["dream_embedding"],
                    "pretrained_model_name_or_path": None,
                },
                "stable_diffusion_head": {
                    "_target_": PLUGIN_CLASSES["stable_diffusion_head"],
                    "diffusion_name_or_path": sd,
                    "pretrained_model_name_or_path": None,
                    "resolution": config.draw_size,
                },
            },
        }
    content = copy.deepcopy(dict(base))
    content |= {name: getattr(llm, name) for name in (*LLAMA_REQUIRED, *LLAMA_OPTIONAL)}
    content |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "tie_word_embeddings": False}
    # the authors' own files say bos 0 and eos 1, which their code does not read: its tokenizer has 1 and 2
    content.setdefault("bos_token_id", ids["<s>"])
    content.setdefault("eos_token_id", ids["</s>"])
    added = {token: ids[token] for token in sorted(ADDED_TOKENS)}
    content["special_tokens2ids_dict"] = {
        **{token: id_ for token, id_ in content.get("special_tokens2ids_dict", {}).items() if token == "<unk>"},
        "</s>": ids["</s>"],
        "<s>": ids["<s>"],
        PAD: ids[PAD],
        "additional_special_tokens": added,
    }
    plugins = content["plugins_init_kwargs"]
    for settings in plugins.values():
        settings["embed_hidden_size"] = llm.hidden_size
    plugins["clip_vision_embedding"]["select_layer"] = config.vision_feature_layer
    plugins["dream_embedding"]["num_dream_queries"] = config.num_dream_queries
    return content


_DEFAULTS = {  # entries of an official config.json that do not describe the language model
    "architectures": ["DreamLLMForCausalMLM"],
    "model_type": "dreamllm",
    "plugins_type": PLUGIN_KINDS,
    "loss_weight_lm": 1.0,
    "loss_weight_vm": 10.0,
    "loss_scale_schedule": "none",
    "log_attentions": False,
    "log_hidden_states": False,
    "torch_dtype": "float32",
    "transformers_version": "4.35.2",
    "use_cache": True,
    "pretraining_tp": 1,
}


# ---- tensors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorUse:
    """What an import did with one tensor of an official checkpoint.

    becomes: our name of it, "" unless it was used.  use: one of
    - "used".
    - "recomputed": a buffer that is computed from the configuration; the saved one agrees with it.
    - "duplicate": a plugin's tensor in the language model's file; that of the plugin's own file was used.
    - "differs": as "duplicate", but with other values than in the plugin's own file.
    - "unexpected": the model has no such tensor.
    """

    file: str
    name: str
    becomes: str
    shape: tuple[int, ...]
    dtype: str
    use: str


def convert(
    files: Mapping[str, Tensors], expected: Mapping[str, torch.Size], llm: LlamaConfig
) -> tuple[dict, list[TensorUse]]:
    """Convert the tensors of an official checkpoint to ours; returns them by our names, and how each was used.

    files: tensors by file name; PLUGIN.bin is a plugin's file, all others are the language model's
    expected: shapes by our names
    Raises OfficialProblem with the tensors that are missing, unexpected, duplicate or of another shape.
    """
    ours: dict[str, torch.Tensor] = {}
    uses: list[TensorUse] = []
    problems: list[str] = []
    prefix_of_file = {f"{plugin}.bin": prefix for plugin, prefix in PLUGINS.items()}
    for file in sorted(files, key=lambda name: name not in prefix_of_file):  # plugins first
        for name, tensor in files[file].items():
            full_name = prefix_of_file.get(file, "") + name
            becomes, use = to_ours(full_name), "used"
            if full_name.endswith(RECOMPUTED_BUFFERS):
                use = "recomputed"
                if not torch.allclose(tensor.float(), _recomputed(full_name, tensor, llm), rtol=1e-2, atol=0):
                    problems.append(f"{file}: {name} does not agree with config.json")
            elif becomes not in expected:
                use = "unexpected"
                problems.append(f"{file}: {name} is unexpected")
            elif becomes in ours and file not in prefix_of_file and full_name.startswith(tuple(PLUGINS.values())):
                use = "duplicate" if torch.equal(ours[becomes], tensor) else "differs"
            elif becomes in ours:
                problems.append(f"{file}: {name} is also in another file")
            elif tensor.shape != expected[becomes]:
                problems.append(f"{file}: {name} has shape {list(tensor.shape)}, expected {list(expected[becomes])}")
            if use == "used":
                ours[becomes] = tensor
            dtype = str(tensor.dtype).removeprefix("torch.")
            uses.append(TensorUse(file, name, becomes if use == "used" else "", tuple(tensor.shape), dtype, use))
    missing = [to_official(name) for name in expected if name not in ours]
    problems += [f"{name} is missing" for name in missing]
    if problems:
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        counts = Counter(entry.use for entry in uses) | {"missing": len(missing)}
        counted = ", ".join(f"{count} {use}" for use, count in sorted(counts.items()))
        raise OfficialProblem(f"the tensors do not fit ({counted}): {'; '.join(problems[:12])}{more}")
    return ours, uses


def split(ours: Tensors, llm: LlamaConfig) -> dict[str, dict[str, torch.Tensor]]:
    """Our tensors by official file and name: PLUGIN.bin for each plugin, "model" for the language model.

    The inverse of `convert`. Adds the buffers of the rotary embeddings, which official checkpoints contain.
    """
    files: dict[str, dict[str, torch.Tensor]] = {
        name: {} for name in ("model", *(f"{plugin}.bin" for plugin in PLUGINS))
    }
    for name, tensor in ours.items():
        full_name = to_official(name)
        plugin = next((plugin for plugin, prefix in PLUGINS.items() if full_name.startswith(prefix)), None)
        if plugin is None:
            files["model"][full_name] = tensor
        else:
            files[f"{plugin}.bin"][full_name.removeprefix(PLUGINS[plugin])] = tensor
    for layer in range(llm.num_hidden_layers):
        files["model"][f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = rotary_frequencies(llm)
    return files


def to_ours(name: str) -> str:
    """Our name of a tensor in the state dict of the official model; "" for one that belongs to none of its parts."""
    prefix = next((prefix for prefix in TENSOR_PREFIXES if name.startswith(prefix)), None)
    return "" if prefix is None else TENSOR_PREFIXES[prefix] + name.removeprefix(prefix)


def to_official(name: str) -> str:
    """The official name of one of our tensors: the inverse of `to_ours`."""
    prefix = next(prefix for prefix, ours in TENSOR_PREFIXES.items() if name.startswith(ours))
    return prefix + name.removeprefix(TENSOR_PREFIXES[prefix])


def expected_shapes(config: DreamLLMConfig) -> dict[str, torch.Size]:
    """Shapes of all tensors of a model by our names; computed without allocating the tensors."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in DreamLLMForConditionalGeneration(config).state_dict().items()}


def _recomputed(name: str, tensor: torch.Tensor, llm: LlamaConfig) -> torch.Tensor:
    """The expected fp32 values of a saved buffer of RECOMPUTED_BUFFERS; NaN for frequencies of another shape."""
    if name.endswith("position_ids"):
        return torch.arange(tensor.numel()).reshape(tensor.shape).float()
    frequencies = rotary_frequencies(llm)
    return frequencies if tensor.shape == frequencies.shape else torch.full(tensor.shape, torch.nan)


def rotary_frequencies(llm: LlamaConfig) -> torch.Tensor:
    """The buffer `inv_freq` of every layer of the official code, (head size / 2,)."""
    size = llm.hidden_size // llm.num_attention_heads
    return 1.0 / (llm.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2).float() / size))


def summary(uses: Iterable[TensorUse]) -> str:
    """One line for each file: the number of tensors by use."""
    counts: dict[str, Counter] = {}
    for entry in uses:
        counts.setdefault(entry.file, Counter())[entry.use] += 1
    lines = {file: ", ".join(f"{count} {use}" for use, count in sorted(of.items())) for file, of in counts.items()}
    return "\n".join(f"{file}: {line}" for file, line in lines.items())


def as_json(uses: Iterable[TensorUse]) -> list[dict[str, Any]]:
    """The uses of tensors as JSON objects."""
    return [asdict(entry) | {"shape": list(entry.shape)} for entry in uses]

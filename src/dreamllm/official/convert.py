"""Convert between the authors' released checkpoints and ours: tensor names and configurations.

A released checkpoint is a folder (official code, modeling_dreamllm.py and modeling_plugins.py):

    config.json                    LLaMA's configuration, ids of the special tokens, settings of three "plugins"
    model*.safetensors             the language model alone, or pytorch_model*.bin
    dream_embedding.bin            the dream queries
    clip_vision_embedding.bin      CLIP's vision tower and the visual projector
    stable_diffusion_head.bin      VAE, UNet and the condition projector
    tokenizer.model, ...           a LLaMA tokenizer with eight added tokens, whose ids follow no order

The configurations of CLIP, VAE, UNet and noise schedule are not in it. `files.py` reads and writes the files.
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

PLUGINS = {  # plugin: prefix of its tensors in the whole official model; NAME.bin holds them without it
    "clip_vision_embedding": "model.clip_vision_embedding.",
    "dream_embedding": "model.dream_embedding.",
    "stable_diffusion_head": "stable_diffusion_head.",
}
TARGETS = {  # plugin: its class in the official code; only compared, never imported
    "clip_vision_embedding": "omni.models.dreamllm.modeling_plugins.CLIPVisionEmbedding",
    "dream_embedding": "omni.models.dreamllm.modeling_plugins.DreamEmbedding",
    "stable_diffusion_head": "omni.models.dreamllm.modeling_plugins.StableDiffusionHead",
}
KINDS = {"clip_vision_embedding": "embedding", "dream_embedding": "embedding", "stable_diffusion_head": "head"}
SETTINGS = {  # plugin: settings that change nothing in a model that is not trained there
    "clip_vision_embedding": {"clip_vision_model_name_or_path", "freeze_clip_vision_model", "freeze_embedding_layers"},
    "dream_embedding": {"freeze_dream_queries"},
    "stable_diffusion_head": {"diffusion_name_or_path", "drop_prob", "noise_offset", "input_perturbation", "snr_gamma"}
    | {"resolution", "center_crop", "random_flip", "freeze_vae", "freeze_unet"},
}
SETTINGS_OF_ALL = {"pretrained_model_name_or_path", "projector_name_or_path", "freeze_projector", "local_files_only"}
REQUIRED = {  # plugin: settings that must have this value, if they stand there
    "clip_vision_embedding": {
        "projector_type": "linear",
        "projector_depth": 1,
        "use_additional_post_layernorm": False,
    },
    "dream_embedding": {},
    "stable_diffusion_head": {"projector_type": "linear", "projector_depth": 1},
}
NAMES = {  # official prefix: ours; the first that fits is taken
    "model.clip_vision_embedding.clip_vision_model.vision_model.": "vision_model.",
    "model.clip_vision_embedding.projector.projector.": "visual_projector.",
    "model.dream_embedding.dream_queries": "dream_queries",
    "stable_diffusion_head.projector.projector.": "condition_projector.",
    "stable_diffusion_head.vae.": "vae.",
    "stable_diffusion_head.unet.": "unet.",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
RECOMPUTED = (
    "rotary_emb.inv_freq",
    "embeddings.position_ids",
)  # saved by older libraries, follow from the configuration
ADDED_TOKENS = tuple(token for token in SPECIAL_TOKENS if token != PAD)
LLAMA = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
LLAMA_OPTIONAL = ("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps")
LLAMA_OPTIONAL += ("attention_bias",)


class OfficialProblem(ValueError):
    """An official checkpoint that cannot be read, or a model that cannot be written as one: names file and reason."""


# ---- configuration -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfficialConfig:
    """The parts of an official config.json that define the model."""

    llm: LlamaConfig
    ids: dict[str, int]  # of <s>, </s> and SPECIAL_TOKENS
    num_dream_queries: int
    vision_feature_layer: int


def read_config(content: Mapping[str, Any], where: str) -> OfficialConfig:
    """Read an official config.json; `where` is named in errors.

    `_target_`, a class that the official code imports and calls, is compared with the three known ones, never imported.
    Raises OfficialProblem listing everything that is wrong, including settings that would define another model.
    """
    problems = []
    if (kind := content.get("model_type")) != "dreamllm":
        raise OfficialProblem(
            f"{where}: model_type is {kind!r}, not 'dreamllm': this is not an official DreamLLM checkpoint"
        )
    for names, type_ in ((LLAMA, int), (("special_tokens2ids_dict", "plugins_init_kwargs"), dict)):
        problems += [f"{name} is no {type_.__name__}" for name in names if not isinstance(content.get(name), type_)]
    if problems:
        raise OfficialProblem(f"{where}: {'; '.join(problems)}")
    plugins = content["plugins_init_kwargs"]
    for name in plugins.keys() ^ PLUGINS.keys():
        problems.append(f"plugin {name} is {'not known here' if name in plugins else 'missing'}")
    for name in plugins.keys() & PLUGINS.keys():
        problems += [f"{name}: {problem}" for problem in _plugin_problems(name, plugins[name], content["hidden_size"])]
    ids = special_ids(content["special_tokens2ids_dict"])
    wanted = ("<s>", "</s>", *SPECIAL_TOKENS)
    problems += [f"no id of {token} in special_tokens2ids_dict" for token in wanted if token not in ids]
    for token, id_ in ids.items():
        if not isinstance(id_, int) or not 0 <= id_ < content["vocab_size"]:
            problems.append(f"the id of {token} is {id_!r}, the vocabulary has {content['vocab_size']} rows")
    problems += [
        f"{' and '.join(token for token in ids if ids[token] == id_)} have the same id {id_}"
        for id_, count in Counter(ids.values()).items()
        if count > 1
    ]
    if content.get("tie_word_embeddings"):
        problems.append("tie_word_embeddings is true; the official model has a head of its own")
    if problems:
        raise OfficialProblem(f"{where}: {'; '.join(sorted(problems))}")
    return OfficialConfig(
        llm=_llama_config(content, ids),
        ids={token: ids[token] for token in wanted},
        num_dream_queries=plugins["dream_embedding"].get("num_dream_queries", 64),
        vision_feature_layer=plugins["clip_vision_embedding"].get("select_layer", -2),
    )


def _plugin_problems(plugin: str, settings: Mapping[str, Any], hidden_size: int) -> list[str]:
    if not isinstance(settings, Mapping):
        return [f"its settings are {settings!r}"]
    problems = []
    required = REQUIRED[plugin] | {"_target_": TARGETS[plugin]}
    chosen = {"embed_hidden_size", "num_dream_queries", "select_layer"}
    for key, value in settings.items():
        if key in required:
            if value != required[key]:
                problems.append(f"{key} is {value!r}, only {required[key]!r} can be read")
        elif key not in SETTINGS[plugin] | SETTINGS_OF_ALL | chosen:
            problems.append(f"the setting {key} is not known here")
    if "_target_" not in settings:
        problems.append("no _target_")
    if (width := settings.get("embed_hidden_size", 4096)) != hidden_size:
        problems.append(f"embed_hidden_size is {width}, hidden_size {hidden_size}")
    return problems


def special_ids(content: Mapping[str, Any]) -> dict[str, Any]:
    """Ids by token: those of `additional_special_tokens` lie one level deeper."""
    return {token: id_ for token, id_ in content.items() if not isinstance(id_, Mapping)} | {
        token: id_ for inner in content.values() if isinstance(inner, Mapping) for token, id_ in inner.items()
    }


def _llama_config(content: Mapping[str, Any], ids: Mapping[str, int]) -> LlamaConfig:
    """The language model's part, with rotary embeddings as transformers 5 writes them."""
    rope = {"rope_type": "default", "rope_theta": content.get("rope_theta", 10000.0)}
    if scaling := content.get("rope_scaling"):
        rope |= {"rope_type": scaling["type"], "factor": scaling["factor"]}
    return LlamaConfig(
        **{name: content[name] for name in LLAMA},
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
    """The official config.json of one of our models. The inverse of `read_config`.

    ids: of every special token, as in OfficialConfig.  base: the config.json that the model was imported with, whose
    other keys stay as they are.  clip, sd: what the official code loads CLIP and Stable Diffusion from, without a base
    Raises OfficialProblem for a language model that is no LLaMA as the official code has it.
    """
    llm = config.text_config
    head_size = llm.hidden_size // llm.num_attention_heads
    if llm.model_type != "llama" or getattr(llm, "mlp_bias", False) or (llm.head_dim or head_size) != head_size:
        raise OfficialProblem(
            f"the language model is {llm.model_type}; the official code has LLaMA as it was in 2023 only"
        )
    rope = llm.rope_parameters
    if rope["rope_type"] not in ("default", "linear", "dynamic"):
        raise OfficialProblem(f"rotary embeddings of type {rope['rope_type']!r} are not in the official code")
    scaling = None if rope["rope_type"] == "default" else {"type": rope["rope_type"], "factor": rope["factor"]}
    if base is None:
        base = _DEFAULTS | {
            "plugins_init_kwargs": {
                "clip_vision_embedding": {
                    "_target_": TARGETS["clip_vision_embedding"],
                    "clip_vision_model_name_or_path": clip,
                    "pretrained_model_name_or_path": None,
                },
                "dream_embedding": {
                    "_target_": TARGETS["dream_embedding"],
                    "pretrained_model_name_or_path": None,
                },
                "stable_diffusion_head": {
                    "_target_": TARGETS["stable_diffusion_head"],
                    "diffusion_name_or_path": sd,
                    "pretrained_model_name_or_path": None,
                    "resolution": config.draw_size,
                },
            },
        }
    content = copy.deepcopy(dict(base))
    content |= {name: getattr(llm, name) for name in (*LLAMA, *LLAMA_OPTIONAL)}
    content |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "tie_word_embeddings": False}
    content["bos_token_id"], content["eos_token_id"] = ids["<s>"], ids["</s>"]
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


_DEFAULTS = {  # of an official config.json, as far as it is not about the language model
    "architectures": ["DreamLLMForCausalMLM"],
    "model_type": "dreamllm",
    "plugins_type": KINDS,
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
class Key:
    """How one tensor of an official checkpoint was used.

    use: "used"; "recomputed", for a buffer that follows from the configuration and agrees with it; "duplicate", for a
    plugin's tensor in the language model's file, where the plugin's own file counts; "differs", for such a one whose
    values are others; "unexpected", for one that no part of the model has
    """

    file: str
    name: str
    becomes: str
    shape: tuple[int, ...]
    dtype: str
    use: str


def convert(
    files: Mapping[str, Tensors], expected: Mapping[str, torch.Size], llm: LlamaConfig
) -> tuple[dict, list[Key]]:
    """Tensors of an official checkpoint by file -> tensors under our names, and what became of each.

    files: of the plugins by file name, PLUGIN.bin; all others are the language model's.  expected: shapes by our names
    Raises OfficialProblem naming what is missing, unexpected, of another shape or twice there.
    """
    ours: dict[str, torch.Tensor] = {}
    keys: list[Key] = []
    problems: list[str] = []
    own = {f"{plugin}.bin": prefix for plugin, prefix in PLUGINS.items()}
    for file in sorted(files, key=lambda name: name not in own):  # plugins first
        for name, tensor in files[file].items():
            whole = own.get(file, "") + name
            becomes, use = to_ours(whole), "used"
            if whole.endswith(RECOMPUTED):
                use = "recomputed"
                if not torch.allclose(tensor.float(), _recomputed(whole, tensor, llm), rtol=1e-2, atol=0):
                    problems.append(f"{file}: {name} is not what config.json says")
            elif becomes not in expected:
                use = "unexpected"
                problems.append(f"{file}: {name} is unexpected")
            elif becomes in ours and file not in own and whole.startswith(tuple(PLUGINS.values())):
                use = "duplicate" if torch.equal(ours[becomes], tensor) else "differs"
            elif becomes in ours:
                problems.append(f"{file}: {name} is there twice")
            elif tensor.shape != expected[becomes]:
                problems.append(f"{file}: {name} is {list(tensor.shape)}, should be {list(expected[becomes])}")
            if use == "used":
                ours[becomes] = tensor
            dtype = str(tensor.dtype).removeprefix("torch.")
            keys.append(Key(file, name, becomes if use == "used" else "", tuple(tensor.shape), dtype, use))
    missing = [to_official(name) for name in expected if name not in ours]
    problems += [f"{name} is missing" for name in missing]
    if problems:
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        counts = Counter(key.use for key in keys) | {"missing": len(missing)}
        told = ", ".join(f"{count} {use}" for use, count in sorted(counts.items()))
        raise OfficialProblem(f"the tensors do not fit ({told}): {'; '.join(problems[:12])}{more}")
    return ours, keys


def split(ours: Tensors, llm: LlamaConfig) -> dict[str, dict[str, torch.Tensor]]:
    """Our tensors by file under official names: PLUGIN.bin for each plugin, "model" for the language model.

    The inverse of `convert`; adds the buffers of the rotary embeddings, which the official code saves.
    """
    files: dict[str, dict[str, torch.Tensor]] = {
        name: {} for name in ("model", *(f"{plugin}.bin" for plugin in PLUGINS))
    }
    for name, tensor in ours.items():
        whole = to_official(name)
        plugin = next((plugin for plugin, prefix in PLUGINS.items() if whole.startswith(prefix)), None)
        if plugin is None:
            files["model"][whole] = tensor
        else:
            files[f"{plugin}.bin"][whole.removeprefix(PLUGINS[plugin])] = tensor
    for layer in range(llm.num_hidden_layers):
        files["model"][f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = rotary_frequencies(llm)
    return files


def to_ours(name: str) -> str:
    """Our name of a tensor of the whole official model; "" for one outside all of its parts."""
    prefix = next((prefix for prefix in NAMES if name.startswith(prefix)), None)
    return "" if prefix is None else NAMES[prefix] + name.removeprefix(prefix)


def to_official(name: str) -> str:
    """The inverse of `to_ours`."""
    prefix = next(prefix for prefix, ours in NAMES.items() if name.startswith(ours))
    return prefix + name.removeprefix(NAMES[prefix])


def expected_shapes(config: DreamLLMConfig) -> dict[str, torch.Size]:
    """Shapes of all tensors of a model by our names; nothing is allocated."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in DreamLLMForConditionalGeneration(config).state_dict().items()}


def _recomputed(name: str, tensor: torch.Tensor, llm: LlamaConfig) -> torch.Tensor:
    """What a buffer in RECOMPUTED holds, in fp32 and of the tensor's shape as far as that is possible."""
    if name.endswith("position_ids"):
        return torch.arange(tensor.numel()).reshape(tensor.shape).float()
    frequencies = rotary_frequencies(llm)
    return frequencies if tensor.shape == frequencies.shape else torch.full(tensor.shape, torch.nan)


def rotary_frequencies(llm: LlamaConfig) -> torch.Tensor:
    """The buffer inv_freq that the official code keeps in every layer, (half of the head's size,)."""
    size = llm.hidden_size // llm.num_attention_heads
    return 1.0 / (llm.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2).float() / size))


def summary(keys: Iterable[Key]) -> str:
    """One line per file: how many tensors came to which use."""
    counts: dict[str, Counter] = {}
    for key in keys:
        counts.setdefault(key.file, Counter())[key.use] += 1
    return "\n".join(
        f"{file}: {', '.join(f'{count} {use}' for use, count in sorted(uses.items()))}" for file, uses in counts.items()
    )


def as_json(keys: Iterable[Key]) -> list[dict[str, Any]]:
    """The keys as plain JSON."""
    return [asdict(key) | {"shape": list(key.shape)} for key in keys]

"""Build DreamLLM on the meta device (shapes without storage) and measure what the plan's arithmetic needs.

The configurations come from the foundations' folder if it exists, else from the store that they are fetched from, else
for public models from paper/architectures/NAME.json, which name their source.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from dreamllm.config.experiment import Experiment, Model
from dreamllm.emoji.foundations.fetch import StoreProblem, listing, stored
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.processor import SPECIAL_TOKENS
from dreamllm.repro.plan.arithmetic import BF16, FP32, Size

ARCHITECTURES = Path("paper/architectures")
DENOISERS = ("unet", "transformer")  # a decoder has one of them
BLOCKS = ("resnets", "attentions", "transformer_blocks")
NORMS = (nn.GroupNorm, nn.LayerNorm)  # autocast leaves their outputs in fp32
INTERMEDIATE = ("intermediate_size", "ffn_dim", "n_inner")  # names of the width of feed-forward layers
VAE_TENSORS = 4  # of the largest size that exist at once while a picture is encoded


class PlanProblem(ValueError):
    """An experiment that cannot be planned: what is missing and what to do."""


def configurations(
    experiment: Experiment, architectures: Path = ARCHITECTURES, model: Model | None = None
) -> dict[str, dict[str, Any]]:
    """The configurations of an experiment's foundations: llm, clip, vae, unet or transformer, scheduler.

    model: whose language model and decoder are meant; that of the section `model` if None
    Raises PlanProblem.
    """
    foundations, model = experiment.foundations, model or experiment.model
    folder, sd = Path(foundations.folder), model.decoder
    files = {  # a configuration of a foundations' folder: key in an architecture's JSON file
        f"{model.language_model}/config.json": "llm",
        "clip/config.json": "clip",
        f"{sd}/vae/config.json": "vae",
        f"{sd}/scheduler/scheduler_config.json": "scheduler",
    }
    denoisers = {f"{sd}/{name}/config.json": name for name in DENOISERS}
    own = files | {name: key for name, key in denoisers.items() if (folder / name).is_file()}
    if len(own) > len(files) and all((folder / name).is_file() for name in own):
        return {key: _json(folder / name) for name, key in own.items()}
    if foundations.source == "fetch":
        try:
            there = {entry["relpath"]: entry["md5"] for entry in listing(Path(foundations.store), foundations.md5)}
            named = files | {name: key for name, key in denoisers.items() if name in there}
            return {key: _json(stored(Path(foundations.store), there[name], name)) for name, key in named.items()}
        except (StoreProblem, KeyError) as problem:
            raise PlanProblem(f"{foundations.store}: no configurations of the foundations there ({problem})") from None
    if foundations.source == "train":
        raise PlanProblem(
            f"{folder}: this experiment trains its foundations, and they do not exist yet; train them first"
        )
    llm = foundations.llm if foundations.source == "hub" else foundations.checkpoint
    sd = _architecture(foundations.sd, architectures)
    return {
        "llm": _architecture(llm, architectures)["config"],
        "clip": _architecture(foundations.clip, architectures)["config"],
        **{key: sd[key] for key in ("vae", *DENOISERS, "scheduler") if key in sd},
    }


def build(found: dict[str, dict[str, Any]], model: Model) -> DreamLLMForConditionalGeneration:
    """DreamLLM with these configurations on the meta device; the vocabulary includes the special tokens."""
    text = AutoConfig.for_model(**found["llm"])
    known = found["llm"].get("vocab_size", text.vocab_size)
    text.vocab_size = known + len(SPECIAL_TOKENS)
    vision = found["clip"].get("vision_config", found["clip"])
    config = DreamLLMConfig(
        text_config=text,
        vision_config=vision,
        vae_config=found["vae"],
        **{f"{key}_config": found[key] for key in DENOISERS if key in found},
        scheduler_config=found["scheduler"],
        num_dream_queries=model.num_dream_queries,
        visual_projector_type=model.visual_projector_type,
        connector_layers=model.connector_layers,
    )
    with torch.device("meta"):
        return DreamLLMForConditionalGeneration(config)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each direct submodule; tied parameters are counted once."""
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        found[part] = found.get(part, 0) + parameter.numel()
    return found


@torch.no_grad()
def measure(model: DreamLLMForConditionalGeneration) -> Size:
    """Sizes of a model, and FLOPs and activation bytes counted in forward passes on the meta device."""
    config, text = model.config, model.config.text_config
    side, latent, states = config.draw_size, config.denoiser_config["sample_size"], (1, config.num_dream_queries)
    query_states = torch.empty(*states, text.hidden_size, device="meta")
    denoiser_inputs = (
        torch.empty(1, config.denoiser_config["in_channels"], latent, latent, device="meta"),
        torch.zeros(1, dtype=torch.long, device="meta"),
        model.project(query_states),
    )
    picture = torch.empty(1, 3, side, side, device="meta")
    shown = torch.empty(1, 3, config.vision_config.image_size, config.vision_config.image_size, device="meta")
    denoiser_outputs = outputs(model.denoiser, lambda: model.denoise(*denoiser_inputs))
    embeddings = {id(weight): weight.numel() for weight in (
        model.get_input_embeddings().weight, model.get_output_embeddings().weight
    )}  # fmt: skip
    return Size(
        parameters=parameters_by_part(model),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=next(filter(None, (getattr(text, name, None) for name in INTERMEDIATE)), 4 * text.hidden_size),
        key_value_share=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        / text.num_attention_heads,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        embeddings=sum(embeddings.values()),
        clip=flops(lambda: model.vision_model(shown)),
        vae=flops(lambda: model.vae.encode(picture)),
        unet=flops(lambda: model.denoise(*denoiser_inputs)),
        unet_saved=sum(size for _, size in denoiser_outputs),
        unet_kept=kept_by_blocks(denoiser_outputs),
        vae_peak=VAE_TENSORS * max(size for _, size in outputs(model.vae, lambda: model.vae.encode(picture))),
        patches=config.num_patches,
        queries=config.num_dream_queries,
        **(connector_sizes(model, query_states) if config.connector_layers else {}),
    )


def connector_sizes(model: DreamLLMForConditionalGeneration, states: torch.Tensor) -> dict[str, float]:
    """FLOPs and bytes of activations of the connector, from query states (1, Q, D)."""
    saved = outputs(model.condition_projector, lambda: model.project(states))
    return {"connector": flops(lambda: model.project(states)), "connector_saved": float(sum(size for _, size in saved))}


@torch.no_grad()
def flops(forward: Callable[[], Any]) -> float:
    """FLOPs of a forward pass, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


@torch.no_grad()
def outputs(model: nn.Module, forward: Callable[[], Any]) -> list[tuple[str, int]]:
    """(name, bytes under bf16 autocast) of the output of every leaf module that a forward pass calls."""
    found: list[tuple[str, int]] = []
    hooks = []
    for name, module in model.named_modules():
        if not list(module.children()):

            def note(module: nn.Module, _, result: Any, name: str = name) -> None:
                if isinstance(result, torch.Tensor):
                    found.append((name, result.numel() * (FP32 if isinstance(module, NORMS) else BF16)))

            hooks.append(module.register_forward_hook(note))
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def kept_by_blocks(found: list[tuple[str, int]]) -> float:
    """Bytes of activations with gradient checkpointing.

    diffusers checkpoints each residual block and transformer of a UNet, and each block of a transformer: one output of
    each is kept, and while the largest is recomputed everything inside it.
    """
    inside: dict[str, list[int]] = {}
    for name, size in found:
        steps = name.split(".")
        place = next((n for n, step in enumerate(steps) if step in BLOCKS), None)
        block = ".".join(steps[: place + 2]) if place is not None else name
        inside.setdefault(block, []).append(size)
    return sum(sizes[-1] for sizes in inside.values()) + max(sum(sizes) for sizes in inside.values())


def _architecture(name: str, folder: Path) -> dict[str, Any]:
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "none"
        raise PlanProblem(
            f"{path}: no architecture file of {name} (there are: {known}); fetch the foundations "
            "first, or write the file from the model's config.json"
        )
    content = _json(path)
    return _architecture(content["same_as"], folder) if "same_as" in content else content


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8-sig"))

"""Import a checkpoint that the authors released; `dreamllm.verbs.import_official` lists the files it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPVisionModel, LlamaForCausalLM

from dreamllm import provenance
from dreamllm.atomic import new_folder
from dreamllm.config.experiment import RELEASED, Experiment, Model
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.weights import load_part, load_weights
from dreamllm.official import convert
from dreamllm.official.convert import OfficialProblem
from dreamllm.official.files import (
    TOKENIZER_FILES,
    digests,
    model_config,
    read_json,
    read_tensors,
    read_tokenizer,
)
from dreamllm.seeds import seed_of
from dreamllm.train import checkpoint

REPORT = "import.json"
CHECKPOINT_PARTS = ("visual_projector", "dream_queries", "condition_projector")  # not part of a foundation model
COPIED_FROM_SD = ("model_index.json", "text_encoder", "tokenizer", "feature_extractor", "scheduler")


def import_official(
    source: Path, clip_dir: Path, sd_dir: Path, foundations: Path, out: Path, experiment: Experiment | None = None
) -> str:
    """Write the official checkpoint in `source` to `foundations`/{llm,clip,sd} and `out`; returns a summary to print.

    clip_dir, sd_dir: folders of the CLIP and the Stable Diffusion that `source` was trained with. Their configurations,
    CLIP's text tower and Stable Diffusion's text encoder are taken from there, because `source` does not contain them.
    experiment: the experiment that will use the model, if any; its section model must agree with `source`
    Raises OfficialProblem, before anything is written, when files are missing or do not belong together.
    """
    options = (experiment.model if experiment else Model(boundary_tokens=True)).model_dump(mode="json")
    content = read_json(source / "config.json")
    read = convert.read_config(content, str(source / "config.json"))
    for name in ("num_dream_queries", "vision_feature_layer"):
        if experiment and options[name] != getattr(read, name):
            raise OfficialProblem(
                f"{source}: {name} is {getattr(read, name)}, but {options[name]} in the configuration; "
                f"set model.{name} to {getattr(read, name)} there"
            )
        options[name] = getattr(read, name)
    tokenizer = read_tokenizer(source, read.ids, read.llm.vocab_size)
    config = model_config(read, clip_dir, sd_dir)
    tensors, uses = convert.convert(read_tensors(source), convert.expected_shapes(config), read.llm)
    unused = sorted(
        path.name
        for path in source.iterdir()
        if path.suffix in (".bin", ".pt", ".safetensors") and path.name not in {entry.file for entry in uses}
    )
    with (
        new_folder(foundations / "llm") as llm,
        new_folder(foundations / "clip") as clip,
        new_folder(foundations / "sd") as sd,
    ):
        _write_language_model(llm, config, tensors, source)
        _write_clip(clip, config, tensors, clip_dir)
        _write_sd(sd, config, tensors, sd_dir)

    report: dict[str, Any] = {
        "summary": convert.summary(uses).splitlines(),
        "config": content,
        "files": digests(source),
        "files not read": unused,
        "tokens": len(tokenizer),
        "keys": convert.as_json(uses),
        "missing": [],  # `convert` raises for a missing tensor
    }
    metadata = {
        "stage": RELEASED,
        "model": options | {"seed": seed_of(experiment.seed if experiment else 0, "model")},
        "foundations": checkpoint.foundation_digests(foundations),
        "source": report["files"],
        "versions": provenance.versions(),
        **provenance.commit(),
    }
    trained = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in CHECKPOINT_PARTS}
    with new_folder(out) as folder:
        checkpoint.save_trained(folder, trained, metadata, "step,language_loss,diffusion_loss\n")
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    notes = [f"not read: {', '.join(unused)}"] if unused else []
    if differing := [entry.name for entry in uses if entry.use == "differs"]:
        notes.append(
            f"{len(differing)} tensors have other values in the language model's file; the plugins' files are used"
        )
    return "\n".join([*report["summary"], "nothing missing, nothing unexpected", *notes])


def _part(tensors: convert.Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of one part of the model, by their names within the part."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write_language_model(folder: Path, config: DreamLLMConfig, tensors: convert.Tensors, source: Path) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(config.text_config)
    model.load_state_dict(_part(tensors, "language_model."), assign=True)
    model.save_pretrained(folder, max_shard_size="5GB")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_clip(folder: Path, config: DreamLLMConfig, tensors: convert.Tensors, clip_dir: Path) -> None:
    """Write CLIP: the vision tower, and the text tower and both projections where `clip_dir` has weights."""
    if any(clip_dir.glob("*.safetensors")) or any(clip_dir.glob("*.bin")):
        clip = load_weights(AutoModel, clip_dir, dtype="auto")
    else:
        with torch.device("meta"):
            clip = CLIPVisionModel._from_config(config.vision_config)
    vision_model = clip.vision_model if isinstance(clip, CLIPModel) else clip
    vision_model.load_state_dict(_part(tensors, "vision_model."), assign=True)
    clip.save_pretrained(folder)
    load_part(AutoImageProcessor, clip_dir, backend="pil").save_pretrained(folder)


def _write_sd(folder: Path, config: DreamLLMConfig, tensors: convert.Tensors, sd_dir: Path) -> None:
    for name, part, settings in (
        ("vae", AutoencoderKL, config.vae_config),
        ("unet", UNet2DConditionModel, config.unet_config),
    ):
        with torch.device("meta"):
            model = part.from_config(settings)
        model.load_state_dict(_part(tensors, f"{name}."), assign=True)
        model.save_pretrained(folder / name)
    for name in COPIED_FROM_SD:
        if (sd_dir / name).is_dir():
            shutil.copytree(sd_dir / name, folder / name, ignore=shutil.ignore_patterns("*.fp16.*", "*.msgpack"))
        elif (sd_dir / name).is_file():
            shutil.copyfile(sd_dir / name, folder / name)

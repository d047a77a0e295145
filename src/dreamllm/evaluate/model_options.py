"""Flags that `draw`, `ask`, `chat` and `generate` share: which model to load, and how it samples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dreamllm.data.images import decode

if TYPE_CHECKING:
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.generate import TextSampling
    from dreamllm.model.processor import DreamLLMProcessor
    from dreamllm.model.sampling import PictureSampling

CHECKPOINT = Path("results/checkpoints/embedded/sft")
FOUNDATIONS = Path("data/foundations")
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")  # of a repository on the Hub


class ModelProblem(ValueError):
    """A model that cannot be loaded, or a file of the user that cannot be read: says which and why."""


# ---- the model -----------------------------------------------------------------------------------------------------


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flags that say which model to load."""
    model = (
        "folder of a run's checkpoint, folder of `dreamllm export`, or name of an exported model on the Hugging Face "
        f"Hub (default: {CHECKPOINT})"
    )
    parser.add_argument("--model", metavar="MODEL", help=model)
    parser.add_argument(
        "--foundations", type=Path, default=FOUNDATIONS, help="of a checkpoint: folder with llm/, clip/ and sd/"
    )
    checkpoint = "instead of --model: folder of a checkpoint; once for each, in loading order"
    parser.add_argument("--checkpoints", type=Path, action="append", metavar="FOLDER", help=checkpoint)


def load(arguments: argparse.Namespace) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """The model of the flags of `add_model`, on the GPU if there is one, and its processor.

    A checkpoint is loaded after those that lie beside it and that it was trained from, as far as it needs them.
    Raises ModelProblem, FoundationProblem or CheckpointProblem for a model that cannot be loaded.
    """
    from dreamllm.model.precision import DTYPES, default_device, for_inference, resolve
    from dreamllm.train.checkpoint import METADATA, load_for_inference, read_contents

    dtype = DTYPES[resolve("auto")]
    if arguments.model and arguments.checkpoints:
        raise ModelProblem("--model and --checkpoints were given: give one of them")
    checkpoints = arguments.checkpoints or [CHECKPOINT]
    if arguments.model:
        folder = Path(arguments.model)
        if not (folder / METADATA).is_file():
            model, processor = load_exported(folder if folder.exists() else download(arguments.model))
            for_inference(model, default_device(), dtype)
            return model, processor
        contents = read_contents(folder)
        needed = [one.folder for one in contents.ancestors if one.folder and one.parts - contents.whole]
        checkpoints = [*needed, folder]
    return load_for_inference(arguments.foundations, checkpoints, dtype)


def name(arguments: argparse.Namespace) -> str:
    """What the flags of `add_model` say, for people."""
    return arguments.model or ", ".join(map(str, arguments.checkpoints or [CHECKPOINT]))


def knows_emoji_world(arguments: argparse.Namespace) -> bool:
    """Whether the model of the flags of `add_model` is a checkpoint on foundation models of the emoji world, which have
    a card."""
    from dreamllm.train.checkpoint import METADATA

    is_checkpoint = not arguments.model or (Path(arguments.model) / METADATA).is_file()
    return is_checkpoint and (arguments.foundations / "card.json").is_file()


def load_exported(folder: Path) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """Model and processor, in fp32, of a folder of `dreamllm export` or of `DreamLLMPipeline.save_pretrained`.

    Raises ModelProblem for a folder of another kind, FoundationProblem for one that lacks files or has damaged ones.
    """
    import torch

    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor
    from dreamllm.model.weights import load_part, load_weights

    of_pipeline = (folder / "model").is_dir() and (folder / "processor").is_dir()
    model_folder, processor_folder = (folder / "model", folder / "processor") if of_pipeline else (folder, folder)
    path = model_folder / "config.json"
    if not path.is_file():
        raise ModelProblem(f"{folder}: is no model: it has no checkpoint.json (of a run) and no config.json (exported)")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelProblem(f"{path}: malformed JSON ({error})") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "dreamllm":
        raise ModelProblem(f"{path}: is of a model of type {str(kind)[:80]!r}, not of DreamLLM")
    if "vae_config" not in config:
        raise ModelProblem(f"{path}: is in the format of the authors' code; convert it with `dreamllm import-official`")
    model = load_weights(DreamLLMForConditionalGeneration, model_folder, dtype=torch.float32)
    return model.eval(), load_part(DreamLLMProcessor, processor_folder)


def download(name: str) -> Path:
    """The folder of a model on the Hugging Face Hub in huggingface_hub's cache, downloaded where it is not there.

    Raises ModelProblem for a name that is neither a folder nor one on the Hub, and where the Hub cannot be reached.
    """
    import os

    import httpx2  # huggingface_hub's HTTP client, whose errors it lets through
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        endpoint = os.environ.get("HF_ENDPOINT") or None
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES), endpoint=endpoint))
    except (HfHubHTTPError, OSError, ValueError, httpx2.TransportError) as error:
        why = " ".join(str(error).split())[:300]
        raise ModelProblem(f"--model {name}: no such folder, nor a model that the Hub gives ({why})") from None


# ---- what the user gives -------------------------------------------------------------------------------------------


def read_image(path: Path) -> Image.Image:
    """An image file in RGB, upright. Raises ModelProblem."""
    try:
        return decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelProblem(f"{path}: {error}") from error


def read_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Image files in RGB, upright. Raises ModelProblem."""
    return [read_image(path) for path in paths]


def add_text_sampling(parser: argparse.ArgumentParser, max_new_tokens: int = 256) -> None:
    """The flags that say how text is sampled, with the names of transformers."""
    parser.add_argument("--temperature", type=float, default=0.0, help="0 always takes the most probable token")
    parser.add_argument("--top-p", type=float, default=1.0, help="share of the probability to sample from; 1 is all")
    parser.add_argument("--top-k", type=int, default=0, help="number of tokens to sample from; 0 is all")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: less repetition")
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens, help="of text")


def text_sampling(arguments: argparse.Namespace, max_pictures: int) -> TextSampling:
    """The settings of the flags. Raises SamplingProblem for values out of range."""
    from dreamllm.model.generate import TextSampling, check_text_sampling

    sampling = TextSampling(
        arguments.temperature,
        arguments.top_p,
        arguments.max_new_tokens,
        max_pictures,
        arguments.top_k,
        arguments.repetition_penalty,
    )
    check_text_sampling(sampling)
    return sampling


def add_picture_sampling(parser: argparse.ArgumentParser) -> None:
    """The flags that say how images are generated, with the meanings of diffusers."""
    parser.add_argument("--scheduler", default="DPMSolverMultistepScheduler", help="a scheduler class of diffusers")
    parser.add_argument("--steps", type=int, default=25, help="of the scheduler, per image")
    parser.add_argument("--guidance", type=float, default=3.0, help="classifier-free guidance; 1 is none")
    rescale = "share of the guided prediction that is rescaled (arXiv 2305.08891)"
    parser.add_argument("--guidance-rescale", type=float, default=0.0, help=rescale)
    parser.add_argument("--eta", type=float, default=0.0, help="noise of DDIMScheduler's steps, 0 to 1")
    parser.add_argument("--negative-prompt", default="", help="what guidance leads away from")
    parser.add_argument("--height", type=int, help="of the images, in pixels (default: as the UNet was trained)")
    parser.add_argument("--width", type=int, help="of the images, in pixels (default: as the UNet was trained)")


def picture_sampling(arguments: argparse.Namespace) -> PictureSampling:
    """The settings of the flags. Raises SamplingProblem for values out of range."""
    from dreamllm.model.sampling import PictureSampling, check_sampling

    sampling = PictureSampling(**{one.name: getattr(arguments, one.name) for one in fields(PictureSampling)})
    check_sampling(sampling)
    return sampling

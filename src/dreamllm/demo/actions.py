"""What the demo page computes, as plain functions of a model, prompts and settings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from transformers import TextStreamer

from dreamllm.emoji import grammar, words
from dreamllm.emoji.scenes import Scene, render
from dreamllm.evaluate.tasks.attention import record_attention
from dreamllm.model import generate
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.finite import check_finite
from dreamllm.model.generate import Continuation, TextSampling, check_text_sampling
from dreamllm.model.pipeline import DreamLLMPipeline, prompt_documents
from dreamllm.model.processor import DreamLLMProcessor
from dreamllm.model.sampling import PictureSampling, check_fit, check_sampling

Model = DreamLLMForConditionalGeneration


class SettingProblem(ValueError):
    """A setting of the page that cannot be used: says which and why."""


# ---- settings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A number that the user sets: its name on the page, its bounds, and the step of its arrows."""

    label: str
    least: float
    most: float
    step: float = 1


FIELDS = {
    "seed": Field("Seed", 0, 2**53),  # the largest whole numbers of JavaScript
    "images": Field("Images", 1, 16),
    "guidance": Field("Guidance", 1, 30, 0.5),
    "steps": Field("Steps", 1, 1000),
    "temperature": Field("Temperature", 0, 5, 0.1),
    "max_new_tokens": Field("Most tokens", 1, 100_000),
    "max_pictures": Field("Most images", 0, 100),
}


@dataclass
class Settings:
    """The numbers of the page; None is an empty field. Images of a prompt have the seeds seed, seed + 1, ..."""

    seed: float | None = 0
    images: float | None = 4
    guidance: float | None = PictureSampling.guidance
    steps: float | None = PictureSampling.steps
    temperature: float | None = TextSampling.temperature
    max_new_tokens: float | None = TextSampling.max_new_tokens
    max_pictures: float | None = 4
    negative_prompt: str = ""

    def number(self, name: str) -> float:
        """A number of the page, within its bounds. Raises SettingProblem."""
        field, value = FIELDS[name], getattr(self, name)
        if value is None or not field.least <= value <= field.most:
            found = "is empty" if value is None else f"is {value:g}"
            raise SettingProblem(f"{field.label} {found}: expected a number from {field.least} to {field.most}")
        return value

    def whole(self, name: str) -> int:
        """A number of the page without its fraction. Raises SettingProblem."""
        return int(self.number(name))

    def drawing(self) -> PictureSampling:
        """How images are generated. Raises SettingProblem and SamplingProblem."""
        sampling = PictureSampling(
            steps=self.whole("steps"), guidance=self.number("guidance"), negative_prompt=self.negative_prompt.strip()
        )
        check_sampling(sampling)
        return sampling

    def writing(self) -> TextSampling:
        """How text is generated. Raises SettingProblem and SamplingProblem."""
        sampling = TextSampling(
            temperature=self.number("temperature"),
            max_new_tokens=self.whole("max_new_tokens"),
            max_pictures=self.whole("max_pictures"),
        )
        check_text_sampling(sampling)
        return sampling


def prompt_of(text: str | None, images: Sequence[Image.Image]) -> str:
    """The text of a prompt field. Raises SettingProblem where there is neither text nor an image."""
    if not (text := (text or "").strip()) and not images:
        raise SettingProblem("Write a prompt first")
    return text


# ---- images and stories --------------------------------------------------------------------------------------------


def draw(
    pipe: DreamLLMPipeline,
    prompt: str,
    images: Sequence[Image.Image],
    settings: Settings,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[Image.Image]:
    """Images for one prompt, with the seeds seed, seed + 1, ...: those of `dreamllm draw --seed`.

    images: that the prompt reads.  after_step: called with the number of a step that has been made
    """
    sampling = settings.drawing()

    def count(pipe: DreamLLMPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        after_step(step + 1)
        return tensors

    seeds = range(settings.whole("seed"), settings.whole("seed") + settings.whole("images"))
    made: Any = pipe(
        prompt_of(prompt, images),
        list(images) or None,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        negative_prompt=sampling.negative_prompt or None,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        callback_on_step_end=count,
    )
    return made.images


class LiveText(TextStreamer):
    """Collects the text of a continuation while it is written, whole words at a time, in `text`."""

    def __init__(self, processor: DreamLLMProcessor) -> None:
        super().__init__(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by TextStreamer with the next words."""
        self.text += text


def story(
    model: Model,
    processor: DreamLLMProcessor,
    beginning: str,
    images: Sequence[Image.Image],
    settings: Settings,
    live: LiveText | None = None,
) -> Continuation:
    """A beginning continued with text and images, where the model chooses: as `dreamllm generate --as story`."""
    documents = prompt_documents([prompt_of(beginning, images)], [list(images)])
    seeds = [settings.whole("seed")]
    return generate.interleave(
        model, processor, documents, seeds, settings.writing(), settings.drawing(), streamer=live
    )[0]


# ---- attention -----------------------------------------------------------------------------------------------------


def attend(
    model: Model, processor: DreamLLMProcessor, prompt: str, images: Sequence[Image.Image], settings: Settings
) -> tuple[Image.Image, np.ndarray]:
    """An image, and maps (Q, h, w) of how the denoiser's attention to the dream queries was divided meanwhile.

    Averages over heads, layers and steps, as in the benchmark `attention` and Figure 6 of the paper; the sum over
    queries is 1 everywhere.
    """
    sampling = settings.drawing()
    _, size = check_fit(model, sampling)
    documents = prompt_documents([prompt_of(prompt, images)], [list(images)])
    with record_attention(model, 1, size) as calls:
        (image,) = generate.draw(model, processor, documents, [settings.whole("seed")], sampling)
    maps = torch.stack(calls).mean(dim=0)
    check_finite(maps, [prompt], "attention maps")
    return image, maps[0].numpy()


def heat_maps(image: Image.Image, maps: np.ndarray, side: int) -> list[Image.Image]:
    """Each of the maps (Q, h, w) in colour over the image in grey, `side` pixels wide.

    All have one scale, with the largest value of all maps as its end; as in Figure 6 of the report it is a square root,
    so that weak maps are seen.
    """
    size = (side, round(side * image.height / image.width))
    grey = np.asarray(image.convert("L").convert("RGB").resize(size), dtype=np.float32)
    relative = np.sqrt(maps / max(float(maps.max()), 1e-12))  # (Q, h, w)
    colour = matplotlib.colormaps["magma"]
    made = []
    for one in relative:
        heat = Image.fromarray((colour(one)[..., :3] * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
        made.append(Image.fromarray((0.25 * grey + 0.75 * np.asarray(heat)).astype(np.uint8)))
    return made


# ---- what to try first ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Prompts and images that a model knows, and a listing of its words."""

    drawings: tuple[str, ...] = ("a red cat on grass.",)
    stories: tuple[str, ...] = ("a red cat on grass.",)
    questions: tuple[str, ...] = ("what is in the picture?",)
    images: tuple[Image.Image, ...] = ()
    words: str = ""


def emoji_examples() -> Examples:
    """Examples for models of the emoji world, which know no other words and objects."""
    scenes = (
        Scene("grass", "single", (("cat", "red"),), 1),
        Scene("snow", "group", (("star", "yellow"),), 3),
        Scene("sand", "row", (("fish", "orange"), ("tree", "green")), 2),
    )
    captions = tuple(grammar.caption(scene) for scene in scenes)
    images = tuple(render(scene, 96, random.Random(0)) for scene in scenes)
    questions = ("draw a blue house on sand.", "what is in the picture?")
    return Examples(captions, captions, questions, images, words.listing())

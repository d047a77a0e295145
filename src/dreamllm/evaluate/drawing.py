"""Pictures for a benchmark, one per item: by DreamLLM, and by Stable Diffusion with its own text encoder.

Both draw an item with the same scheduler, steps, guidance and initial noise, and hand out pictures as they are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamllm.config.evaluation import Drawing as DrawingSettings
from dreamllm.config.evaluation import TextSampling
from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.data.layout import LayoutProblem
from dreamllm.evaluate import prompts, selection
from dreamllm.evaluate.job import PredictionJob, batches

if TYPE_CHECKING:
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor
    from dreamllm.model.sampling import PictureSampling


@dataclass(frozen=True)
class Wanted:
    """A picture to be drawn. prompt: what it is drawn from, which is the item's unless it was rewritten."""

    item: Any
    prompt: str
    seed: int
    name: str

    def record(self) -> dict[str, Any]:
        """The picture's line in the prediction file."""
        rewritten = {"rewritten": self.prompt} if self.prompt != self.item.prompt else {}
        return {"id": self.item.id, "prompt": self.item.prompt, "seed": self.seed, "image": self.name} | rewritten


def plan(items: Sequence[Any], seed: int, sample: int, texts: Sequence[str] | None = None) -> list[Wanted]:
    """One picture per item, with the seed of this sample. texts: what to draw from in place of the items' prompts."""
    texts = [item.prompt for item in items] if texts is None else texts
    return [
        Wanted(item, text, selection.seed(seed, sample, k), f"{k:06d}.png")
        for k, (item, text) in enumerate(zip(items, texts, strict=True))
    ]


# ---- DreamLLM ------------------------------------------------------------------------------------------------------


def draw(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    wanted: Sequence[Wanted],
    settings: DrawingSettings,
    document: Callable[[Wanted], Document] = lambda one: prompts.opening(one.item.id, one.prompt),
) -> Iterator[tuple[Wanted, Image.Image]]:
    """Draw each prompt by itself. document: what a picture is drawn from, the prompt alone unless told otherwise."""
    from dreamllm.model import generate

    for batch in batches(wanted, settings.batch_size, "pictures"):
        documents = [document(one) for one in batch]
        pictures = generate.draw(model, processor, documents, [one.seed for one in batch], how(settings))
        yield from zip(batch, pictures, strict=True)


def illustrate(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    wanted: Sequence[Wanted],
    settings: DrawingSettings,
    drawn: Mapping[str, Image.Image],
) -> Iterator[tuple[Wanted, Image.Image]]:
    """Draw the pictures of whole documents, each from all text before it and the model's own pictures before it.

    The first pictures of all documents are drawn, then the second ones, and so on. drawn: the pictures that are there,
    by name; the caller adds each that it is given, and those that are there are not drawn again.
    Of a document longer than the context the beginning is left out, a text and its picture at a time.
    """
    from dreamllm.model import generate

    told: dict[str, list[Wanted]] = {}  # by document, in its order
    for one in wanted:
        told.setdefault(one.item.document, []).append(one)

    def document(one: Wanted) -> Document:
        parts: list[Part] = []
        for earlier in told[one.item.document][: one.item.position]:
            parts += [Text(earlier.item.text), Picture(drawn[earlier.name])]
        return _fitting(processor, one.item.id, [*parts, Text(one.item.text)])

    for position in range(max(map(len, told.values()), default=0)):
        due = [one for one in wanted if one.item.position == position and one.name not in drawn]
        for batch in batches(due, settings.batch_size, "pictures"):
            documents = [document(one) for one in batch]
            pictures = generate.draw(model, processor, documents, [one.seed for one in batch], how(settings))
            yield from zip(batch, pictures, strict=True)


def _fitting(processor: DreamLLMProcessor, id_: str, parts: Sequence[Part]) -> Document:
    """The end of a document, as much of it as fits the context with a picture to be drawn behind it."""
    parts = list(parts)
    while True:
        document = Document(id_, "interleaved" if len(parts) > 1 else "text", tuple(parts))
        try:
            processor.lay_out_prompt(document, "joint", draw=True)
        except LayoutProblem:
            if len(parts) == 1:
                raise
            del parts[:2]  # a text and its picture
        else:
            return document


def rewrite(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    items: Sequence[Any],
    wording: prompts.PromptSet,
    sampling: TextSampling,
) -> list[str]:
    """Each item's prompt in the language model's own words, for Stable Diffusion to draw (paper Table 10).

    How the paper asked for them is not known.
    """
    from dreamllm.model import generate

    texts: list[str] = []
    for start in range(0, len(items), sampling.batch_size):
        documents = [
            prompts.rewriting(item.id, item.prompt, wording) for item in items[start : start + sampling.batch_size]
        ]
        texts += generate.write(
            model, processor, documents, max_new_tokens=sampling.max_new_tokens, num_beams=sampling.num_beams
        )
    return texts


# ---- Stable Diffusion ----------------------------------------------------------------------------------------------


def sd_of(job: PredictionJob) -> tuple[Path, Path | None]:
    """The folders of the foundation Stable Diffusion and, for `sd_finetuned`, of the UNet in place of its own.

    Raises CheckpointProblem for a UNet that was fine-tuned from another Stable Diffusion.
    """
    from dreamllm.train.checkpoint import check_finetuned_sd

    if job.checkpoints:
        check_finetuned_sd(job.checkpoints[0], job.foundations / "sd")
    return job.foundations / "sd", job.checkpoints[0] / "unet" if job.checkpoints else None


def draw_with_sd(
    folder: Path, unet: Path | None, wanted: Sequence[Wanted], settings: DrawingSettings
) -> Iterator[tuple[Wanted, Image.Image]]:
    """The same with Stable Diffusion and its own text encoder, from the same initial noise.

    unet: folder of the UNet to put in place of the foundation's
    Raises NonFiniteValues, with the item's id, where the UNet or the VAE give NaN or infinity.
    """
    import torch
    from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from dreamllm.model import precision
    from dreamllm.model.finite import check_finite
    from dreamllm.model.sampling import make_scheduler

    parts = {"unet": UNet2DConditionModel.from_pretrained(unet, dtype=torch.float32)} if unet else {}
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None, **parts)
    device = precision.default_device()
    pipeline = pipeline.to(device)
    precision.cast(pipeline.text_encoder.parameters(), precision.compute_dtype(device))
    precision.cast_unet(pipeline.unet, precision.compute_dtype(device))
    pipeline.set_progress_bar_config(disable=True)
    schedule = DDPMScheduler.load_config(folder, subfolder="scheduler")  # the pipeline alters its own copy of it
    pipeline.scheduler = make_scheduler(settings.scheduler, schedule)
    side = pipeline.unet.config.sample_size
    for batch in batches(wanted, settings.batch_size, "pictures"):
        generators = [torch.Generator().manual_seed(one.seed) for one in batch]
        shape = (pipeline.unet.config.in_channels, side, side)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])  # (B, C, h, w)
        latents = pipeline(
            prompt=[one.prompt for one in batch],
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=generators,
            latents=noise.to(pipeline.device),
            output_type="latent",
        ).images  # (B, C, h, w)
        names = [one.item.id for one in batch]
        check_finite(latents, names, "latents after the text encoder and the UNet")
        with torch.no_grad():
            pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample  # (B, 3, H, W)
        check_finite(pixels, names, "pixels of the VAE")
        pictures = pipeline.image_processor.postprocess(pixels)  # as the pipeline does; NaN would become black
        yield from zip(batch, pictures, strict=True)


def cut_off(folder: Path, prompts: Sequence[str]) -> dict[str, int]:
    """How many prompts Stable Diffusion's text encoder does not see to their end: it reads `longest` tokens.

    DreamLLM reads a prompt whole, or there is a LayoutProblem.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    longest = tokenizer.model_max_length  # as the pipeline has it
    lengths = [len(ids) for ids in tokenizer(list(prompts), verbose=False).input_ids]
    return {"longest": longest, "prompts": len(lengths), "cut": sum(length > longest for length in lengths)}


def how(settings: DrawingSettings) -> PictureSampling:
    """The settings as `model.sampling` wants them."""
    from dreamllm.model.sampling import PictureSampling

    return PictureSampling(settings.scheduler, settings.steps, settings.guidance)

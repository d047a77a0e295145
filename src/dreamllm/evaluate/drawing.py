"""Generate an image for each item of a benchmark: by DreamLLM, or by Stable Diffusion with its own text encoder.

Both use the same scheduler, steps, guidance and initial noise for an item, and yield images as they are generated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamllm.config.evaluation import Drawing as DrawingSettings
from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.data.layout import LayoutProblem
from dreamllm.evaluate import prompts, selection
from dreamllm.evaluate.job import PredictionJob, batches
from dreamllm.evaluate.parallel import ALONE, Processes

if TYPE_CHECKING:
    import torch

    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor
    from dreamllm.model.sampling import PictureSampling


@dataclass(frozen=True)
class DrawRequest:
    """An image to generate. prompt: the item's, or its rewriting; name: of the file."""

    item: Any
    prompt: str
    seed: int
    name: str

    def record(self) -> dict[str, Any]:
        """The image's record in the prediction file."""
        rewritten = {"rewritten": self.prompt} if self.prompt != self.item.prompt else {}
        return {"id": self.item.id, "prompt": self.item.prompt, "seed": self.seed, "image": self.name} | rewritten


def plan(items: Sequence[Any], seed: int, sample: int, texts: Sequence[str] | None = None) -> list[DrawRequest]:
    """A request for each item, with the seed of this sample. texts: prompts in place of the items' own."""
    texts = [item.prompt for item in items] if texts is None else texts
    return [
        DrawRequest(item, text, selection.seed(seed, sample, k), f"{k:06d}.png")
        for k, (item, text) in enumerate(zip(items, texts, strict=True))
    ]


def missing(
    requests: Sequence[DrawRequest], drawn: Container[str], size: int, processes: Processes
) -> list[DrawRequest]:
    """The requests of this process's batches (of `size`) of which an image is missing; drawn: the names of the others.

    Whole batches, so that what was interrupted is computed as if it had not been.
    """
    mine = processes.share(requests, size)
    return [one for _, batch in mine if not all(one.name in drawn for one in batch) for one in batch]


# ---- DreamLLM ------------------------------------------------------------------------------------------------------


def draw(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    requests: Sequence[DrawRequest],
    settings: DrawingSettings,
    document: Callable[[DrawRequest], Document] = lambda request: prompts.plain_text(request.item.id, request.prompt),
) -> Iterator[tuple[DrawRequest, Image.Image]]:
    """Generate each image by itself. document: makes the prompt of a request; by default its text alone."""
    from dreamllm.model import generate

    for batch in batches(requests, settings.batch_size, "pictures"):
        documents = [document(request) for request in batch]
        pictures = generate.draw(
            model, processor, documents, [request.seed for request in batch], picture_sampling(settings)
        )
        yield from zip(batch, pictures, strict=True)


def illustrate(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    requests: Sequence[DrawRequest],
    settings: DrawingSettings,
    drawn: Mapping[str, Image.Image],
    processes: Processes = ALONE,
) -> Iterator[tuple[DrawRequest, Image.Image]]:
    """Generate the images of whole documents, each from all text before it and the model's own images before it.

    Generates the first image of every document, then the second, and so on, the images of each position divided among
    the processes. drawn: images that exist already, by name, of all processes; their batches are not generated again,
    and the caller must add each image that is yielded.
    A document longer than the context loses its beginning, a text and its image at a time.
    """
    from dreamllm.model import generate

    by_document: dict[str, list[DrawRequest]] = {}
    for request in requests:
        by_document.setdefault(request.item.document, []).append(request)

    def document(request: DrawRequest) -> Document:
        parts: list[Part] = []
        for earlier in by_document[request.item.document][: request.item.position]:
            parts += [Text(earlier.item.text), Picture(drawn[earlier.name])]
        return _truncate_to_context(processor, request.item.id, [*parts, Text(request.item.text)])

    for position in range(max(map(len, by_document.values()), default=0)):
        of_position = [request for request in requests if request.item.position == position]
        pending = missing(of_position, drawn, settings.batch_size, processes)
        for batch in batches(pending, settings.batch_size, "pictures"):
            documents = [document(request) for request in batch]
            pictures = generate.draw(
                model, processor, documents, [request.seed for request in batch], picture_sampling(settings)
            )
            yield from zip(batch, pictures, strict=True)
        processes.wait()


def _truncate_to_context(processor: DreamLLMProcessor, id_: str, parts: Sequence[Part]) -> Document:
    """The end of a document that fits the context together with an image to be generated after it."""
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
    job: PredictionJob,
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    items: Sequence[Any],
) -> list[str]:
    """Let the language model rewrite each item's prompt, for Stable Diffusion (paper Table 10).

    The paper does not say with which instruction.
    """
    from dreamllm.model import generate

    sampling = job.settings.text

    def rewrite_batch(batch: Sequence[Any]) -> list[dict[str, Any]]:
        documents = [prompts.rewrite_request(item.id, item.prompt, job.prompts) for item in batch]
        most, beams = sampling.max_new_tokens, sampling.num_beams
        texts = generate.write(model, processor, documents, max_new_tokens=most, num_beams=beams)
        return [{"text": text} for text in texts]

    return [record["text"] for record in job.in_batches("rewritten", items, sampling.batch_size, rewrite_batch)]


# ---- Stable Diffusion ----------------------------------------------------------------------------------------------


def sd_folders(job: PredictionJob) -> tuple[Path, Path | None]:
    """Folders of the foundation Stable Diffusion and, for `sd_finetuned`, of the UNet that replaces its own.

    Raises CheckpointProblem for a UNet that was fine-tuned from another Stable Diffusion.
    """
    from dreamllm.train.checkpoint import check_finetuned_sd

    if job.model != "sd_finetuned":
        return job.foundations / "sd", None
    check_finetuned_sd(job.checkpoints[0], job.foundations / "sd")
    return job.foundations / "sd", job.checkpoints[0] / "unet"


def draw_with_sd(
    folder: Path,
    unet: Path | None,
    dtype: torch.dtype,
    requests: Sequence[DrawRequest],
    settings: DrawingSettings,
    *,
    compiled: bool = False,
) -> Iterator[tuple[DrawRequest, Image.Image]]:
    """Generate images with Stable Diffusion and its own text encoder, from the same initial noise as `draw`.

    unet: folder of a UNet that replaces the foundation's.  dtype: what text encoder and UNet compute in
    compiled: compile the UNet's blocks with torch.compile
    Raises NonFiniteValues, with the item's id, where the UNet or the VAE give NaN or infinity, SamplingProblem for
    settings that do not fit the model.
    """
    import torch
    from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from dreamllm.model import precision
    from dreamllm.model.build import check_is_stable_diffusion
    from dreamllm.model.finite import check_finite
    from dreamllm.model.sampling import initial_noise, latent_size, scheduler_with_steps
    from dreamllm.model.weights import load_weights

    check_is_stable_diffusion(folder)
    parts = {"unet": load_weights(UNet2DConditionModel, unet, dtype=torch.float32)} if unet else {}
    pipeline = load_weights(StableDiffusionPipeline, folder, dtype=torch.float32, safety_checker=None, **parts)
    pipeline = pipeline.to(precision.default_device())
    precision.cast(pipeline.text_encoder.parameters(), dtype)
    precision.cast_unet(pipeline.unet, dtype)
    if compiled:
        pipeline.unet.compile_repeated_blocks()
    pipeline.set_progress_bar_config(disable=True)
    schedule = DDPMScheduler.load_config(folder, subfolder="scheduler")  # the pipeline alters its own copy of it
    sampling, scale = picture_sampling(settings), pipeline.vae_scale_factor
    pipeline.scheduler = scheduler_with_steps(sampling, schedule)
    height, width = latent_size(sampling, pipeline.unet.config.sample_size, scale, math.lcm(8, scale))
    for batch in batches(requests, settings.batch_size, "pictures"):
        seeds = [request.seed for request in batch]
        noise, generators = initial_noise(seeds, pipeline.unet.config.in_channels, height, width)
        latents = pipeline(
            prompt=[request.prompt for request in batch],
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            guidance_rescale=settings.guidance_rescale,
            eta=settings.eta,
            negative_prompt=[settings.negative_prompt] * len(batch) if settings.guidance > 1 else None,
            height=height * scale,
            width=width * scale,
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


def count_truncated(folder: Path, prompts: Sequence[str]) -> dict[str, int]:
    """Count the prompts that Stable Diffusion's text encoder truncates: it reads `longest` tokens.

    DreamLLM truncates none: a prompt longer than its context is a LayoutProblem.
    """
    from transformers import AutoTokenizer

    from dreamllm.model.weights import load_part

    tokenizer = load_part(AutoTokenizer, folder / "tokenizer")
    longest = tokenizer.model_max_length  # as the pipeline has it
    lengths = [len(ids) for ids in tokenizer(list(prompts), verbose=False).input_ids]
    return {"longest": longest, "prompts": len(lengths), "cut": sum(length > longest for length in lengths)}


def picture_sampling(settings: DrawingSettings) -> PictureSampling:
    """The settings in the form of `model.sampling`."""
    from dreamllm.model.sampling import PictureSampling

    return PictureSampling(**settings.model_dump(exclude={"batch_size"}))

"""DreamLLM as a pipeline of diffusers: one image or more for each prompt, with the arguments of Stable Diffusion's.

    pipe = DreamLLMPipeline.from_pretrained("FOLDER").to("cuda")   # FOLDER: of `dreamllm export`, or a name on the Hub
    image = pipe("a red cat", generator=torch.Generator().manual_seed(0)).images[0]

Prompts are read by the language model, not by a text encoder: they may hold images, and be as long as the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import CpuOffload, ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from dreamllm.data.document import Document, Text
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.finite import check_finite
from dreamllm.model.generate import query_states
from dreamllm.model.processor import DreamLLMProcessor, PromptProblem, parts_of
from dreamllm.model.sampling import (
    PictureSampling,
    SamplingProblem,
    check_sampling,
    decode_latents,
    latent_size_of,
    make_scheduler,
    sample_latents,
    set_steps,
    to_pictures,
)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
DEFAULTS = PictureSampling()

Images = Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]]


class DreamLLMPipeline(DiffusionPipeline):
    """Generates images with DreamLLM.

    scheduler: any of diffusers' for the decoder; to change it: `pipe.scheduler =
    DDIMScheduler.from_config(pipe.scheduler.config)`. `from_model` takes the default one.
    """

    model_cpu_offload_seq = "model"  # see enable_model_cpu_offload
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self, model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor, scheduler: SchedulerMixin
    ):
        super().__init__()
        self.register_modules(model=model, processor=processor, scheduler=scheduler)

    @classmethod
    def from_model(cls, model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor) -> DreamLLMPipeline:
        """The pipeline of a loaded model, with the scheduler that all commands use by default."""
        return cls(model, processor, make_scheduler(DEFAULTS.scheduler, model.config.scheduler_config))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        images: Images | None = None,
        num_inference_steps: int = DEFAULTS.steps,
        guidance_scale: float = DEFAULTS.guidance,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        guidance_rescale: float = 0.0,
        output_type: str = "pil",
        callback_on_step_end: Callable[[DreamLLMPipeline, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        eta: float = 0.0,
        latents: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate `num_images_per_prompt` images for each of B prompts; the images of a prompt are adjacent.

        prompt: a string or several.  images: that the prompts read: an image, a list for one prompt, or a list of
        lists, one for each prompt; an `<image>` in a prompt stands for the next of its images, and without one they
        stand before its words.  negative_prompt: one for all or one for each.  generator: as in diffusers; with one for
        each image, an image does not depend on the others.  latents (N, C, h, w): the noise to start from, in place of
        random noise.  output_type: "pil" for PIL images, "np" (N, H, W, 3) or "pt" (N, 3, H, W) in [0, 1], or "latent"
        (N, C, h, w).  callback_on_step_end: called as in diffusers, with the latents.  All others: as in diffusers.

        Raises SamplingProblem and PromptProblem for arguments that are wrong or do not fit, LayoutProblem for a prompt
        that is longer than the context, NonFiniteValues where a part of the model gives NaN.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        documents = prompt_documents(prompts, images)
        negatives = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt or [])
        sampling = PictureSampling(
            type(self.scheduler).__name__,
            num_inference_steps,
            max(1.0, guidance_scale),  # as in diffusers, 1 and less is no guidance
            guidance_rescale,
            eta,
            next(filter(None, negatives), ""),
            height,
            width,
        )
        check_sampling(sampling)
        if output_type not in OUTPUT_TYPES:
            raise SamplingProblem(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}")
        if num_images_per_prompt < 1:
            raise SamplingProblem(f"num_images_per_prompt is {num_images_per_prompt}, at least 1 is needed")
        if len(negatives) not in (0, 1, len(prompts)):
            raise PromptProblem(
                f"{len(negatives)} negative prompts for {len(prompts)} prompts: pass one, or one for each"
            )
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise SamplingProblem(f"callback_on_step_end_tensor_inputs: {', '.join(sorted(unknown))} is not latents")
        model, device = self.model, self._execution_device
        channels, sides = model.config.denoiser_config["in_channels"], latent_size_of(model, sampling)
        shape = (len(prompts) * num_images_per_prompt, channels, *sides)
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise SamplingProblem(f"{len(generator)} generators for {shape[0]} images: pass one, or one for each")
        if latents is not None and tuple(latents.shape) != shape:
            raise SamplingProblem(f"latents have the shape {tuple(latents.shape)}, expected {shape}")
        set_steps(self.scheduler, num_inference_steps, eta, device)

        states = query_states(model, self.processor, documents)  # (B, Q, D)
        if sampling.negative_prompt:
            null_documents = [
                Document(f"negative prompt {n}", "text", (Text(text),)) for n, text in enumerate(negatives)
            ]
            null_states = query_states(model, self.processor, null_documents)  # (1 or B, Q, D)
        else:
            null_states = model.null_states()
        states = states.repeat_interleave(num_images_per_prompt, dim=0)
        if len(null_states) > 1:
            null_states = null_states.repeat_interleave(num_images_per_prompt, dim=0)
        names = [document.id for document in documents for _ in range(num_images_per_prompt)]
        check_finite(states, names, "hidden states of the dream queries")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:

            def after_step(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
                bar.update()
                if callback_on_step_end is None:
                    return latents
                tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                return (callback_on_step_end(self, step, timestep, tensors) or {}).get("latents", latents)

            latents = sample_latents(
                model,
                states,
                null_states,
                latents.to(device),
                self.scheduler,
                sampling.guidance,
                guidance_rescale,
                eta,
                generator,
                after_step,
            )
        check_finite(latents, names, "latents after the condition projector and the denoiser")
        made: Any = latents
        if output_type != "latent":
            pixels = decode_latents(model, latents, names)
            pil = output_type == "pil"
            made = to_pictures(pixels) if pil else VaeImageProcessor().postprocess(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=made) if return_dict else (made,)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """As in diffusers: CLIP, language model, denoiser and VAE are on the accelerator in turn, else on the CPU."""
        super().enable_model_cpu_offload(gpu_id, device)
        model, device = self.model, self._offload_device
        # diffusers' hook moves the model as a whole, and only when its `forward` is called.
        remove_hook_from_module(model)
        add_hook_to_module(model, ModelHook())  # by which diffusers finds the hooks inside
        self._keep_small_parts_on(device)
        language_model, hook, self._all_hooks = model.language_model.base_model, None, []
        for part in (model.vision_model, language_model, model.denoiser, model.vae):
            _, hook = cpu_offload_with_hook(part, device, prev_module_hook=hook)
            self._all_hooks.append(hook)
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):  # called outside the base model
            add_hook_to_module(part, CpuOffload(execution_device=device))

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As in diffusers: each layer is on the accelerator while it computes; the least memory, and slow."""
        super().enable_sequential_cpu_offload(gpu_id, device)
        remove_hook_from_module(self.model)  # its hook loads the dream queries only when `forward` is called
        add_hook_to_module(self.model, ModelHook())
        self.model.dream_queries.data = self.model.dream_queries.data.to(self._offload_device)

    def _keep_small_parts_on(self, device: torch.device) -> None:
        self.model.dream_queries.data = self.model.dream_queries.data.to(device)
        self.model.visual_projector.to(device)
        self.model.condition_projector.to(device)


def prompt_documents(prompts: Sequence[str], images: Images | None = None) -> list[Document]:
    """Documents of the prompts and their images, as `DreamLLMPipeline` takes them. Raises PromptProblem."""
    if images is None:
        of_prompts: list[list[Image.Image]] = [[] for _ in prompts]
    elif isinstance(images, Image.Image):
        of_prompts = [[images]]
    elif isinstance(images, str):
        raise PromptProblem("images: expected PIL images, found str; open files with PIL.Image.open")
    elif all(isinstance(one, Image.Image) for one in images):
        of_prompts = [list(images)]  # type: ignore[arg-type]
    else:
        of_prompts = [[one] if isinstance(one, Image.Image) else list(one or []) for one in images]
    if not prompts or len(of_prompts) != len(prompts):
        raise PromptProblem(
            f"{len(prompts)} prompts and {len(of_prompts)} lists of images: pass a list of images for each prompt"
        )
    documents = []
    for number, (text, own) in enumerate(zip(prompts, of_prompts, strict=True)):
        if others := [type(one).__name__ for one in own if not isinstance(one, Image.Image)]:
            raise PromptProblem(f"images: expected PIL images, found {others[0]}")
        documents.append(Document(f"prompt {number}", "interleaved" if own else "text", parts_of(text, own)))
    return documents

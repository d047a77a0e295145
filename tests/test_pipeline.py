"""The pipeline of diffusers gives the images of the project's own functions, and takes diffusers' arguments."""

from __future__ import annotations

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

import tiny
from dreamllm.data.document import Document, Picture, Text
from dreamllm.model import generate
from dreamllm.model.pipeline import DreamLLMPipeline
from dreamllm.model.processor import PromptProblem
from dreamllm.model.sampling import PictureSampling, SamplingProblem

MODEL, PROCESSOR = tiny.build()
PROMPTS = ["A ship.", "A photo of a dog running on the beach."]


@pytest.fixture(scope="module")
def pipe() -> DreamLLMPipeline:
    pipe = DreamLLMPipeline.from_model(MODEL, PROCESSOR)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def own(prompts: list[Document], seeds: list[int], **options) -> list[np.ndarray]:
    sampling = PictureSampling(**{"steps": 2} | options)
    return [np.asarray(image) for image in generate.draw(MODEL, PROCESSOR, prompts, seeds, sampling)]


def texts(*words: str) -> list[Document]:
    return [Document(one, "text", (Text(one),)) for one in words]


def test_images_are_those_of_draw_for_the_same_noise(pipe):
    options = {"guidance": 4.0, "guidance_rescale": 0.5, "negative_prompt": "the snow", "height": 32}
    expected = own(texts(*PROMPTS), [5, 6], **options)
    made = pipe(
        PROMPTS,
        num_inference_steps=2,
        guidance_scale=4.0,
        guidance_rescale=0.5,
        negative_prompt="the snow",
        height=32,
        generator=seeded(5, 6),
    ).images
    assert [image.size for image in made] == [(16, 32)] * 2
    assert all(np.array_equal(np.asarray(image), other) for image, other in zip(made, expected, strict=True))


def test_other_schedulers_draw_the_noise_of_their_steps_from_the_generators(pipe):
    ddim = DreamLLMPipeline(MODEL, PROCESSOR, DDIMScheduler.from_config(pipe.scheduler.config))
    ddim.set_progress_bar_config(disable=True)
    expected = own(texts(*PROMPTS), [5, 6], scheduler="DDIMScheduler", eta=1.0)
    made = ddim(PROMPTS, num_inference_steps=2, eta=1.0, generator=seeded(5, 6)).images
    assert all(np.array_equal(np.asarray(image), other) for image, other in zip(made, expected, strict=True))


def test_several_images_of_a_prompt_are_adjacent(pipe):
    made = pipe(PROMPTS, num_inference_steps=2, num_images_per_prompt=2, generator=seeded(1, 2, 3, 4)).images
    expected = own(texts(PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]), [1, 2, 3, 4])
    assert all(np.array_equal(np.asarray(image), other) for image, other in zip(made, expected, strict=True))
    one = torch.Generator().manual_seed(1)
    again = pipe(PROMPTS[:1], num_inference_steps=2, num_images_per_prompt=2, generator=one).images
    assert len(again) == 2 and not np.array_equal(*map(np.asarray, again))


def test_each_prompt_may_have_a_negative_prompt_of_its_own(pipe):
    def make(negative, **options):
        images = pipe(
            PROMPTS, num_inference_steps=2, negative_prompt=negative, generator=seeded(1, 2), **options
        ).images
        return [np.asarray(image).astype(int) for image in images]

    alike = [make("the snow")[0], make("the lake")[1]]
    for image, other in zip(make(["the snow", "the lake"]), alike, strict=True):
        assert np.abs(image - other).max() <= 1


def test_a_prompt_reads_images(pipe):
    image = tiny.picture(3)
    before = Document("", "interleaved", (Picture(image), Text("A ship.")))
    within = Document("", "interleaved", (Text("A "), Picture(image), Text(" ship.")))
    for prompt, document in (("A ship.", before), ("A <image> ship.", within)):
        (made,) = pipe(prompt, image, num_inference_steps=2, generator=seeded(7)).images
        assert np.array_equal(np.asarray(made), own([document], [7])[0])
    both = pipe(PROMPTS, [[image, image], []], num_inference_steps=2, generator=seeded(7, 8)).images
    assert np.abs(np.asarray(both[1]).astype(int) - own(texts(PROMPTS[1]), [8])[0]).max() <= 1


def test_output_types_hold_the_same_image(pipe):
    def make(kind):
        return pipe("A ship.", num_inference_steps=2, generator=seeded(1), output_type=kind, return_dict=False)[0]

    pil = np.asarray(make("pil")[0])
    assert np.array_equal((make("np")[0] * 255).round().astype(np.uint8), pil)
    assert make("pt").shape == (1, 3, 16, 16) and make("latent").shape == (1, 4, 8, 8)


def test_noise_may_be_given(pipe):
    noise = torch.randn((1, 4, 8, 8), generator=seeded(5)[0])
    made = pipe("A ship.", num_inference_steps=2, latents=noise).images[0]
    assert np.array_equal(np.asarray(made), own(texts("A ship."), [5])[0])


def test_a_callback_sees_and_changes_the_latents_of_each_step(pipe):
    seen = []

    def callback(of, step, timestep, tensors):
        seen.append((step, int(timestep), tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    made = pipe("A ship.", num_inference_steps=3, output_type="latent", callback_on_step_end=callback).images
    assert [step for step, *_ in seen] == [0, 1, 2] and seen[0][1:] == (999, (1, 4, 8, 8))
    assert not made.any()


def test_it_is_saved_and_loaded_as_in_diffusers(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    made = np.asarray(pipe("A ship.", num_inference_steps=2, generator=seeded(1)).images[0])
    loaded = DreamLLMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded, DiffusionPipeline) and type(loaded.scheduler) is type(pipe.scheduler)
    again = loaded.to("cpu")("A ship.", num_inference_steps=2, generator=seeded(1)).images[0]
    assert np.array_equal(np.asarray(again), made)
    half = DreamLLMPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.dtype == torch.bfloat16 and half("A ship.", num_inference_steps=2).images[0].size == (16, 16)


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_it_is_offloaded_as_in_diffusers(offload, monkeypatch):
    def sequential(pipe, gpu_id, device):  # diffusers' for the device "cpu:0", on which accelerate loses parameters
        pipe._offload_device = torch.device("cpu")
        accelerate.cpu_offload(pipe.model, pipe._offload_device, offload_buffers=True)

    monkeypatch.setattr(DiffusionPipeline, "enable_sequential_cpu_offload", sequential)
    pipe = DreamLLMPipeline.from_model(*tiny.build())
    pipe.set_progress_bar_config(disable=True)

    def make():
        return np.asarray(pipe("A ship.", tiny.picture(1), num_inference_steps=2, generator=seeded(1)).images[0])

    whole = make()
    getattr(pipe, offload)(device="cpu:0")
    if offload == "enable_sequential_cpu_offload":
        assert pipe.model.unet.device.type == pipe.model.language_model.device.type == "meta"
    assert np.array_equal(make(), whole) and np.array_equal(make(), whole), "twice, as hooks are set anew"
    assert pipe._execution_device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"num_inference_steps": 2000}, "steps is 2000, more than the 1000"),
        ({"height": 20}, "height is 20, not a multiple of 8"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg', expected one of pil"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for 1 images"),
        ({"latents": torch.zeros(1, 4, 2, 2)}, r"latents have the shape \(1, 4, 2, 2\), expected \(1, 4, 8, 8\)"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"guidance_scale": 1.0, "negative_prompt": "a"}, "without guidance"),
        ({"eta": 0.5}, "eta is 0.5, but DPMSolverMultistepScheduler has none"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "prompt_embeds is not latents"),
        ({"images": [[], []]}, "1 prompts and 2 lists of images"),
        ({"images": "cat.png"}, "expected PIL images, found str"),
    ],
)
def test_wrong_arguments_are_named(pipe, options, problem):
    with pytest.raises((SamplingProblem, PromptProblem), match=problem):
        pipe("A ship.", **options)

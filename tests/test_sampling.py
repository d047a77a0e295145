"""Options of sampling that released users have mean what they mean in diffusers; without effect they are refused."""

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import tiny
from dreamllm.config.evaluation import Drawing, EvaluationSettings
from dreamllm.data.document import Document, Text
from dreamllm.evaluate import demo_page, drawing
from dreamllm.evaluate.predict import protocol
from dreamllm.model import generate
from dreamllm.model.sampling import PictureSampling, SamplingProblem, make_scheduler
from test_predict import world  # noqa: F401

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
OPTIONS = {
    "none": {},
    "guidance_rescale": {"guidance_rescale": 0.7},
    "eta": {"eta": 0.8},
    "negative prompt": {"negative_prompt": "blurry, deformed"},
    "size": {"height": 32, "width": 16},
    "all": {"guidance_rescale": 0.3, "eta": 1.0, "negative_prompt": "blurry", "height": 16, "width": 24},
}
PROMPTS = [Document(f"item {n}", "text", (Text(words),)) for n, words in enumerate(("A ship.", "A red fox."))]
MODEL, PROCESSOR = tiny.build()
MODEL.config.scheduler_config = SCHEDULE


def drawn_by(**options) -> list[np.ndarray]:
    sampling = PictureSampling("DDIMScheduler", 4, 3.0, **options)
    return [np.asarray(picture) for picture in generate.draw(MODEL, PROCESSOR, PROMPTS, [5, 6], sampling)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_option_means_what_it_means_in_the_pipeline_of_diffusers(options):
    pipeline = StableDiffusionPipeline(
        MODEL.vae,
        None,
        None,
        MODEL.unet,
        make_scheduler("DDIMScheduler", SCHEDULE),
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    options = dict(options)
    negative = Document("negative", "text", (Text(options.get("negative_prompt", "")),))
    with torch.no_grad():
        states = generate.query_states(MODEL, PROCESSOR, PROMPTS)
        null = generate.query_states(MODEL, PROCESSOR, [negative])
        conditions, nulls = MODEL.condition_projector(states), MODEL.condition_projector(null)
    wanted = pipeline(
        prompt_embeds=conditions,
        negative_prompt_embeds=nulls.expand_as(conditions),
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="np",
        **{"height": 16, "width": 16} | {key: value for key, value in options.items() if key != "negative_prompt"},
    ).images
    found = drawn_by(**options)
    assert found[0].shape == wanted[0].shape
    assert np.abs(np.stack(found) / 255 - wanted).max() * 255 < 0.51
    if options:
        assert found[0].shape != (16, 16, 3) or np.abs(found[0].astype(int) - drawn_by()[0]).max() > 1


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_stable_diffusion_has_the_same_options(options, world):  # noqa: F811
    folder = world / "foundations/sd"
    settings = Drawing(steps=3, **options)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    schedule = dict(pipeline.scheduler.config) | {"steps_offset": 1}
    pipeline.scheduler = make_scheduler(settings.scheduler, schedule)
    options = {"height": 16, "width": 16} | options
    wanted = pipeline(
        prompt="A ship.",
        num_inference_steps=3,
        guidance_scale=settings.guidance,
        generator=[torch.Generator().manual_seed(1)],
        **options,
    ).images[0]
    one = drawing.DrawRequest(argparse.Namespace(id="ship", prompt="A ship."), "A ship.", 1, "000000.png")
    ((_, found),) = drawing.draw_with_sd(folder, None, [one], settings)
    assert np.array_equal(np.asarray(found), np.asarray(wanted))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scheduler": "DDPMScheduler", "eta": 0.5}, "eta is 0.5, but DDPMScheduler has none"),
        ({"guidance": 1.0, "negative_prompt": "blurry"}, "without guidance"),
        ({"guidance": 1.0, "guidance_rescale": 0.5}, "without guidance"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5, not from 0 to 1"),
        ({"eta": -0.5}, "eta is -0.5, not from 0 to 1"),
        ({"height": 20}, "height is 20, not a multiple of 8"),
        ({"width": -16}, "width is -16, not a multiple of 8"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001, more than the 1000"),
        ({"scheduler": "PNDMScheduler", "steps": 3}, "PNDMScheduler refuses steps 3"),
        ({"scheduler": "FlowMatchEulerDiscreteScheduler"}, "'FlowMatchEulerDiscreteScheduler' is not a scheduler"),
        ({"scheduler": "DDIMInverseScheduler"}, "'DDIMInverseScheduler' is not a scheduler"),
    ],
)
def test_what_has_no_effect_or_does_not_fit_is_refused(options, problem):
    with pytest.raises(SamplingProblem, match=re.escape(problem)):
        generate.draw(MODEL, PROCESSOR, PROMPTS[:1], [1], PictureSampling(**{"scheduler": "DDIMScheduler"} | options))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3"),
        ({"max_pictures": -1}, "max_pictures is -1"),
    ],
)
def test_text_is_not_sampled_with_values_out_of_range(options, problem):
    with pytest.raises(SamplingProblem, match=problem):
        generate.interleave(MODEL, PROCESSOR, PROMPTS[:1], [1], generate.TextSampling(**options), PictureSampling())


def test_a_configuration_is_held_to_the_same_and_its_options_are_recorded(world):  # noqa: F811
    for options in ({"guidance": 1, "negative_prompt": "blurry"}, {"guidance_rescale": 2}, {"eta": -1}, {"height": 0}):
        with pytest.raises(ValueError, match="guidance|eta|height"):
            Drawing(**options)
    wanted = {"guidance_rescale": 0.7, "eta": 0.2, "negative_prompt": "blurry", "height": 32, "width": 16}
    asked = argparse.Namespace(model="sd", foundations=world / "foundations", checkpoints=[])
    recorded = protocol(asked, EvaluationSettings(drawing=Drawing(**wanted)))["settings"]["drawing"]
    assert recorded.items() >= wanted.items()


def test_the_verb_generate_takes_them(tmp_path, monkeypatch):
    from dreamllm.train import checkpoint

    bias = torch.zeros(MODEL.get_output_embeddings().out_features)
    bias[PROCESSOR.vocabulary.dream_start] = 1e4  # it always draws
    hook = MODEL.get_output_embeddings().register_forward_hook(lambda module, args, output: output + bias)
    monkeypatch.setattr(checkpoint, "load_for_inference", lambda *_: (MODEL, PROCESSOR))
    parser = argparse.ArgumentParser()
    demo_page.add_arguments(parser)
    options = "--steps 2 --max-pictures 1 --scheduler DDIMScheduler --guidance-rescale 0.5 --eta 0.3 --height 24"
    try:
        for name, more in (("one", []), ("other", ["--negative-prompt", "blurry"])):
            demo_page.main(parser.parse_args(["a ship", "--out", str(tmp_path / name), *options.split(), *more]))
    finally:
        hook.remove()
    one, other = ((tmp_path / name / "1-1.png").read_bytes() for name in ("one", "other"))
    assert int.from_bytes(one[20:24]) == 24 and int.from_bytes(one[16:20]) == 16 and one != other
    with pytest.raises(SamplingProblem, match="eta is 3.0"):
        demo_page.main(parser.parse_args(["a ship", "--eta", "3", "--out", str(tmp_path / "page")]))

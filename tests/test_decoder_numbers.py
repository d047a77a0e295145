"""Latents, noise, targets and timesteps of each decoder are those of diffusers; what does not fit it is refused."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest
import torch

import test_train
import tiny
from dreamllm.config.evaluation import Drawing
from dreamllm.data.packing import pack
from dreamllm.evaluate import drawing
from dreamllm.model import generate
from dreamllm.model.build import build_from_foundations
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.decoders import DECODERS, decoder_of, flow, stable_diffusion
from dreamllm.model.diffusion import DecoderProblem, DiffusionNoise
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.sampling import PictureSampling, SamplingProblem, check_fit, make_scheduler, sample_latents
from dreamllm.model.weights import FoundationProblem
from dreamllm.train import trainer
from test_parts import POOLED, PROMPTS, SCHEDULER, built, seeded

# ---- numbers of diffusers --------------------------------------------------------------------------------------------


def states_of(model, processor) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditions and null conditions of two prompts."""
    states = generate.query_states(model, processor, PROMPTS)
    with torch.no_grad():
        return model.project(states), model.project(model.null_states()).expand(2, -1, -1)


def pipeline_of_diffusers(kind: str, model) -> diffusers.DiffusionPipeline:
    """The pipeline of diffusers for this decoder, with the model's networks and no text encoder."""
    config = model.config.scheduler_config
    options = {"vae": model.vae, model.config.denoiser: model.denoiser, "scheduler": make_scheduler(SCHEDULER, config)}
    if kind == "sd3":
        options["scheduler"] = make_scheduler("FlowMatchEulerDiscreteScheduler", config)
        encoders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        return diffusers.StableDiffusion3Pipeline(**options, **dict.fromkeys(encoders))
    if kind == "sana":
        return diffusers.SanaPipeline(tokenizer=None, text_encoder=None, **options)
    encoders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return diffusers.StableDiffusionXLPipeline(**options, **dict.fromkeys(encoders))


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "sana"])  # Stable Diffusion: test_sampling.py
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_latents_are_those_of_the_pipeline_of_diffusers(kind, guidance):
    model, processor = built(kind)
    conditions, nulls = states_of(model, processor)
    side = 32  # what SanaPipeline wants a multiple of
    latents = torch.randn(2, 4, *[side // model.decoder.pixels_per_latent(model.config)] * 2, generator=seeded())
    pipe = pipeline_of_diffusers(kind, model)
    pipe.set_progress_bar_config(disable=True)
    options = {"prompt_embeds": conditions, "negative_prompt_embeds": nulls}
    if kind in POOLED:
        options = {key: value[:, :-1] for key, value in options.items()}
        options |= {"pooled_prompt_embeds": conditions[:, -1, :12], "negative_pooled_prompt_embeds": nulls[:, -1, :12]}
    if kind == "sana":
        everything = torch.ones(2, conditions.shape[1])
        options |= {"prompt_attention_mask": everything, "negative_prompt_attention_mask": everything}
        options |= {"use_resolution_binning": False, "negative_prompt": None}
    wanted = pipe(
        num_inference_steps=4,
        guidance_scale=guidance,
        height=side,
        width=side,
        latents=latents,
        output_type="latent",
        **options,
    ).images
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(4)
    states = generate.query_states(model, processor, PROMPTS)
    found = sample_latents(model, states, model.null_states(), latents, scheduler, guidance)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    with torch.no_grad():
        shift = model.vae.config.get("shift_factor") or 0.0
        pixels = model.vae.decode(wanted / model.vae.config.scaling_factor + shift).sample
    assert torch.allclose(model.decoder.decode(model.vae, wanted), pixels, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd3", "sana"])
def test_noisy_latents_and_targets_of_rectified_flow_are_those_of_diffusers(kind):
    config = built(kind)[0].config
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=seeded())
    timesteps = scheduler.timesteps[[0, 1, 500, 998, 999]]
    drawn = DiffusionNoise(noise, noise, None, timesteps, None)
    noisy, target = flow.noisy_and_target(config, latents, drawn)
    assert torch.allclose(noisy, scheduler.scale_noise(latents, timesteps, noise), atol=1e-6)
    assert torch.equal(target, noise - latents)
    scheduler.set_timesteps(1)  # one step of Euler along the target, from pure noise, arrives at the latents
    assert torch.allclose(scheduler.step(target, scheduler.timesteps[0], noise).prev_sample, latents, atol=1e-5)


def test_timesteps_of_rectified_flow_are_logit_normal_and_shifted():
    config = DreamLLMConfig(scheduler_config={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    drawn = flow.draw_timesteps(config, 20000, seeded()).double() / 1000
    unshifted = drawn / (3 - 2 * drawn)
    from diffusers.training_utils import compute_density_for_timestep_sampling

    wanted = compute_density_for_timestep_sampling("logit_normal", 20000, 0.0, 1.0, generator=seeded(1)).double()
    quantiles = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    assert (unshifted.quantile(quantiles) - wanted.quantile(quantiles)).abs().max() < 0.01
    config.timestep_shift, config.stratified_timesteps = 2.0, True
    stratified = flow.draw_timesteps(config, 1000, seeded()).double() / 1000  # shifted by 3 x 2
    parts = torch.special.ndtr(torch.logit(stratified / (6 - 5 * stratified))) * 1000
    assert torch.equal(parts.sort().values.floor().clamp(0, 999), torch.arange(1000).double())


@pytest.mark.parametrize("name", flow.schedulers())
def test_every_scheduler_for_rectified_flow_arrives_where_a_constant_velocity_leads(name):
    """With the exact velocity of a single picture, the latents are that picture after the last step."""
    noise, picture = torch.randn(2, 1, 4, 8, 8, generator=seeded()).double()
    scheduler = make_scheduler(name, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    scheduler.set_timesteps(8)
    latents = noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(noise - picture, timestep, latents, generator=seeded()).prev_sample if (
            "generator" in type(scheduler).step.__code__.co_varnames
        ) else scheduler.step(noise - picture, timestep, latents).prev_sample  # fmt: skip
    assert torch.allclose(latents.double(), picture, atol=0.02)


@pytest.mark.parametrize("kind", POOLED)
def test_the_pooled_condition_is_a_matrix_on_the_mean_of_the_states(kind):
    model, _ = built(kind)
    states = torch.randn(3, 4, 32, generator=seeded())
    conditions, projector = model.project(states), model.condition_projector
    assert torch.allclose(conditions[:, -1, :12], states.mean(dim=1) @ projector.pooled.weight.T, atol=1e-6)
    assert not conditions[:, -1, 12:].any()
    assert torch.allclose(conditions[:, :-1], states @ projector.sequence.weight.T, atol=1e-6)


def test_a_connector_lets_every_query_see_the_others_and_starts_at_the_decoders_scale():
    model, _ = built("sana, connector")
    states = torch.randn(1, 4, 32, generator=seeded())
    conditions = model.project(states)
    norm = conditions.square().mean(dim=-1).sqrt()
    assert torch.allclose(norm, torch.tensor(5.5).sqrt().expand_as(norm), atol=1e-2)
    states[:, 3] += 1
    assert (model.project(states) - conditions)[:, :3].abs().amax(dim=-1).min() > 1e-4, "also the first, no causal mask"
    batch = model.project(torch.cat([states, states + 1]))
    assert torch.allclose(batch[:1], model.project(states), atol=1e-5)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_each_module_is_chosen_by_the_configuration_alone():
    for (name, added), decoder in DECODERS.items():
        assert decoder_of({"_class_name": name, "addition_embed_type": added}) is decoder
    assert decoder_of({"sample_size": 8}) is stable_diffusion, "as older configurations are"
    for config in ({"_class_name": "FluxTransformer2DModel"}, {"addition_embed_type": "image"}, {"_class_name": [1]}):
        with pytest.raises(DecoderProblem, match="there is no decoder for a denoiser .* known are .*parts.md"):
            decoder_of(config)


@pytest.mark.parametrize(
    ("kind", "scheduler", "problem"),
    [
        ("sd3", "stable_diffusion", "sd/scheduler: the scheduler is not one of rectified flow"),
        ("stable_diffusion", "sd3", "sd/scheduler: the scheduler is one of rectified flow"),
    ],
)
def test_a_noise_schedule_of_another_decoder_is_refused(kind, scheduler, problem, tmp_path):
    folder = tiny.foundations(tmp_path / "own", decoder=kind)
    tiny.write_decoder(tmp_path / "other", scheduler, "epsilon", 20)
    (tmp_path / "other/scheduler/scheduler_config.json").rename(folder / "sd/scheduler/scheduler_config.json")
    with pytest.raises(FoundationProblem, match=problem):
        build_from_foundations(folder / "llm", folder / "clip", folder / "sd")


@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        ("sd3", {"snr_gamma": 5.0}, "snr_gamma is for decoders that predict noise or velocity"),
        ("sd3", {"trains": ["unet"]}, "the model has no unet; its denoiser is called transformer"),
        ("sdxl", {"trains": ["transformer"]}, "the model has no transformer; its denoiser is called unet"),
        ("sd3", {"loss_weights": {"alignment": 1.0}}, "the decoder's conditions 20"),
    ],
)
def test_a_stage_that_does_not_fit_the_decoder_is_refused(kind, changes, problem):
    model, _ = tiny.build(decoder=kind)
    with pytest.raises(ValueError, match=problem):
        trainer.apply_stage(model, test_train.experiment(**changes).stages["igpt"])


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        ("sd3", {"scheduler": "DDIMScheduler"}, "'DDIMScheduler' is not .* rectified flow; known: FlowMatchEuler"),
        ("sdxl", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "for Stable Diffusion; known: DDIM"),
        ("sd3", {"eta": 0.5}, "eta is 0.5, but DPMSolverMultistepScheduler has none"),
        ("sd3", {"height": 18}, "height is 18, not a multiple of 4"),
        ("sd3", {"height": 36}, "36 pixels are more than the 32 that the decoder has positions for"),
        ("sana", {"width": 18}, "width is 18, not a multiple of 4"),
    ],
)
def test_a_drawing_that_does_not_fit_the_decoder_is_refused(kind, options, problem):
    model, _ = built(kind)
    with pytest.raises(SamplingProblem, match=problem):
        check_fit(model, PictureSampling(**options))


def test_the_alignment_loss_leaves_the_pooled_condition_out():
    model, processor = tiny.build(decoder="sd3", condition_width=24)
    model.config.alignment_loss_weight = 1.0
    laid = [s for n in range(2) for s in processor.lay_out(tiny.story(n), "joint", 128)]
    model(**processor.collate(pack(laid, 128), align=True).inputs(), generator=seeded()).alignment_loss.backward()
    assert not model.condition_projector.pooled.weight.grad.any()
    assert model.condition_projector.sequence.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "sana"])
def test_the_foundation_alone_is_drawn_with_where_it_is_stable_diffusion(kind, tmp_path):
    tiny.write_decoder(tmp_path, kind, "epsilon", 20)
    with pytest.raises(FoundationProblem, match="sd and sd_finetuned are Stable Diffusion 1 or 2 .* this is a "):
        next(drawing.draw_with_sd(tmp_path, None, torch.float32, [], Drawing()))


def test_a_pooled_condition_wider_than_the_others_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pooled condition has width 12, more than the 10"):
        tiny.build(decoder="sd3", condition_width=10)


def test_no_other_module_asks_what_the_denoiser_is():
    """Adding a decoder is one file and one line: nothing outside `decoders/` knows a class or the inside of one."""
    source = Path(DreamLLMForConditionalGeneration.__module__.replace(".", "/")).parent
    root = Path(__file__).parents[1] / "src" / source.parent
    inside = re.compile(r"(model|self)\.unet\b|\.(down|up|mid|transformer)_blocks?\b|SD3Transformer|SanaTransformer")
    allowed = {"emoji/foundations", "official"}  # they make and convert Stable Diffusion
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if name.startswith("model/decoders/") or any(name.startswith(place) for place in allowed):
            continue
        assert not inside.search(path.read_text()), name

"""Every decoder and condition projector does what the others do; docs/parts.md has these tests as a matrix.

PARTS x verbs: a training step, drawing, saving, the pipeline, a stage with LoRA and precomputed latents that is killed
and resumed, bf16, gradient checkpointing, attention maps, the plan. Then each decoder's numbers against diffusers' own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config

import test_train
import tiny
from dreamllm.config.evaluation import Drawing
from dreamllm.data.document import Document, Text
from dreamllm.data.packing import pack
from dreamllm.evaluate import drawing
from dreamllm.evaluate.tasks.attention import record_attention
from dreamllm.model import generate, precision
from dreamllm.model.build import build_from_foundations
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.decoders import DECODERS, decoder_of, flow, stable_diffusion
from dreamllm.model.diffusion import DecoderProblem, DiffusionNoise
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.pipeline import DreamLLMPipeline
from dreamllm.model.sampling import PictureSampling, SamplingProblem, check_fit, make_scheduler, sample_latents
from dreamllm.model.weights import FoundationProblem
from dreamllm.official.convert import OfficialProblem
from dreamllm.official.exporter import export_official
from dreamllm.repro.plan import architecture
from dreamllm.train import checkpoint, distributed, trainer

PARTS = {  # name: what `tiny.build` joins
    "stable_diffusion": {"decoder": "stable_diffusion"},
    "sdxl": {"decoder": "sdxl"},
    "sd3": {"decoder": "sd3"},
    "sana": {"decoder": "sana"},
    "stable_diffusion, connector": {"decoder": "stable_diffusion", "connector_layers": 2},
    "sdxl, connector": {"decoder": "sdxl", "connector_layers": 1},
    "sana, connector": {"decoder": "sana", "connector_layers": 2},
}
KINDS = ("stable_diffusion", "sdxl", "sd3", "sana")
POOLED = ("sdxl", "sd3")
PROMPTS = [Document(text, "text", (Text(text),)) for text in ("A ship.", "A photo of a dog running on the beach.")]
SCHEDULER = PictureSampling().scheduler
parts = pytest.mark.parametrize("name", PARTS)
kinds = pytest.mark.parametrize("kind", KINDS)


@lru_cache
def built(name: str):
    """The model and processor of PARTS, for tests that change neither."""
    return tiny.build(**PARTS[name])


def batch_of(processor, seed: int = 0):
    """Two rows with four pictures to draw."""
    laid = [s for n in range(2) for s in processor.lay_out(tiny.story(seed + n), "joint", 128)]
    batch = processor.collate(pack(laid, 128))
    assert len(batch.draw_slots) == 4
    return batch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(model, batch, **options) -> dict[str, torch.Tensor]:
    """Gradients of the trained parameters, and the loss."""
    model.zero_grad()
    loss = model(**batch.inputs(), generator=seeded(), **options).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return found | {"loss": loss.detach()}


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], atol=tolerance), name


# ---- the loss --------------------------------------------------------------------------------------------------------


@parts
def test_a_training_step_reaches_queries_and_projector_and_not_the_decoder(name):
    model, processor = tiny.build(**PARTS[name])
    model.config.condition_dropout = 0.3
    model.train()
    batch = batch_of(processor)
    found = gradients(model, batch)
    assert torch.isfinite(found.pop("loss"))
    assert {part.split(".")[0] for part in found} == {*test_train.EVERYTHING}
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    assert (model.config.denoiser == "transformer") == (PARTS[name]["decoder"] in ("sd3", "sana"))
    assert not any(p.requires_grad for p in (*model.denoiser.parameters(), *model.vae.parameters()))


@parts
def test_fewer_pictures_at_a_time_give_the_same_loss_and_gradients_also_of_the_decoder(name):
    model, processor = tiny.build(**PARTS[name])
    model.config.noise_draws = 2
    batch = batch_of(processor)
    for trained in (test_train.EVERYTHING, [*test_train.EVERYTHING, model.config.denoiser]):
        model.train_only(trained)
        model.pictures_at_a_time = None
        wanted = gradients(model, batch)
        model.pictures_at_a_time = 3
        assert_close(gradients(model, batch), wanted)


@parts
def test_a_batch_without_pictures_has_zero_gradients_and_no_missing_ones(name):
    model, processor = tiny.build(**PARTS[name])
    model.train_only([*test_train.EVERYTHING, model.config.denoiser])
    batch = processor.collate(pack(processor.lay_out(tiny.text(), "joint", 128), 128))
    found = gradients(model, batch)  # of every trained parameter, as processes that train together need
    assert all(not gradient.any() for part, gradient in found.items() if part.startswith(model.config.denoiser))
    assert not found["dream_queries"].any()


@kinds
@pytest.mark.parametrize("every", [1, 2])
def test_checkpointed_blocks_run_again_and_change_no_gradient(kind, every):
    model, processor = tiny.build(decoder=kind)
    model.train_only([*test_train.EVERYTHING, model.config.denoiser])
    batch = batch_of(processor)
    wanted = gradients(model, batch)
    distributed.checkpoint_activations(model, None, every)
    blocks, runs = model.decoder.denoiser_blocks(model.denoiser), []
    for number, block in enumerate(blocks):
        resnets = getattr(block, "resnets", [block])  # of a UNet, which checkpoints inside its blocks
        resnets[0].register_forward_pre_hook(lambda *_, number=number: runs.append(number))
    assert_close(gradients(model, batch), wanted)
    again = [number for number in range(len(blocks)) if number % every == 0]
    # the middle block of a UNet has its first residual block outside of any checkpoint
    once = [n for n, block in enumerate(blocks) if n in again and type(block).__name__ == "UNetMidBlock2DCrossAttn"]
    assert sorted(runs) == sorted([*range(len(blocks)), *(n for n in again if n not in once)])


@kinds
def test_layers_are_compiled_where_the_machine_says_so(kind, monkeypatch):
    model, _ = tiny.build(decoder=kind)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    distributed.compile_layers(model)
    decoder = model.decoder
    assert {*decoder.denoiser_blocks(model.denoiser), *decoder.encoder_blocks(model.vae)} < {*compiled}


# ---- drawing ---------------------------------------------------------------------------------------------------------


@parts
def test_a_picture_depends_on_its_prompt_and_seed_and_not_on_the_others(name):
    model, processor = built(name)
    sampling = PictureSampling(steps=3, negative_prompt="the snow")
    both = generate.draw(model, processor, PROMPTS, [1, 2], sampling)
    assert [picture.size for picture in both] == [(16, 16)] * 2
    for picture, prompt, seed in zip(both, PROMPTS, (1, 2), strict=True):
        (alone,) = generate.draw(model, processor, [prompt], [seed], sampling)
        assert np.abs(np.asarray(alone).astype(int) - np.asarray(picture)).max() <= 1
    (other,) = generate.draw(model, processor, PROMPTS[:1], [2], sampling)
    assert not np.array_equal(np.asarray(other), np.asarray(both[0]))


@parts
def test_the_pipeline_draws_the_same_and_is_saved_and_loaded(name, tmp_path):
    model, processor = built(name)
    wanted = generate.draw(model, processor, PROMPTS, [1, 2], PictureSampling(steps=3))
    pipe = DreamLLMPipeline.from_model(model, processor)
    pipe.save_pretrained(tmp_path)
    for one in (pipe, DreamLLMPipeline.from_pretrained(tmp_path)):
        one.set_progress_bar_config(disable=True)
        texts = [prompt.id for prompt in PROMPTS]
        made = one(texts, num_inference_steps=3, generator=[seeded(1), seeded(2)]).images
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(made, wanted, strict=True))


@parts
def test_it_draws_another_size_where_the_decoder_can(name):
    model, processor = built(name)
    (picture,) = generate.draw(model, processor, PROMPTS[:1], [1], PictureSampling(steps=2, height=32, width=24))
    assert picture.size == (24, 32)


@kinds
def test_attention_maps_are_shares_or_refused_with_the_reason(kind):
    model, processor = built(kind)
    _, size = check_fit(model, PictureSampling())
    if kind == "sd3":
        with pytest.raises(DecoderProblem, match="patches and queries together"), record_attention(model, 1, size):
            pass
        return
    with record_attention(model, 1, size) as calls:
        generate.draw(model, processor, PROMPTS[:1], [1], PictureSampling(steps=2))
    maps = torch.stack(calls)
    assert maps.shape[1:] == (1, 4, *size) and torch.allclose(maps.sum(dim=2), torch.ones(()), atol=1e-5)


@parts
def test_it_draws_in_bf16(name):
    model, processor = tiny.build(**PARTS[name])
    wanted = generate.draw(model, processor, PROMPTS[:1], [1], PictureSampling(steps=2))
    precision.for_inference(model, "cpu", torch.bfloat16)
    assert model.denoiser.dtype == torch.bfloat16 and model.vae.dtype == torch.float32
    found = generate.draw(model, processor, PROMPTS[:1], [1], PictureSampling(steps=2))
    difference = np.abs(np.asarray(wanted[0]).astype(int) - np.asarray(found[0]))
    assert 0 < difference.mean() < 12


# ---- saving, training, planning --------------------------------------------------------------------------------------


@parts
def test_a_saved_model_is_the_same_and_names_its_parts_as_diffusers_does(name, tmp_path):
    model, processor = built(name)
    model.save_pretrained(tmp_path)
    loaded, info = DreamLLMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = batch_of(processor)
    assert torch.equal(*(one(**batch.inputs(), generator=seeded()).loss for one in (model, loaded.eval())))
    assert {part for part in ("unet", "transformer") if hasattr(loaded, part)} == {model.config.denoiser}
    names = {key.split(".")[0] for key in load_file(tmp_path / "model.safetensors")}
    assert names == {*test_train.EVERYTHING, "vision_model", "vae", model.config.denoiser}
    config = DreamLLMConfig.from_pretrained(tmp_path)
    assert (config.unet_config is None) == (config.transformer_config is not None)
    half = DreamLLMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.denoiser.dtype == half.vae.dtype == torch.float32 and half.language_model.dtype == torch.float16


@parts
def test_a_stage_with_lora_and_precomputed_latents_resumes_bit_equal(name, tmp_path, monkeypatch):
    options = PARTS[name]
    world = test_train.write_world(tmp_path / "world", decoder=options["decoder"])
    lora = {"rank": 2, "alpha": 4.0}
    changes = {"steps": 2, "precompute": True, "mixture": {"pairs": 1.0, "stories": 1.0}, "lora": lora}
    settings = test_train.experiment(**changes, timestep_shift=1.5, stratified_timesteps=True)
    layers = options.get("connector_layers", 0)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"connector_layers": layers})})
    cache = {"encoded_pictures": tmp_path / "cache"}
    whole = test_train.run(world, tmp_path / "whole", settings, **cache)

    def interrupt(step: int, *arguments) -> float:
        if step == 1:
            raise KeyboardInterrupt
        return rate(step, *arguments)

    rate = trainer.learning_rate
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer, "learning_rate", interrupt)
        test_train.run(world, tmp_path / "killed", settings, save_every=0, **cache)
    resumed = test_train.run(world, tmp_path / "killed", settings, **cache)
    assert (tmp_path / "killed/out") == resumed
    assert all((resumed / f).read_bytes() == (whole / f).read_bytes() for f in ("losses.csv", "trained.safetensors"))
    assert {path.name.split("-")[0] for path in cache["encoded_pictures"].glob("*.safetensors")} == {"clip", "vae"}
    model, _ = checkpoint.load_model(world / "foundations", [whole])
    trained = load_file(whole / "trained.safetensors")
    assert torch.equal(model.dream_queries, trained["dream_queries"])
    if name != "stable_diffusion":
        with pytest.raises(
            OfficialProblem, match="draws with Stable Diffusion 1 or 2 and a linear condition projector"
        ):
            export_official(world / "foundations", [whole], tmp_path / "official")


@parts
def test_it_is_built_without_weights_and_measured_for_the_plan(name, tmp_path):
    options = PARTS[name]
    folder = tiny.foundations(tmp_path, decoder=options["decoder"])
    layers = options.get("connector_layers", 0)
    meta, _ = build_from_foundations(*(folder / part for part in ("llm", "clip", "sd")), num_dream_queries=4,
                                     connector_layers=layers, weights=False)  # fmt: skip
    model, _ = built(name)
    assert {k: v.shape for k, v in meta.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    size = architecture.measure(meta)
    assert size.parameters == architecture.parameters_by_part(model) and size.denoiser == model.config.denoiser
    assert 0 < size.unet_kept < size.unet_saved and size.unet > 0


def test_only_the_denoiser_called_transformer_stays_in_fp32(tmp_path):
    """GPT-2's layers are in `language_model.transformer`."""
    text = GPT2Config(vocab_size=len(tiny.tokenizer()), n_embd=32, n_layer=2, n_head=2, n_positions=256)
    model, _ = tiny.build(text, decoder="sd3")
    model.save_pretrained(tmp_path)
    half = DreamLLMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.denoiser.dtype == torch.float32 and half.language_model.transformer.h[0].ln_1.weight.dtype == torch.half


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

"""Every decoder and condition projector does what the others do; docs/parts.md has these tests as a matrix.

PARTS x verbs: a training step, drawing, saving, the pipeline, a stage with LoRA and precomputed latents that is killed
and resumed, bf16, gradient checkpointing, attention maps, the plan, the demo page, stories, quantisation. Numbers of
each decoder against diffusers' own are in `test_decoder_numbers.py`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, GPT2Config, LogitsProcessorList

import test_train
import tiny
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.packing import pack
from dreamllm.demo import actions
from dreamllm.demo.actions import Settings
from dreamllm.evaluate.tasks.attention import record_attention
from dreamllm.model import generate, precision
from dreamllm.model.build import build_from_foundations
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.diffusion import DecoderProblem
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.generate import TextSampling
from dreamllm.model.pipeline import DreamLLMPipeline
from dreamllm.model.sampling import PictureSampling, check_fit
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


# ---- people's tools --------------------------------------------------------------------------------------------------


@parts
def test_the_demo_page_draws_the_same_and_a_story_has_an_image_where_the_model_begins_one(name):
    model, processor = built(name)
    sampling = PictureSampling(steps=2)
    (wanted,) = generate.draw(model, processor, PROMPTS[:1], [1], sampling)
    pipe = DreamLLMPipeline.from_model(model, processor)
    pipe.set_progress_bar_config(disable=True)
    (found,) = actions.draw(pipe, PROMPTS[0].id, [], Settings(seed=1, images=1, steps=2))
    assert np.array_equal(np.asarray(found), np.asarray(wanted))

    def draws(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor(processor.vocabulary.dream_start), 1e4)

    writing = TextSampling(max_new_tokens=4, max_pictures=1)
    options = {"logits_processor": LogitsProcessorList([draws])}
    (story,) = generate.interleave(model, processor, PROMPTS[:1], [1], writing, sampling, **options)
    assert [part.image.size for part in story.parts if isinstance(part, Picture)] == [(16, 16)]


@parts
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_leaves_the_decoder_and_the_projectors_whole(name, bits, tmp_path, monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # a kernel for wider layers
    for part in built(name):
        part.save_pretrained(tmp_path)
    options = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = DreamLLMForConditionalGeneration.from_pretrained(tmp_path, quantization_config=options)
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    quantised = {name.split(".")[0] for name, module in model.named_modules() if isinstance(module, kinds)}
    assert quantised == {"language_model", "vision_model"}
    (picture,) = generate.draw(model, built(name)[1], PROMPTS[:1], [1], PictureSampling(steps=2))
    assert picture.size == (16, 16) and np.asarray(picture).std() > 0

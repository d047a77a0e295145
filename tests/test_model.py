"""The model: it takes any causal language model, packing keeps the losses, losses are as defined, saving is exact."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CohereConfig,
    Gemma3TextConfig,
    MambaConfig,
)

import tiny
from dreamllm.data.document import Document, Text
from dreamllm.data.layout import IGNORE
from dreamllm.data.packing import pack
from dreamllm.model import diffusion
from dreamllm.model.decoders import stable_diffusion
from dreamllm.model.dreamllm import UNFROZEN, DreamLLMForConditionalGeneration
from dreamllm.model.eyes import patch_features
from dreamllm.model.generate import query_states
from dreamllm.model.processor import PromptProblem
from dreamllm.model.text_only import PictureDue
from dreamllm.train.distributed import checkpoint_activations

SIZES = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DOCUMENTS = [
    (tiny.story(1), "joint"),
    (tiny.pair(2), "creation"),
    (tiny.pair(3), "comprehension"),
    (tiny.conversation(4), "joint"),
    (tiny.text(5), "joint"),
]


def sequences(processor, documents=DOCUMENTS, context=256):
    return [sequence for document, mode in documents for sequence in processor.lay_out(document, mode, context)]


def fixed_noise(model, pictures: int, seed: int = 0, **options) -> diffusion.DiffusionNoise:
    """model: None for a new one, in training mode."""
    model = model or tiny.build()[0].train()
    for name, value in options.items():
        setattr(model.config, name, value)
    return model.draw_noise(pictures, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pictures_at_a_time", [None, 2])
def test_the_loss_of_several_draws_is_the_mean_of_their_losses(pictures_at_a_time):
    """Value and gradient, with dropped conditions, however many pictures go through the UNet at once."""
    model, processor = tiny.build()
    model.config.noise_draws, model.config.condition_dropout, model.config.snr_gamma = 3, 0.5, 5.0
    model.train()
    batch = processor.collate(pack(sequences(processor), 256)).inputs()
    count = len(batch["draw_slots"])
    noise = model.draw_noise(count, torch.Generator().manual_seed(0))
    assert len(noise.timesteps) == 3 * count and noise.dropped.any() and not noise.dropped.all()

    def loss_and_gradient(noise, **options) -> torch.Tensor:
        model.zero_grad()
        loss = model(**batch, noise=noise, **options).diffusion_loss
        loss.backward()
        return torch.cat([loss.detach().flatten(), model.dream_queries.grad.flatten()])

    alone = [loss_and_gradient(noise[draw::3]) for draw in range(3)]
    model.pictures_at_a_time = pictures_at_a_time
    assert torch.allclose(loss_and_gradient(noise), sum(alone) / 3, atol=1e-5)
    assert torch.allclose(loss_and_gradient(noise, num_pictures=2 * count), sum(alone) / 6, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packing_works_with_every_attention(attention, tmp_path):
    model, processor = tiny.build()
    batch = processor.collate(pack(sequences(processor), 256))
    expected = model(**batch.inputs(), noise=fixed_noise(model, len(batch.draw_slots))).loss
    model.save_pretrained(tmp_path)
    for changed in (model, DreamLLMForConditionalGeneration.from_pretrained(tmp_path)):
        changed.language_model.set_attn_implementation(attention)
        loss = changed(**batch.inputs(), noise=fixed_noise(model, len(batch.draw_slots))).loss
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_flash_attention_keeps_packed_documents_apart_in_several_rows(monkeypatch):
    """Its kernel is replaced by one that runs here: what counts is where it is told that documents begin and end."""
    from transformers.integrations import flash_attention

    def varlen(query, key, value, mask, *, cu_seq_lens_q, max_length_q, softmax_scale, is_causal, **_):
        assert mask is None and is_causal and max_length_q == query.shape[1]
        groups = query.shape[2] // key.shape[2]
        q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)  # (B T, heads, D)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        documents = [slice(*ends) for ends in itertools.pairwise(cu_seq_lens_q.tolist())]
        apart = [
            torch.nn.functional.scaled_dot_product_attention(
                *(x[document].transpose(0, 1) for x in (q, k, v)), is_causal=True, scale=softmax_scale
            ).transpose(0, 1)
            for document in documents
        ]
        return torch.cat(apart).view_as(query)

    model, processor = tiny.build()
    batch = processor.collate(pack(sequences(processor), 200))
    assert len(batch.input_ids) > 1 and len(batch.document_ids[0]) > 1
    expected = model(**batch.inputs(), noise=fixed_noise(model, len(batch.draw_slots))).loss
    monkeypatch.setattr(flash_attention, "_flash_attention_forward", varlen)
    model.language_model.config._attn_implementation = "flash_attention_2"
    found = model(**batch.inputs(), noise=fixed_noise(model, len(batch.draw_slots))).loss
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_parts_of_a_batch_add_up_to_its_losses_and_gradients():
    model, processor = tiny.build()
    rows = pack(sequences(processor), 200)
    whole = processor.collate(rows)
    noise, targets = fixed_noise(model, len(whole.draw_slots)), int((whole.labels[:, 1:] != IGNORE).sum())
    output = model(**whole.inputs(), noise=noise)
    output.loss.backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad(set_to_none=True)
    model.pictures_at_a_time = 1
    checkpoint_activations(model.train())
    total, drawn = 0.0, 0
    for row in rows:
        batch = processor.collate([row])
        end = drawn + len(batch.draw_slots)
        counts = {"num_targets": targets, "num_pictures": len(whole.draw_slots)}
        loss = model(**batch.inputs(), noise=noise[drawn:end], **counts).loss
        loss.backward()
        total, drawn = total + loss.item(), end
    assert total == pytest.approx(output.loss.item(), rel=1e-5)
    for name, gradient in wanted.items():
        assert torch.allclose(model.get_parameter(name).grad, gradient, atol=1e-5), name


def test_activations_of_a_frozen_language_model_are_checkpointed_and_its_dropout_stays_off(monkeypatch):
    model, processor = tiny.build()
    model.train_only(["dream_queries"])
    model.train().language_model.eval()
    checkpoint_activations(model)
    layers = model.language_model.model.layers
    assert all(layer.training and not layer.self_attn.training for layer in layers)
    forwards = []
    monkeypatch.setattr(type(layers[0].mlp), "forward", counted(type(layers[0].mlp).forward, forwards))
    batch = processor.collate(pack(sequences(processor), 256))
    model(**batch.inputs(), noise=fixed_noise(model, len(batch.draw_slots))).loss.backward()
    assert len(forwards) == 2 * len(layers)  # once forward, once more in the backward pass


def counted(function, calls: list):
    def forward(*arguments):
        calls.append(1)
        return function(*arguments)

    return forward


def test_a_packed_batch_gives_the_losses_of_its_documents():
    model, processor = tiny.build()
    laid = sequences(processor)
    rows = pack(laid, 200)
    batch = processor.collate(rows)
    noise = fixed_noise(model, len(batch.draw_slots))
    packed = model(**batch.inputs(), noise=noise)
    language = drawing = targets = drawn = 0
    for sequence in [sequence for row in rows for sequence in row]:
        pictures = slice(drawn, drawn + len(sequence.draw_slots))
        own = diffusion.DiffusionNoise(
            noise.posterior[pictures], noise.noise[pictures], None, noise.timesteps[pictures], None
        )
        output = model(**processor.collate([[sequence]]).inputs(), noise=own)
        count = sum(label != IGNORE for label in sequence.labels)
        language, targets = language + count * output.language_loss.item(), targets + count
        drawing += len(sequence.draw_slots) * output.diffusion_loss.item()
        drawn += len(sequence.draw_slots)
    assert drawn == 4 and len(rows) == 2
    assert language / targets == pytest.approx(packed.language_loss.item(), abs=1e-5)
    assert drawing / drawn == pytest.approx(packed.diffusion_loss.item(), abs=1e-5)


def test_save_and_load_is_exact_and_in_safetensors_only(tmp_path):
    model, processor = tiny.build()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    assert str(tmp_path.parent) not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    for ours, theirs in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])
    ours = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert ours == {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    batch, loaded_batch = (one.collate(pack(sequences(one), 256)) for one in (processor, loaded_processor))
    for key, value in batch.inputs().items():
        assert value is loaded_batch.inputs()[key] is None or torch.equal(value, loaded_batch.inputs()[key])
    noise = fixed_noise(model, len(batch.draw_slots))
    assert torch.equal(model(**batch.inputs(), noise=noise).loss, loaded(**batch.inputs(), noise=noise).loss)


def test_the_auto_classes_know_the_model(tmp_path):
    model, _ = tiny.build()
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).num_dream_queries == 4
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), DreamLLMForConditionalGeneration)
    random = AutoModelForImageTextToText.from_config(model.config)
    assert all(torch.isfinite(parameter).all() for parameter in random.parameters())


def test_a_language_model_that_does_not_fit_is_refused():
    scaled = CohereConfig(**SIZES, intermediate_size=64, logit_scale=0.1)
    with pytest.raises(ValueError, match="CohereForCausalLM does not fit: its logits are not its head"):
        tiny.build(scaled)
    both_ways = Gemma3TextConfig(**SIZES, intermediate_size=64, head_dim=8, use_bidirectional_attention=True)
    with pytest.raises(ValueError, match="Gemma3ForCausalLM does not fit: its attention is not causal"):
        tiny.build(both_ways)
    recurrent = MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2)
    with pytest.raises(ValueError, match="MambaForCausalLM does not fit: .* packed into one row"):
        tiny.build(recurrent)


def test_the_same_foundations_and_seed_give_the_same_model():
    first, second = tiny.build()[0].state_dict(), tiny.build()[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_special_tokens_are_added_once_and_read_from_the_tokenizer():
    model, processor = tiny.build()
    config, ids = model.config, processor.tokenizer.convert_tokens_to_ids
    assert config.dream_start_token_id == ids("<dream_start>") == processor.vocabulary.dream_start
    assert config.im_patch_token_id == ids("<im_patch>") and config.pad_token_id == ids("[PAD]")
    assert config.text_config.vocab_size == len(processor.tokenizer) == 408
    assert model.get_input_embeddings().num_embeddings == 408


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_every_trainable_part_has_a_gradient_in_every_batch_and_frozen_parts_none():
    model, processor = tiny.build()
    for document, mode in DOCUMENTS:
        model.zero_grad()
        batch = processor.collate([processor.lay_out(document, mode, 256)])
        model(**batch.inputs(), generator=torch.Generator().manual_seed(0)).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert parameter.requires_grad == (name.split(".")[0] not in ("vision_model", "vae", "unet"))


def test_only_the_named_parts_are_trained():
    model, _ = tiny.build()
    model.train_only(["visual_projector", "unet"])
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"visual_projector", "unet"}
    with pytest.raises(ValueError, match="cannot train vae; trainable are " + ", ".join([*UNFROZEN, "unet"])):
        model.train_only(["vae"])


def test_frozen_parts_stay_in_evaluation_mode():
    model, _ = tiny.build()
    model.train()
    assert model.language_model.training and not model.vision_model.training and not model.vae.training


def test_patch_features_are_a_hidden_state_of_clip_without_its_class_token():
    model, processor = tiny.build()
    pixels = processor.read_pixels([tiny.picture(1), tiny.picture(2)])
    hidden_states = model.vision_model(pixels, output_hidden_states=True).hidden_states
    for layer in (-2, -1, 1, 0):
        features = patch_features(model.vision_model, pixels, layer)
        assert torch.allclose(features, hidden_states[layer][:, 1:], atol=1e-6)


def test_a_loss_of_weight_zero_is_not_computed():
    model, processor = tiny.build()
    batch = processor.collate(pack(sequences(processor), 256))
    model.config.language_loss_weight = 0.0
    output = model(**batch.inputs(), generator=torch.Generator().manual_seed(0))
    assert output.language_loss is None and output.loss == 10 * output.diffusion_loss
    model.config.language_loss_weight, model.config.diffusion_loss_weight = 2.0, 0.0
    output = model(**batch.inputs())
    assert output.diffusion_loss is None and output.loss == 2 * output.language_loss


# ---- the diffusion loss ---------------------------------------------------------------------------------------------


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_targets_are_those_of_diffusers(prediction_type):
    config = {"beta_schedule": "scaled_linear", "prediction_type": prediction_type}
    scheduler = stable_diffusion.DDPMScheduler.from_config(config)
    noise, timesteps = latents(1), torch.tensor([0, 1, 500, 998, 999])
    alphas = stable_diffusion.cumulative_alphas(config)[timesteps]
    expected = scheduler.add_noise(latents(), noise, timesteps)
    assert torch.allclose(stable_diffusion.add_noise(latents(), noise, alphas), expected, atol=1e-6)
    target = stable_diffusion.prediction_target(latents(), noise, alphas, prediction_type)
    expected = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents(), noise, timesteps)
    assert torch.allclose(target, expected, atol=1e-6)


def test_an_unknown_prediction_type_is_an_error():
    with pytest.raises(ValueError, match="'sample' is not supported"):
        stable_diffusion.prediction_target(latents(), latents(), torch.ones(5), "sample")


def test_min_snr_weights_cap_the_easy_timesteps():
    alphas = torch.tensor([0.9, 0.5, 0.1])  # signal-to-noise ratios 9, 1, 1/9
    assert torch.allclose(stable_diffusion.snr_weights(alphas, 5.0, "epsilon"), torch.tensor([5 / 9, 1.0, 1.0]))
    expected = torch.tensor([5 / 10, 1.0, 1.0])
    assert torch.allclose(stable_diffusion.snr_weights(alphas, 5.0, "v_prediction"), expected)
    target = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 4, 8, 8)
    errors = diffusion.squared_errors(torch.zeros(3, 4, 8, 8), target)
    weighted = diffusion.mean_error(errors, torch.tensor([0.5, 1.0, 1.0]))
    assert weighted.item() == pytest.approx((0.5 + 4 + 9) / 3)


def test_the_noise_offset_is_part_of_the_target_and_the_perturbation_is_not():
    plain, offset, perturbed = (
        fixed_noise(None, 3, **options) for options in ({}, {"noise_offset": 0.5}, {"input_perturbation": 0.5})
    )
    difference = offset.noise - plain.noise
    assert difference.std() > 0.1
    assert torch.allclose(difference, difference[:, :, :1, :1].expand_as(difference), atol=1e-6)
    assert torch.equal(perturbed.noise, plain.noise) and perturbed.perturbation.std() == pytest.approx(0.5, rel=0.2)


def test_stratified_timesteps_cover_the_schedule_and_change_no_other_random_number():
    plain, stratified = fixed_noise(None, 5), fixed_noise(None, 5, stratified_timesteps=True)
    assert torch.equal(stratified.timesteps.sort().values // 200, torch.arange(5))
    assert not torch.equal(stratified.timesteps.sort().values, stratified.timesteps)
    assert torch.equal(plain.noise, stratified.noise) and torch.equal(plain.posterior, stratified.posterior)
    assert len(fixed_noise(None, 0, stratified_timesteps=True).timesteps) == 0


def test_shifted_timesteps_keep_their_order_and_move_to_the_noisy_end():
    timesteps = torch.arange(1000)
    shifted = diffusion.shift_timesteps(timesteps, 1000, 3.0)
    assert torch.equal(diffusion.shift_timesteps(timesteps, 1000, 1.0), timesteps)
    assert (shifted.diff() >= 0).all() and shifted.min() >= 0 and shifted.max() == 999
    assert shifted[500].item() == 750  # 3/2 / (1 + 2/2)
    plain, moved = fixed_noise(None, 5), fixed_noise(None, 5, timestep_shift=3.0)
    assert torch.equal(moved.timesteps, diffusion.shift_timesteps(plain.timesteps, 1000, 3.0))
    assert torch.equal(plain.noise, moved.noise)


def test_random_numbers_are_drawn_in_the_official_order():
    noise = fixed_noise(None, 3, noise_offset=0.1, input_perturbation=0.2, condition_dropout=0.5)
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, 4, 8, 8), (3, 4, 8, 8), (3, 4, 1, 1), (3, 4, 8, 8)]
    normal = [torch.randn(size, generator=generator) for size in sizes]
    assert torch.equal(noise.posterior, normal[0])
    assert torch.equal(noise.noise, normal[1] + 0.1 * normal[2])
    assert torch.equal(noise.perturbation, 0.2 * normal[3])
    assert torch.equal(noise.timesteps, torch.randint(1000, (3,), generator=generator))
    assert torch.equal(noise.dropped, torch.rand(3, generator=generator) < 0.5)


def test_dropped_conditions_are_the_null_condition_of_sampling():
    model, processor = tiny.build()
    model.train()
    model.config.condition_dropout = 0.5
    batch = processor.collate([processor.lay_out(tiny.story(), "joint", 256)])
    null_states = query_states(model, processor, [Document("nothing", "text", (Text(""),))])
    assert torch.allclose(model.null_states(), null_states, atol=1e-6)
    noise = fixed_noise(model, 2)
    everything = dataclasses.replace(noise, dropped=torch.tensor([True, True]))
    dropped = model(**batch.inputs(), noise=everything).diffusion_loss
    under_null = model.diffusion_loss(null_states.expand(2, -1, -1), batch.draw_pixels, noise)
    assert dropped.item() == pytest.approx(under_null.item(), abs=1e-6)


def test_conditions_are_dropped_in_training_only():
    model, processor = tiny.build()
    model.config.condition_dropout = 1.0
    batch = processor.collate([processor.lay_out(tiny.story(), "joint", 256)])

    def diffusion_loss() -> float:
        return model(**batch.inputs(), generator=torch.Generator().manual_seed(3)).diffusion_loss.item()

    evaluated = model.eval() and diffusion_loss()
    trained = model.train() and diffusion_loss()
    model.config.condition_dropout = 0.0
    assert evaluated == diffusion_loss() != trained


# ---- stock generate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_stock_generate_reads_the_pictures_of_a_padded_batch(options):
    model, processor = tiny.build()
    texts, pictures = ["This is <image> .", "<image> and <image> are a dog"], [tiny.picture(i) for i in range(3)]
    options = options | {"max_new_tokens": 6, "do_sample": False}
    inputs = processor(text=texts, images=pictures)
    together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for row, (text, own) in enumerate(zip(texts, (pictures[:1], pictures[1:]), strict=True)):
        inputs = processor(text=text, images=own)
        alone = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        assert together[row, : len(alone)].tolist() == alone.tolist()
    other = processor(text=texts, images=[tiny.picture(9), *pictures[1:]])
    logits, changed = model(**processor(text=texts, images=pictures)).logits, model(**other).logits
    assert not torch.allclose(logits[0, -1], changed[0, -1]) and torch.allclose(logits[1, -1], changed[1, -1])


def test_beams_keep_the_pictures_of_their_prompt():
    model, processor = tiny.build()
    inputs = processor.prompts([tiny.story(1), tiny.pair(2)], mode="comprehension")
    logits = model(**inputs).logits[:, -1]  # (2, V)
    input_ids, beams = model._expand_inputs_for_generation(expand_size=3, **inputs)
    expanded = model(input_ids, **beams).logits[:, -1]  # (6, V)
    assert torch.allclose(expanded, logits.repeat_interleave(3, dim=0), atol=1e-5)


def test_a_processor_call_with_too_few_pictures_is_an_error():
    _, processor = tiny.build()
    with pytest.raises(ValueError, match="2 <image> placeholders, but 1 pictures"):
        processor(text="<image> and <image>", images=tiny.picture())


@pytest.mark.parametrize(
    "words", ["<image>\nWhat is on the grass?", "<image> Why \uff1f ", "USER: <image> Describe it. ASSISTANT:"]
)
def test_a_question_as_a_plain_string_is_an_error_that_says_how_to_ask(words):
    _, processor = tiny.build()
    with pytest.raises(PromptProblem, match="is a question or a conversation.*apply_chat_template"):
        processor(text=words, images=tiny.picture())
    assert processor.prompts([tiny.conversation()])["input_ids"].shape[0] == 1


@pytest.mark.parametrize("images", [np.zeros((4, 4, 3)), [np.zeros((4, 4, 3))], [[np.zeros((4, 4, 3))]]])
def test_images_that_are_not_pil_images_are_an_error(images):
    _, processor = tiny.build()
    with pytest.raises(PromptProblem, match="expected pictures of PIL, found ndarray"):
        processor(text="<image>", images=images)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}])
def test_stock_generate_stops_with_an_error_where_a_picture_is_due(options):
    model, processor = tiny.build()
    start = processor.vocabulary.dream_start
    forced = {"prefix_allowed_tokens_fn": lambda row, ids: [start] if row == 0 else [5, 6, 7], "max_new_tokens": 3}
    inputs = processor(text=["A ship.", "A dog."])
    with pytest.raises(PictureDue, match=r"row 0: .*a picture is due.*interleave"):
        model.generate(**inputs, **forced, **options)
    ended = model.generate(**inputs, **forced, **options, eos_token_id=[start, 2], pad_token_id=0)
    assert ended[0, inputs["input_ids"].shape[1]] == start, "a text may end where a picture is due"


def test_the_vocabulary_can_be_resized():
    model, _ = tiny.build()
    before = model.get_output_embeddings().weight.clone()
    model.resize_token_embeddings(420, mean_resizing=False)
    assert model.get_output_embeddings().out_features == model.get_input_embeddings().num_embeddings == 420
    assert torch.equal(model.get_output_embeddings().weight[: len(before)], before)


def test_autoprocessor_knows_the_processor_when_the_model_alone_is_imported(tmp_path):
    _, processor = tiny.build()
    processor.save_pretrained(tmp_path)
    code = (
        "import dreamllm.model.dreamllm, transformers, sys\n"
        "print(type(transformers.AutoProcessor.from_pretrained(sys.argv[1])).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "DreamLLMProcessor"

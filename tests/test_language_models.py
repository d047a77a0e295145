"""Every kind of language model: packing, generation, saving and LoRA are exact; its new tokens."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

import tiny
from dreamllm.config.stages import Lora
from dreamllm.data.packing import pack
from dreamllm.model.build import build_from_foundations
from dreamllm.model.decoding import Sequences
from dreamllm.model.processor import SPECIAL_TOKENS
from dreamllm.model.weights import FoundationProblem
from dreamllm.train import checkpoint, lora, trainer
from test_model import fixed_noise, sequences
from test_train import experiment

WINDOW = 24  # shorter than the documents
SIZES = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1}
SIZES |= {"eos_token_id": 2, "pad_token_id": None, "initializer_range": 0.2}
GROUPED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
LONG_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LONG_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
LANGUAGE_MODELS = {
    "llama": LlamaConfig(**GROUPED),
    "llama3": LlamaConfig(**GROUPED, rope_parameters=LONG_ROPE),
    "smollm2": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True),
    "gemma": GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**GEMMA, final_logit_softcapping=1.0, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "mistral": MistralConfig(**GROUPED, sliding_window=WINDOW),
    "phi": PhiConfig(**GROUPED | {"num_key_value_heads": 4}),
    "phi3": Phi3Config(**GROUPED, sliding_window=WINDOW),
    "opt": OPTConfig(**SIZES, ffn_dim=64, max_position_embeddings=256, word_embed_proj_dim=16, init_std=0.2),
    "gpt2": GPT2Config(**SIZES, n_positions=256),
    "gpt_neox": GPTNeoXConfig(**SIZES, intermediate_size=64, max_position_embeddings=256),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Foundations, of which the eye and Stable Diffusion are used with every language model."""
    return tiny.foundations(tmp_path_factory.mktemp("base"))


def build(base: Path, folder: Path, config: PreTrainedConfig, tokenizer=None, **options):
    """A model of this language model, saved in `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (tokenizer or tiny.tokenizer()).save_pretrained(folder)
    options = {"num_dream_queries": 4, "template": "plain"} | options
    return build_from_foundations(folder, base / "clip", base / "sd", **options)


@pytest.fixture(scope="module", params=LANGUAGE_MODELS)
def built(request, base, tmp_path_factory):
    """Model and processor, shared by the tests, which leave it as it is."""
    return build(base, tmp_path_factory.mktemp(request.param), LANGUAGE_MODELS[request.param])


def gradients(model, batch) -> dict[str, torch.Tensor]:
    """Loss of a batch, and gradients of all trained parameters."""
    model.zero_grad()
    model(**batch.inputs(), noise=fixed_noise(model, len(batch.draw_slots))).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_tokenizer_is_the_one_in_the_folder(built):
    """And not that which transformers has for the model's type."""
    text = "A photo of a dog running on the beach."
    assert built[1].tokenizer.tokenize(text) == tiny.tokenizer().tokenize(text)


@torch.no_grad()
def test_a_packed_document_is_as_it_is_alone(built):
    model, processor = built
    rows = pack(sequences(processor), 200)
    batch = processor.collate(rows)
    packed = model(**batch.inputs(), noise=fixed_noise(model, len(batch.draw_slots)))
    for row, documents in enumerate(rows):
        start = 0
        for sequence in documents:
            inputs = processor.collate([[sequence]]).inputs()
            alone = model(**inputs | {"labels": None, "draw_pixels": None})
            part = slice(start, start + len(sequence))
            start = part.stop
            assert torch.allclose(packed.last_hidden_state[row, part], alone.last_hidden_state[0], atol=1e-5)
            assert torch.allclose(packed.logits[row, part], alone.logits[0], atol=1e-4)


def test_every_trained_part_gets_gradients(built):
    model, processor = built
    batch = processor.collate(pack(sequences(processor), 200))
    for name, gradient in gradients(model, batch).items():
        # GPT-2 and the others have biases of keys, which attention ignores
        assert gradient is not None and gradient.isfinite().all(), name
        assert gradient.abs().max() > 0 or "norm" in name or "bias" in name, name


@torch.no_grad()
def test_greedy_generation_is_that_of_a_model_without_cache(built):
    model, processor = built
    prompts = [tiny.story(1), tiny.pair(2), tiny.conversation(3)]
    mode = "comprehension"
    inputs = processor.prompts(prompts, mode)
    suppressed = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=suppressed, eos_token_id=-1)
    for row, prompt in enumerate(prompts):
        alone = processor.prompts([prompt], mode)
        ids = alone["input_ids"]
        for token in output[row, inputs["input_ids"].shape[1] :].tolist():
            logits = model(input_ids=ids, pixel_values=alone["pixel_values"]).logits[0, -1]
            logits[suppressed] = -torch.inf
            assert logits.max() - logits[token] < 1e-4  # the most probable, up to rounding
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


@torch.no_grad()
def test_rows_that_wait_and_are_continued_with_images_are_as_if_alone(built):
    """The steps of `decoding.decode`: rows of two lengths, one of which waits; then both draw, and read the picture."""
    model, processor = built
    prompts = [processor.lay_out_prompt(document, "creation") for document in (tiny.text(1), tiny.pair(2))]
    longest = max(map(len, prompts))
    ids = torch.tensor([[processor.vocabulary.pad] * (longest - len(one)) + list(one.input_ids) for one in prompts])
    mask = (torch.arange(longest) >= longest - torch.tensor([[len(one)] for one in prompts])).long()
    cached = Sequences(model, ids[:, :0], mask[:, :0])
    cached.advance(ids, mask)
    rows = [list(one.input_ids) for one in prompts]
    for token in range(270, 276):
        counts = torch.tensor([[1], [int(token < 272)]])  # the second row waits
        hidden = cached.advance(torch.full((2, 1), token), counts)
        for row, count in zip(rows, counts[:, 0].tolist(), strict=True):
            row += [token] * count
    cached.keep([0, 1])
    words = processor.vocabulary
    dream = [words.dream_start, *[words.im_patch] * words.num_queries, words.dream_end]
    image = [words.im_start, *[words.im_patch] * words.num_patches, words.im_end]
    pixels = processor.read_pixels([tiny.picture(5), tiny.picture(6)])
    hidden = torch.cat(
        [cached.append_block(dream, "draw_slots"), cached.append_block(image, "read_slots", read_pixels=pixels)], dim=1
    )
    for row, own in enumerate(rows):
        alone = model(input_ids=torch.tensor([own + dream + image]), pixel_values=pixels[row : row + 1])
        assert torch.allclose(hidden[row], alone.last_hidden_state[0, len(own) :], atol=1e-4)


def test_saving_and_loading_is_exact(built, tmp_path):
    model, processor = built
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = (kind.from_pretrained(tmp_path) for kind in (AutoModelForImageTextToText, AutoProcessor))
    assert not list(tmp_path.glob("*.bin"))
    for (ours, tensor), (theirs, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert ours == theirs and torch.equal(tensor, other)
    batch, other = (one.collate(pack(sequences(one), 200)) for one in (processor, loaded_processor))
    assert torch.equal(batch.input_ids, other.input_ids)
    noise = fixed_noise(model, len(batch.draw_slots))
    assert torch.equal(model(**batch.inputs(), noise=noise).loss, loaded(**other.inputs(), noise=noise).loss)


def test_a_checkpoint_of_adapters_restores_the_adapted_model(built, tmp_path):
    pytest.importorskip("peft")
    model, processor = built
    adapted, restored = copy.deepcopy(model), copy.deepcopy(model)
    lora.add_adapters(adapted, options := Lora(rank=3, alpha=12.0), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    trained = lora.checkpoint_tensors(checkpoint.trained_parameters(adapted), options)
    checkpoint.save_trained(tmp_path / "c", trained, {}, "")
    checkpoint.load_trained(restored, tmp_path / "c")
    batch = processor.collate(pack(sequences(processor), 200))
    wanted, found, plain = (
        one.eval()(**batch.inputs() | {"labels": None, "draw_pixels": None}).last_hidden_state
        for one in (adapted, restored, model)
    )
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(plain, wanted, atol=1e-2)


# ---- what does not fit ---------------------------------------------------------------------------------------------


def test_a_language_model_that_reads_pictures_itself_is_refused(base, tmp_path):
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    both = Gemma3Config(text_config=LANGUAGE_MODELS["gemma3"].to_dict(), vision_config={**vision, "image_size": 16})
    with pytest.raises(
        FoundationProblem, match="Gemma3ForConditionalGeneration does not fit: it reads pictures itself"
    ):
        build(base, tmp_path, both)


def test_a_context_beyond_a_table_of_positions_is_refused(base, tmp_path):
    model, _ = build(base, tmp_path, LANGUAGE_MODELS["gpt2"])
    with pytest.raises(trainer.StageProblem, match="context: 300 tokens are more than the 256 positions of the gpt2"):
        trainer.apply_stage(model, experiment(context=300).stages["igpt"])


def test_new_tokens_in_unused_rows_are_drawn_anew_and_differ(base, tmp_path):
    config = LlamaConfig(**GROUPED | {"vocab_size": 512, "tie_word_embeddings": False})
    folder = tmp_path / "llm"
    build(base, folder, config)
    with torch.no_grad():  # as in Qwen and Llama 3: the rows of no token are all alike
        language_model = AutoModelForCausalLM.from_pretrained(folder)
        for part in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            part.weight[400:] = 0.5
        language_model.save_pretrained(folder)
    options = {"num_dream_queries": 4, "template": "plain"}
    (model, processor), (again, _) = (
        build_from_foundations(folder, base / "clip", base / "sd", **options) for _ in range(2)
    )
    ids = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    for part, other in [
        (model.get_input_embeddings(), again.get_input_embeddings()),
        (model.get_output_embeddings(), again.get_output_embeddings()),
    ]:
        assert part.weight.shape[0] == 512 and torch.equal(part.weight, other.weight)
        assert torch.cdist(part.weight[ids], part.weight[ids]).fill_diagonal_(9).min() > 0.1
        assert (part.weight[408:] == 0.5).all()

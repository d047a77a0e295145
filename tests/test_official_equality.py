"""Our model computes what the authors' released code computes: tensors recorded from it, where they are at hand.

The recordings (a tiny random model: inputs, hidden states, conditions, losses, gradients, sampling) lie outside the
repository; without them these tests are skipped, and `test_golden.py` keeps the proof. Tolerance is 2e-5,
absolute, but for latents at the end of sampling.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPVisionConfig, LlamaConfig

from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.layout import IGNORE
from dreamllm.data.packing import pack
from dreamllm.model import diffusion
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.generate import query_states
from dreamllm.model.packed import gather_slots
from dreamllm.model.processor import DreamLLMProcessor
from dreamllm.model.sampling import guided_prediction, sample_latents
from dreamllm.official.convert import to_ours

FIXTURE = Path(__file__).parents[2] / "shared" / "official" / "fixture"
TOLERANCE = 2e-5
P, Q = 16, 8

pytestmark = pytest.mark.skipif(not FIXTURE.is_dir(), reason="the recordings of the official code are not here")


# ---- the official model as ours -------------------------------------------------------------------------------------


@lru_cache
def official_config() -> dict:
    return json.loads((FIXTURE / "config.json").read_text())


@lru_cache
def official_weights() -> dict[str, torch.Tensor]:
    weights = load_file(FIXTURE / "weights.safetensors")
    return {to_ours(name): tensor for name, tensor in weights.items() if "inv_freq" not in name}


def official_model(prediction_type: str = "epsilon") -> DreamLLMForConditionalGeneration:
    official = official_config()
    text, vision = official["config"], official["clip_config"]
    special = official["special_tokens2ids"]["additional_special_tokens"]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    config = DreamLLMConfig(
        text_config=LlamaConfig(
            **{name: text[name] for name in (*names, "vocab_size", "max_position_embeddings", "rms_norm_eps")},
            rope_parameters={"rope_type": "default", "rope_theta": text["rope_theta"]},
        ),
        vision_config=CLIPVisionConfig(**{name: vision[name] for name in (*names, "patch_size", "image_size")}),
        vae_config=official["vae_config"],
        unet_config=official["unet_config"],
        scheduler_config=official["scheduler_config"] | {"prediction_type": prediction_type},
        num_dream_queries=Q,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=official["special_tokens2ids"]["[PAD]"],
        **{f"{token[1:-1]}_token_id": id for token, id in special.items() if "_" in token},
    )
    model = DreamLLMForConditionalGeneration(config)
    model.load_state_dict(official_weights())  # strict: not a tensor missing or left over
    return model.train()


@lru_cache
def official_processor() -> DreamLLMProcessor:
    checkpoint = FIXTURE / "official_checkpoint"
    return DreamLLMProcessor(
        AutoImageProcessor.from_pretrained(checkpoint / "clip", backend="pil"),
        AutoTokenizer.from_pretrained(checkpoint / "dreamllm"),
        num_patches=P,
        num_dream_queries=Q,
        draw_size=32,
        context=512,
        template="vicuna_v1.1",
    )


@lru_cache
def recorded(case: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / f"{case}.safetensors")


@lru_cache
def meta() -> dict:
    return json.loads((FIXTURE / "meta.json").read_text())


def picture(name: str) -> Image.Image:
    return Image.open(FIXTURE / "images" / f"{name}.png")


def slots(input_ids: torch.Tensor, start_token: int) -> torch.Tensor:
    return (input_ids == start_token).nonzero() + torch.tensor([0, 1])


def noise(case: dict[str, torch.Tensor]) -> diffusion.DiffusionNoise | None:
    if "rng.00.randn" not in case:
        return None
    dropped = case["rng.03.bernoulli"].bool() if "rng.03.bernoulli" in case else None
    posterior, added, timesteps = case["rng.00.randn"], case["rng.01.randn_like"], case["rng.02.randint"]
    return diffusion.DiffusionNoise(posterior, added, None, timesteps, dropped)


class Differences:
    """Compares tensors, remembers the largest difference, prints it at the end of a test (see with pytest -s)."""

    def __init__(self, case: str):
        self.case, self.largest = case, {}

    def check(self, name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert ours.shape == theirs.shape, name
        self.largest[name] = (ours.detach() - theirs).abs().max().item() if ours.numel() else 0.0
        assert self.largest[name] <= TOLERANCE, f"{self.case}: {name} differs by {self.largest[name]:.2g}"

    def check_sampled(self, name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """By their size: guided steps add up to 26, and what one processor rounds otherwise than another with them."""
        self.check(f"{name}, as shares of the largest", ours / theirs.abs().max(), theirs / theirs.abs().max())

    def report(self) -> None:
        name = max(self.largest, key=self.largest.get)
        print(f"\n{self.case}: {len(self.largest)} tensors, largest difference {self.largest[name]:.2g} ({name})")


# ---- the training forward -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["interleaved_joint", "pair_creation", "pair_comprehension", "text_only", "loss_v", "loss_cfg_drop"]
)
def test_the_training_forward_equals_the_official_one(name):
    case, differences = recorded(name), Differences(name)
    model = official_model("v_prediction" if name == "loss_v" else "epsilon")
    config, unet_calls = model.config, record_calls(model.unet)
    mask = case["in.attention_mask"].bool()
    read_slots = slots(case["in.input_ids"], config.im_start_token_id)
    draw_slots = slots(case["in.input_ids"], config.dream_start_token_id)
    images, images_dm = case.get("in.images"), case.get("in.images_dm")
    if images is not None:
        differences.check("image_embeds", model.read(images), case["clip.image_embeds"])
    embeds = model.embed(case["in.input_ids"], images, read_slots, draw_slots)
    differences.check("inputs_embeds", embeds[mask], case["llm.inputs_embeds"][mask])
    output = model(inputs_embeds=embeds, attention_mask=case["in.attention_mask"])
    hidden = output.last_hidden_state
    differences.check("last_hidden_state", hidden[mask], case["llm.last_hidden_state"][mask])
    differences.check("logits", output.logits[mask], case["out.logits"][mask])

    language_loss = model.language_loss(hidden, case["in.labels"])
    states = gather_slots(hidden, draw_slots, Q)
    if "head.encoder_hidden_states" in case:
        differences.check("query states", states, case["head.encoder_hidden_states"])
    null_states = official_null_states(model, case, differences) if name == "loss_cfg_drop" else None
    diffusion_loss = model.diffusion_loss(states, images_dm, noise(case), null_states=null_states)
    if images_dm is not None:
        moments = model.vae.encode(images_dm).latent_dist.parameters
        differences.check("vae moments", moments, case["vae.moments"])
        (noisy, timesteps), options, prediction = unet_calls[0]
        differences.check("noisy latents", noisy, case["unet.noisy_latents"])
        assert torch.equal(timesteps, case["unet.timesteps"])
        differences.check("condition", options["encoder_hidden_states"], case["unet.cond"])
        differences.check("unet prediction", prediction.sample, case["unet.pred"])
    differences.check("diffusion loss", diffusion_loss.reshape(1), case["head.loss"])
    loss = language_loss + 10 * diffusion_loss
    differences.check("loss", loss.reshape(1), case["out.loss"])
    assert language_loss.item() == pytest.approx(meta()[name]["lm_loss"], abs=TOLERANCE)

    loss.backward()
    check_gradients(model, case, differences)
    differences.report()


@pytest.mark.parametrize("name", ["interleaved_joint", "pair_creation", "pair_comprehension", "text_only"])
def test_packed_into_one_row_by_our_layout_the_losses_and_gradients_are_the_official_ones(name):
    """The same documents, from text and pictures to tokens by our code, packed into a single row without padding."""
    case, differences = recorded(name), Differences(f"{name}, packed")
    model, processor = official_model(), official_processor()
    sequences = [sequence for document, mode in documents(name) for sequence in processor.lay_out(document, mode, 512)]
    batch = processor.collate(pack(sequences, 512))
    assert len(batch.input_ids) == 1
    if batch.draw_pixels is not None:
        mirrored = torch.tensor([flip for _, flip in meta()[name]["pictures"]["images_dm"]])[:, None, None, None]
        pixels = torch.where(mirrored, batch.draw_pixels.flip(-1), batch.draw_pixels)
        differences.check("pixels to draw", pixels, case["in.images_dm"])
        batch = batch.__class__(**vars(batch) | {"draw_pixels": pixels})
    if batch.read_pixels is not None:
        differences.check("pixels to read", batch.read_pixels, case["in.images"])
    output = model(**batch.inputs(), noise=noise(case))
    assert output.language_loss.item() == pytest.approx(meta()[name]["lm_loss"], abs=TOLERANCE)
    differences.check("diffusion loss", output.diffusion_loss.reshape(1), case["head.loss"])
    differences.check("loss", output.loss.reshape(1), case["out.loss"])
    output.loss.backward()
    check_gradients(model, case, differences)
    differences.report()


def record_calls(module: torch.nn.Module) -> list:
    calls: list = []
    module.register_forward_hook(lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True)
    return calls


def official_null_states(model, case, differences) -> torch.Tensor:
    """The official null condition of training: raw patch embeddings in the place of the queries, and a closing </s>."""
    config = model.config
    dream = [config.dream_start_token_id, *[config.im_patch_token_id] * Q, config.dream_end_token_id]
    ids = torch.tensor([[config.bos_token_id, *dream, config.eos_token_id]])
    states = model(inputs_embeds=model.embed(ids)).last_hidden_state[:, 2 : 2 + Q]
    differences.check("null states", states.expand(3, -1, -1), case["head.u_encoder_hidden_states"])
    return states


def check_gradients(model, case, differences) -> None:
    gradients = {name.removeprefix("grad."): tensor for name, tensor in case.items() if name.startswith("grad.")}
    parameters = dict(model.named_parameters())
    if gradients:
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        assert trained == {to_ours(name) for name in gradients}
    for name, gradient in gradients.items():
        differences.check(f"gradient of {to_ours(name)}", parameters[to_ours(name)].grad, gradient)


# ---- layout ---------------------------------------------------------------------------------------------------------


def documents(case: str) -> list[tuple[Document, str]]:
    """The recorded cases as Documents, with the mode in which they were laid out."""
    if case == "text_only":
        turns = [
            ("Who painted the ceiling?", "I do not know."),
            ("Hello there!", "Hello, how can I help you with the soup?"),
        ]
        return [
            (Document("chat", "conversation", (Text(question, "user"), Text(answer, "assistant"))), "joint")
            for question, answer in turns
        ]
    if case.startswith("pair"):
        captions = [("A photo of a dog running on the beach.", "img1"), ("A painting of a ship.", "img4")]
        return [
            (Document(name, "pair", (Text(text), Picture(picture(name)))), case.removeprefix("pair_"))
            for text, name in captions
        ]
    first = (
        Text("A small red fox walks across the snow."),
        Picture(picture("img0")),
        Text("The river bends slowly."),
        Picture(picture("img1")),
        Text("It ends at a clear blue lake."),
    )
    second = (
        Text("First chop the onions."),
        Picture(picture("img2")),
        Text("Then blend the soup until it is smooth and serve it with bread."),
    )
    return [(Document("fox", "interleaved", first), "joint"), (Document("soup", "interleaved", second), "joint")]


@pytest.mark.parametrize("name", ["interleaved_joint", "pair_creation", "pair_comprehension", "text_only"])
def test_the_layout_is_the_official_one(name):
    case, processor = recorded(name), official_processor()
    for row, (document, mode) in enumerate(documents(name)):
        (sequence,) = processor.lay_out(document, mode, 512)
        length = len(sequence)
        assert processor.tokenizer.convert_ids_to_tokens(list(sequence.input_ids)) == meta()[name]["tokens"][row]
        assert case["in.input_ids"][row, :length].tolist() == list(sequence.input_ids)
        assert case["in.labels"][row, 1:length].tolist() == list(sequence.labels[1:])  # <s> is never predicted
        assert (case["in.labels"][row, length:] == IGNORE).all()


def test_boundary_tokens_are_those_that_the_official_tokenizer_leaves():
    """The authors' tokenizer gives each stretch of text between special tokens to SentencePiece, with its spaces."""
    pieces = SentencePieceProcessor(model_file=str(FIXTURE / "official_checkpoint/dreamllm/tokenizer.model"))
    processor = copy.copy(official_processor())
    processor.boundary_tokens = True
    template = processor.vocabulary.template
    before = pieces.encode(f"{template.system} {template.user} ", out_type=str)
    after = pieces.encode(f" Who painted it? {template.assistant}", out_type=str)
    assert before[-1] == after[0] == "▁"
    parts = (Picture(Image.new("RGB", (32, 32)), "user"), Text("Who painted it?", "user"))
    sequence = processor.lay_out_prompt(Document("q", "conversation", parts), "comprehension")
    block = ["<im_start>", *["<im_patch>"] * P, "<im_end>"]
    found = processor.tokenizer.convert_ids_to_tokens(list(sequence.input_ids))
    assert found == ["<s>", *before, *block, *after]


# ---- drawing --------------------------------------------------------------------------------------------------------


def test_drawing_equals_the_official_sampler(monkeypatch):
    case, differences, facts = recorded("t2i_left_batch"), Differences("t2i_left_batch"), meta()["t2i_left_batch"]
    model, processor = official_model().eval(), official_processor()
    prompts = [Document(text, "text", (Text(text),)) for text in facts["prompts"]]
    states, null_states = query_states(model, processor, prompts), model.null_states()
    differences.check("conditions", states, case["prompt_embeds"])
    differences.check("null condition", null_states.expand_as(states), case["negative_prompt_embeds"])
    conditions = model.condition_projector(states)
    differences.check("projected conditions", conditions, case["prompt_embeds_projected"])

    scheduler = DDPMScheduler.from_config(model.config.scheduler_config)
    scheduler.set_timesteps(facts["steps"])
    assert scheduler.timesteps.tolist() == facts["timesteps"]
    null_conditions = model.condition_projector(null_states).expand_as(conditions)
    latents = case["latents0"]
    for step, timestep in enumerate(scheduler.timesteps):
        both = case[f"step{step}.noise_pred_uncond_text"]
        unguided, conditional = both.chunk(2)
        prediction = guided_prediction(model, latents, timestep, conditions, null_conditions, facts["guidance_scale"])
        expected = unguided + facts["guidance_scale"] * (conditional - unguided)
        differences.check(f"prediction {step}", prediction, expected)
        latents = case[f"step{step}.latents"]

    fresh = iter([case[f"step_noise.rng.{step:02}.randn"] for step in range(facts["steps"])])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(fresh))
    states, null_states = case["prompt_embeds"], case["negative_prompt_embeds"][:1]
    latents = sample_latents(model, states, null_states, case["latents0"], scheduler, facts["guidance_scale"])
    differences.check_sampled("latents", latents, case[f"step{facts['steps'] - 1}.latents"])
    pixels = model.vae.decode(latents / model.vae.config.scaling_factor).sample / 2 + 0.5
    differences.check("picture", pixels.clamp(0, 1), case["image_01"])
    differences.report()

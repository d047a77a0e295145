"""Conventions of transformers for who trains or shrinks a model: Trainer, peft, quantisation, device maps."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
)
from transformers.quantizers.base import HfQuantizer

import tiny
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.layout import IGNORE
from dreamllm.data.packing import pack
from dreamllm.model import generate
from dreamllm.model.sampling import PictureSampling

GREEDY = {"max_new_tokens": 5, "do_sample": False}
WHOLE = ("vae", "unet", "visual_projector", "condition_projector")  # what is never quantised


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for part in tiny.build():
        part.save_pretrained(folder)
    return folder


def load(folder: Path, **options):
    return AutoModelForImageTextToText.from_pretrained(folder, **options), AutoProcessor.from_pretrained(folder)


def conversation() -> list[dict]:
    return [
        {
            "role": "user",
            "content": [{"type": "image", "image": tiny.picture()}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]


def texts_and_labels(processor) -> dict[str, torch.Tensor]:
    """A batch as LLaVA's users make it: the processor's output, and labels."""
    options = {"tokenize": True, "return_dict": True, "processor_kwargs": {"padding_side": "right"}}
    batch = dict(processor.apply_chat_template([conversation(), conversation()], **options))
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE)}


# ---- Trainer --------------------------------------------------------------------------------------------------------


def packed_rows(processor):
    """What Trainer needs to train on documents: a list of rows, and the processor's `collate` as its collator."""
    sequences = [s for seed in range(4) for s in processor.lay_out(tiny.story(seed), "joint", 128)]
    return pack(sequences, 128), lambda rows: processor.collate(list(rows)).inputs()


def test_trainer_trains_both_losses_and_evaluates_with_metrics(folder, tmp_path):
    model, processor = load(folder)
    rows, collator = packed_rows(processor)
    before, seen = model.dream_queries.detach().clone(), []

    def metrics(prediction) -> dict[str, float]:
        logits, labels = prediction
        assert logits.shape[:2] == labels.shape and logits.shape[2] == model.config.text_config.vocab_size
        seen.append(len(labels))
        hits = (logits[:, :-1].argmax(-1) == labels[:, 1:])[labels[:, 1:] != IGNORE]
        return {"accuracy": float(np.mean(hits))}

    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collator, compute_metrics=metrics
    )
    assert trainer.model_accepts_loss_kwargs is False
    trainer.train()
    measured = trainer.evaluate()
    assert seen == [len(rows)] and 0 <= measured["eval_accuracy"] <= 1 and measured["eval_loss"] > 0
    assert not torch.equal(model.dream_queries, before)


def test_accumulated_micro_batches_weigh_as_one_batch(folder, tmp_path):
    model, processor = load(folder)
    batch = {name: value[:1] for name, value in texts_and_labels(processor).items()}
    arguments = TrainingArguments(tmp_path, gradient_accumulation_steps=2, use_cpu=True, report_to="none")
    trainer = Trainer(model, arguments)
    trainer.current_gradient_accumulation_steps = 2
    loss = trainer.training_step(model, dict(batch), num_items_in_batch=torch.tensor(100))
    assert loss.item() == pytest.approx(model(**batch).loss.item() / 2, rel=1e-5)


def test_the_loss_of_a_padded_batch_is_that_of_its_packed_documents(folder):
    model, processor = load(folder)
    batch = texts_and_labels(processor)
    parts = (Picture(tiny.picture(), "user"), Text("What is it?", "user"), Text("A dog.", "assistant"))
    (sequence,) = processor.lay_out(Document("", "conversation", parts), "joint", 256)
    packed = processor.collate([[sequence, sequence]]).inputs()
    answers = (packed["labels"][0, : len(sequence)] != IGNORE).repeat(2, 1)
    batch["labels"] = batch["labels"].masked_fill(~answers, IGNORE)
    assert model(**batch).language_loss.item() == pytest.approx(model(**packed).language_loss.item(), rel=1e-5)


def test_gradient_checkpointing_changes_no_gradient(folder):
    model, processor = load(folder)
    rows, collator = packed_rows(processor)
    batch = collator(rows[:1])
    noise = model.draw_noise(len(batch["draw_slots"]), torch.Generator().manual_seed(0))

    def gradients() -> torch.Tensor:
        model.zero_grad()
        model.train()(**batch, noise=noise).loss.backward()
        layer = model.language_model.model.layers[0]
        return torch.cat([model.dream_queries.grad.flatten(), layer.mlp.up_proj.weight.grad.flatten()])

    wanted = gradients()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 6 has another name for it
        model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    assert torch.allclose(gradients(), wanted, atol=1e-6)
    model.gradient_checkpointing_disable()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


# ---- peft -----------------------------------------------------------------------------------------------------------


def test_peft_trains_adapters_on_the_language_model_and_loads_them(folder, tmp_path):
    peft = pytest.importorskip("peft")
    model, processor = load(folder)
    batch = texts_and_labels(processor)
    before = model(**batch).loss.item()
    targets = r"language_model\..*_proj"
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 2 and all(".language_model." in name and "lora" in name for name in trained)
    adapted(**batch).loss.backward()
    wanted = adapted.eval()(**batch).loss.item()
    assert wanted != pytest.approx(before, rel=1e-4)
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(load(folder)[0], tmp_path).eval()
    assert loaded(**batch).loss.item() == pytest.approx(wanted, rel=1e-6)
    prompt = processor.prompts([tiny.text()])
    assert torch.equal(loaded.generate(**prompt, **GREEDY), adapted.generate(**prompt, **GREEDY))
    assert loaded.merge_and_unload()(**batch).loss.item() == pytest.approx(wanted, rel=1e-5)


# ---- device maps, precision, quantisation ---------------------------------------------------------------------------


def test_no_layer_is_split_between_devices_and_offloaded_layers_compute_the_same(folder, tmp_path):
    model, processor = load(folder)
    assert {"LlamaDecoderLayer", "CLIPEncoderLayer", "BasicTransformerBlock"} <= set(model._no_split_modules)
    inner = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    here = [
        *(f"language_model.{name}" for name in inner),
        "vision_model",
        "vae",
        "dream_queries",
        "condition_projector",
    ]
    devices = dict.fromkeys(here, "cpu")
    devices |= dict.fromkeys(["language_model.model.layers.1", "visual_projector", "unet"], "disk")
    offloaded, _ = load(folder, device_map=devices, offload_folder=tmp_path)
    assert offloaded.language_model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    inputs = processor(text="This is <image> .", images=tiny.picture())
    with torch.no_grad():
        assert torch.allclose(offloaded(**inputs).logits, model(**inputs).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_vae_stays_in_fp32_and_a_model_in_half_precision_reads_and_draws(folder, dtype):
    model, processor = load(folder, dtype=dtype)
    assert model.dtype == model.vision_model.dtype == model.language_model.dtype == dtype
    assert model.vae.dtype == torch.float32
    assert model.unet.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    reads_and_draws(model, processor)


def reads_and_draws(model, processor) -> None:
    """Caption a picture by transformers' `generate`, draw one, and check the loss's values."""
    prompt = processor(text="<image> is", images=tiny.picture()).to(model.device, model.dtype)
    assert model.generate(**prompt, **GREEDY).shape[1] > prompt["input_ids"].shape[1]
    (drawn,) = generate.draw(model, processor, [tiny.text()], [0], PictureSampling(steps=2))
    assert drawn.size == (16, 16)
    batch = processor.collate(pack(processor.lay_out(tiny.story(1), "joint", 256), 256)).to(model.device)
    with torch.no_grad():
        assert torch.isfinite(model(**batch.inputs()).loss)


def test_quantisation_leaves_out_what_draws_and_what_projects(folder):
    """What bitsandbytes and torchao ask transformers for; runs without them."""
    model, _ = load(folder)
    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    assert {*WHOLE, "language_model.lm_head"} <= set(skipped)


@pytest.fixture
def bitsandbytes(monkeypatch):
    """The library, without its kernel for CPUs with AVX512-BF16, which needs widths of a multiple of 32."""
    library = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    return library


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_loads_reads_and_draws(folder, bitsandbytes, bits):
    model, processor = load(folder, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}))
    kind = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
    quantised = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert len([name for name in quantised if name.startswith("language_model.model.layers")]) == 2 * 7
    assert not any(name.startswith(WHOLE) for name in quantised)
    reads_and_draws(model, processor)


def test_qlora_trains_adapters_on_a_model_in_4_bits(folder, bitsandbytes):
    peft = pytest.importorskip("peft")
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model, processor = load(folder, quantization_config=options)
    model = peft.prepare_model_for_kbit_training(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=r"language_model\..*_proj"))
    batch = texts_and_labels(processor)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model.train()(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_torchao_loads_reads_and_draws(folder):
    quantization = pytest.importorskip("torchao.quantization")
    options = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model, processor = load(folder, quantization_config=options)
    weight = model.language_model.model.layers[0].mlp.up_proj.weight
    assert type(weight) is not torch.nn.Parameter and type(model.unet.conv_in.weight) is torch.nn.Parameter
    reads_and_draws(model, processor)

"""Low-rank adapters: what is trained, what a checkpoint holds, and that it restores the trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ranks
import test_train
import tiny
from dreamllm.config.experiment import Experiment
from dreamllm.config.stages import Lora
from dreamllm.data.packing import pack
from dreamllm.train import checkpoint, lora, peft_adapter

pytest.importorskip("peft")
RANK = 3
STAGE = {"lora": {"rank": RANK, "alpha": 12.0}, "steps": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return test_train.write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    return test_train.run(world, tmp_path_factory.mktemp("lora"), test_train.experiment(**STAGE))


def test_a_checkpoint_holds_adapters_embeddings_and_head_but_no_adapted_weight(trained):
    tensors = load_file(trained / "trained.safetensors")
    layer = "language_model.model.layers.1.mlp.down_proj"
    assert tensors[f"{layer}.lora_A"].shape == (RANK, 64) and tensors[f"{layer}.lora_B"].shape == (32, RANK)
    assert f"{layer}.weight" not in tensors and tensors[f"{layer}.lora_B"].abs().max() > 0
    whole = {name for name in tensors if not name.endswith((".lora_A", ".lora_B"))}
    parts = {"dream_queries", "visual_projector.weight", "visual_projector.bias", "condition_projector.weight"}
    assert whole == {*parts, "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    assert sum(name.endswith(".lora_A") for name in tensors) == 2 * 7
    assert json.loads((trained / "checkpoint.json").read_text())["config"]["lora"] == {"rank": RANK, "alpha": 12.0}


def test_the_loaded_model_computes_what_the_adapted_one_did():
    adapted, processor = tiny.build()
    adapted.train_only(test_train.EVERYTHING)
    lora.add_adapters(adapted, Lora(rank=RANK, alpha=12.0), seed=0)
    batch = processor.collate(pack(processor.lay_out(tiny.story(1), "joint", 200), 200))
    noise = adapted.draw_noise(len(batch.draw_slots), torch.Generator().manual_seed(0))
    plain, _ = tiny.build()
    before = plain(**batch.inputs(), noise=noise).loss.item()
    assert adapted(**batch.inputs(), noise=noise).loss.item() == pytest.approx(before, rel=1e-6)  # B is zero
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    wanted = adapted(**batch.inputs(), noise=noise).loss.item()
    tensors = lora.checkpoint_tensors(checkpoint.trained_parameters(adapted), Lora(rank=RANK, alpha=12.0))
    assert wanted != pytest.approx(before, rel=1e-3)
    for name in [name for name in tensors if name.endswith(lora.A)]:
        weight = plain.get_parameter(lora.target_parameter(name))
        lora.merge(weight, tensors[name], tensors[name.removesuffix(lora.A) + lora.B])
    assert plain(**batch.inputs(), noise=noise).loss.item() == pytest.approx(wanted, rel=1e-5)


def test_loading_adds_the_adapters_to_the_weights_of_earlier_stages(world, trained):
    options = json.loads((trained / "checkpoint.json").read_text())["model"]
    fresh = checkpoint.load_model(world / "foundations", [], options)[0].state_dict()
    loaded, _ = checkpoint.load_model(world / "foundations", [trained])
    assert set(loaded.state_dict()) == set(fresh)  # a model like any other
    weight = "language_model.model.layers.0.self_attn.q_proj.weight"
    change = loaded.state_dict()[weight] - fresh[weight]
    assert torch.linalg.matrix_rank(change, atol=1e-5) == RANK
    norm = "language_model.model.norm.weight"
    assert torch.equal(loaded.state_dict()[norm], fresh[norm])


def test_peft_loads_a_checkpoint_onto_the_model_that_its_stage_started_from(world, trained, tmp_path):
    from peft import PeftModel

    peft_adapter.export_adapter(trained, tmp_path / "adapter")
    options = json.loads((trained / "checkpoint.json").read_text())["model"]
    base, processor = checkpoint.load_model(world / "foundations", [], options)
    inputs = processor.prompts([tiny.story(1)])
    before = base(**inputs).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    wanted = checkpoint.load_model(world / "foundations", [trained])[0]
    assert torch.allclose(adapted(**inputs).logits, wanted(**inputs).logits, atol=1e-5)
    assert not torch.allclose(before, wanted(**inputs).logits, atol=1e-3)
    merged = adapted.merge_and_unload()
    assert torch.equal(merged.dream_queries, wanted.dream_queries)
    with pytest.raises(checkpoint.CheckpointProblem, match="has no low-rank adapters"):
        peft_adapter.export_adapter(
            test_train.run(world, tmp_path, test_train.experiment(steps=1)), tmp_path / "nothing"
        )


def test_adapters_that_do_not_fit_are_named(world, trained, tmp_path):
    tensors = load_file(trained / "trained.safetensors")
    name = "language_model.model.layers.0.self_attn.q_proj"
    tensors[f"{name}.lora_B"] = torch.zeros(5, RANK)
    tensors["elsewhere.lora_A"], tensors["elsewhere.lora_B"] = torch.zeros(RANK, 2), torch.zeros(2, RANK)
    save_file(tensors, tmp_path / "trained.safetensors")
    model, _ = tiny.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(checkpoint.CheckpointProblem) as error:
        checkpoint.load_trained(model, tmp_path)
    assert "no elsewhere.weight" in str(error.value) and f"{name}.lora_A is [5, 32] in the file" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_two_sharded_processes_and_a_restart_train_the_same_adapters(world, trained, tmp_path):
    settings = test_train.experiment(**STAGE)
    sharded = Experiment.model_validate(
        {**settings.model_dump(mode="json"), "machine": {"sharding": "full_shard", "gradient_checkpointing": True}}
    )
    errors = ranks.run(2, lambda rank: test_train.run(world, tmp_path, sharded), tmp_path)
    assert errors == ["", ""]
    for row, wanted in zip(test_train.losses(tmp_path / "out"), test_train.losses(trained), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_adapters_do_not_replace_the_language_model_of_the_stage_before():
    base = test_train.experiment().model_dump(mode="json")
    igpt = base["stages"]["igpt"]
    base["stages"] = {"igpt": igpt, "sft": {**igpt, "init": ["igpt"]}, "small": {**igpt, **STAGE, "init": ["igpt"]}}
    experiment = Experiment.model_validate(base)
    assert experiment.lineage("sft") == ["sft"] and experiment.lineage("small") == ["igpt", "small"]


def test_adapters_without_the_language_model_among_the_trained_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"stages.igpt.lora: adapters train the language_model"):
        test_train.experiment(**STAGE, trains=["dream_queries"])

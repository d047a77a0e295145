"""What an experiment costs: the arithmetic on cases worked out by hand, the shapes of real models, the printed plan."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import repository
import tiny
from dreamllm import cli
from dreamllm.config.machine import Machine
from dreamllm.config.reading import ConfigProblem, load
from dreamllm.config.stages import Lora, Stage
from dreamllm.repro.plan import arithmetic, evaluation, report
from dreamllm.repro.plan.architecture import PlanProblem, build, configurations, measure, parameters_by_part
from dreamllm.repro.plan.arithmetic import DocumentKind, Load, Size

ARCHITECTURES = repository.ROOT / "paper/architectures"
ASSUMPTIONS = repository.ROOT / "paper/assumptions.yaml"

# A model of round numbers: language model 1000, of which 200 are embeddings and head; 3 layers of width 4.
PARTS = {"language_model": 1000, "vision_model": 300, "vae": 40, "unet": 160}
PARTS |= {"visual_projector": 20, "dream_queries": 8, "condition_projector": 12}
SIZE = Size(
    parameters=PARTS, layers=3, hidden=4, intermediate=10, key_value_share=0.5, vocabulary=50, embeddings=200,
    clip=7.0, vae=11.0, unet=13.0, unet_saved=500.0, unet_kept=100.0, vae_peak=200.0, patches=6, queries=3,
)  # fmt: skip


def stage(**changes) -> Stage:
    fields = {"trains": ["language_model"], "mode": "joint", "mixture": {"pairs": 1}, "steps": 10}
    return Stage(**fields | {"rows_per_batch": 8, "context": 16, "learning_rate": 1e-3} | changes)


# ---- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode", "expected"),
    [
        (DocumentKind("text", 10), "joint", Load(12, 10, 0, 0)),
        (DocumentKind("pair", 10, 1), "comprehension", Load(12 + 8, 10, 1, 0)),  # <im_start> 6 patches <im_end>
        (DocumentKind("pair", 10, 1), "creation", Load(12 + 5, 0, 0, 1)),  # <dream_start> 3 queries <dream_end>
        (DocumentKind("pair", 10, 1), "joint", Load(12 + 0.25 * 8 + 0.75 * 5, 2.5, 0.25, 0.75)),
        (DocumentKind("interleaved", 20, 2), "joint", Load(22 + 2 * (8 + 5), 20, 2, 2)),
        (DocumentKind("interleaved", 20, 2), "creation", Load(22 + 2 * 5, 20, 0, 2)),
        (DocumentKind("conversation", 20, 1, 2, 0.5), "comprehension", Load(22 + 3 * 8, 10, 3, 0)),
        (DocumentKind("conversation", 20, 1, 2, 0.5), "creation", Load(22 + 2 * 8 + 5, 10, 2, 1)),
    ],
)
def test_a_document_is_as_long_as_its_layout(kind, mode, expected):
    assert arithmetic.document_load(kind, mode, 0.25, 6, 3) == expected


def test_a_document_is_as_long_as_layout_makes_it():
    _, processor = tiny.build()
    for document in (tiny.pair(), tiny.story(), tiny.text(), tiny.conversation()):
        layout = "interleaved" if document.kind == "interleaved" else document.kind
        for mode in ("comprehension", "creation", "joint"):
            if document.kind == "pair" and mode == "joint":
                continue
            sequences = processor.lay_out(document, mode, 256)
            read = sum(len(sequence.read_slots) for sequence in sequences)
            drawn = sum(len(sequence.draw_slots) for sequence in sequences)
            shown = sum(part.role == "user" for part in document.parts if hasattr(part, "image"))
            pictures = len(document.pictures) - shown
            patches, queries = processor.num_patches, processor.num_dream_queries
            text = sum(map(len, sequences)) - 2 - read * (patches + 2) - drawn * (queries + 2)
            found = arithmetic.document_load(DocumentKind(layout, text, pictures, shown), mode, 0.5, patches, queries)
            assert (found.tokens, found.read, found.drawn) == (sum(map(len, sequences)), read, drawn), (layout, mode)


def test_a_mixture_is_the_weighted_mean_and_fills_the_rows():
    kinds = {"pairs": DocumentKind("pair", 10, 1), "text": DocumentKind("text", 2)}
    of = stage(mode="comprehension", mixture={"pairs": 1, "text": 3})
    mean = arithmetic.mixture_load(of, kinds, 6, 3)
    assert mean == Load(0.25 * 20 + 0.75 * 4, 0.25 * 10 + 0.75 * 2, 0.25, 0)
    assert arithmetic.documents_per_step(of, mean, 0.5) == 8 * 16 * 0.5 / 8


# ---- FLOPs -----------------------------------------------------------------------------------------------------------


def test_flops_of_a_step_by_hand():
    load = Load(tokens=100, targets=30, read=5, drawn=2)
    forward = 100 * (2 * 800 + 4 * 16 * 4 * 3)
    assert arithmetic.language_forward(SIZE, 100, 16) == forward
    of = stage(trains=["language_model", "visual_projector"])
    assert arithmetic.step_flops(SIZE, of, Machine(), load) == {
        "language model": 3 * forward,
        "head": 3 * 2 * 50 * 4 * 30,
        "CLIP": 35.0,
        "VAE": 22.0,
        "UNet": 2 * 26.0,
    }
    draws = arithmetic.step_flops(SIZE, stage(noise_draws=4), Machine(), load)
    assert (draws["UNet"], draws["VAE"]) == (4 * 2 * 26.0, 22.0)


def test_frozen_parts_cost_less_and_recomputing_more():
    load = Load(100, 30, 5, 2)
    forward = arithmetic.language_forward(SIZE, 100, 16)
    frozen = stage(trains=["dream_queries"], loss_weights={"language": 0, "diffusion": 1})
    again = arithmetic.step_flops(SIZE, frozen, Machine(gradient_checkpointing=True), load)
    assert (again["language model"], again["head"], again["UNet"]) == (3 * forward, 0, 3 * 26.0)
    reading = stage(trains=["visual_projector"], loss_weights={"language": 1, "diffusion": 0})
    costs = arithmetic.step_flops(SIZE, reading, Machine(), load)
    assert (costs["language model"], costs["VAE"], costs["UNet"]) == (2 * forward, 0, 0)
    adapted = arithmetic.step_flops(SIZE, stage(lora=Lora()), Machine(), load)
    assert adapted["language model"] == 2 * forward


@pytest.mark.parametrize(
    ("chosen", "pictures", "trains", "language", "unet"),
    [
        (True, None, [], 4, 3),
        (True, 1, [], 4, 2),
        (True, 1, ["unet"], 4, 5),
        ({"language_model": 2}, 1, [], 3 + 2 / 3, 2),
        ({"language_model": 3, "unet": 2}, None, [], 3 + 1 / 3, 2.5),
        ({"unet": 1}, 1, ["unet"], 3, 5),
    ],
)
def test_flops_of_checkpointed_layers_by_hand(chosen, pictures, trains, language, unet):
    machine = Machine.model_validate({"gradient_checkpointing": chosen, "pictures_at_a_time": pictures})
    costs = arithmetic.step_flops(SIZE, stage(trains=["language_model", *trains]), machine, Load(100, 30, 5, 2))
    forward = arithmetic.language_forward(SIZE, 100, 16)
    assert costs["language model"] == pytest.approx(language * forward)
    assert costs["UNet"] == pytest.approx(unet * 26.0)


def test_the_alignment_loss_costs_clip_and_a_trained_unet_its_gradients():
    load = Load(100, 30, 5, 2)
    aligned = stage(loss_weights={"language": 1, "diffusion": 0, "alignment": 1})
    costs = arithmetic.step_flops(SIZE, aligned, Machine(), load)
    assert (costs["CLIP"], costs["VAE"], costs["UNet"]) == (35.0 / 5 * 7, 0, 0)
    decoder = stage(trains=["unet"], loss_weights={"language": 0, "diffusion": 1})
    assert arithmetic.step_flops(SIZE, decoder, Machine(), load)["UNet"] == 3 * 26.0
    memory = arithmetic.gpu_memory(SIZE, decoder, Machine(gpus=1), Load(128, 40, 0, 4))
    assert (memory["weights"], memory["gradients"]) == (4 * 1540, 4 * SIZE.parameters["unet"])


def test_a_connector_by_hand():
    size = dataclasses.replace(SIZE, connector=17.0, connector_saved=30.0)
    load = Load(128, 40, 0, 16)
    assert arithmetic.step_flops(size, stage(), Machine(), load)["connector"] == 16 * 3 * 17.0
    memory = arithmetic.gpu_memory(size, stage(), Machine(gpus=1, rows_at_a_time=2, pictures_at_a_time=1), load)
    assert memory["activations of the connector"] == 4 * 30.0, "of all pictures of two rows of eight"
    reading = stage(loss_weights={"language": 1, "diffusion": 0})
    assert not arithmetic.step_flops(size, reading, Machine(), load)["connector"]


def test_hours_of_a_gpu():
    assert arithmetic.gpu_hours(3600 * 312e12, 312e12, 0.5) == 2


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_adapters_by_hand():
    # rank 2; q and o 2 x (4 + 4), k and v 2 x (4 + 2), gate and up 2 x (4 + 10), down 10 + 4; 3 layers
    assert arithmetic.lora_parameters(SIZE, 2) == 2 * (16 + 12 + 28 + 14) * 3
    trained = arithmetic.trained_parameters(SIZE, stage(trains=["language_model", "dream_queries"], lora={"rank": 2}))
    assert trained == {"language_model": 200 + 420, "dream_queries": 8}


def test_memory_of_one_gpu_by_hand():
    of = stage(trains=["language_model"], rows_per_batch=8)
    layer = 20 * 4 + 4 * 4 * 2 + 2 * 4 + 8 * 10
    assert arithmetic.layer_activations(SIZE) == layer
    memory = arithmetic.gpu_memory(SIZE, of, Machine(gpus=1), Load(128, 40, 0, 4))
    assert memory == {
        "weights": 4 * 1540,
        "gradients": 4 * 1000,
        "optimiser state": 8 * 1000,
        "bf16 copies": 2 * (1040 + 160),
        "activations of the language model": 8 * 16 * 3 * layer,
        "activations of UNet or VAE": 4 * 500,
        "logits": 10 * 50 * 40,
        "reserve": arithmetic.RESERVED,
    }


@pytest.mark.parametrize(
    ("sharding", "copies"), [("shard_grad_op", 2 * 1040), ("full_shard", 2 * 1040 * 2 / 3), ("none", 2 * 1000)]
)
def test_memory_of_sharded_training_by_hand(sharding, copies):
    machine = Machine(gpus=2, nodes=2, sharding=sharding, rows_at_a_time=1, pictures_at_a_time=1)
    machine = machine.model_copy(update={"gradient_checkpointing": True})
    memory = arithmetic.gpu_memory(SIZE, stage(), machine, Load(128, 40, 0, 16))
    parts = 1 if sharding == "none" else 4
    assert memory["weights"] == 4 * (500 + 1040 / parts)
    # exchanged after the last of two micro-batches, so not sharded before
    assert memory["gradients"] == 4 * 1000 / (parts if sharding == "full_shard" else 1)
    assert memory["optimiser state"] == 8 * 1000 / parts
    assert memory["bf16 copies"] == pytest.approx(copies)
    assert memory["activations of the language model"] == 16 * (4 * 4 * 3 + arithmetic.layer_activations(SIZE))
    assert memory["activations of UNet or VAE"] == 500, "of one picture, for whose gradient the UNet runs once"
    assert memory["logits"] == 10 * 50 * 5, "of one row of eight"


def test_memory_of_moments_in_8_bits_by_hand():
    memory = arithmetic.gpu_memory(SIZE, stage(), Machine(gpus=1, optimizer="adamw_8bit"), Load(128, 40, 0, 4))
    assert memory["optimiser state"] == 2 * 1000 * (1 + 4 / 256)


def test_memory_of_every_nth_layer_by_hand():
    layer = arithmetic.layer_activations(SIZE)
    for every, kept, whole in (("none", 0, 3), (3, 1, 3), (2, 2, 2), (1, 3, 1)):  # one checkpointed layer is whole too
        machine = Machine.model_validate({"gradient_checkpointing": {"language_model": every, "unet": 2}})
        memory = arithmetic.gpu_memory(SIZE, stage(), machine, Load(128, 40, 0, 4))
        assert memory["activations of the language model"] == 8 * 16 * (16 * kept + whole * layer), every
        assert memory["activations of UNet or VAE"] == 4 * (500 + 100) / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.booleans(), st.sampled_from(["none", "shard_grad_op", "full_shard"]))
def test_more_gpus_never_need_more_memory_on_each(gpus, nodes, checkpointing, sharding):
    def need(gpus: int, sharding: str) -> float:
        machine = Machine(gpus=gpus, nodes=nodes, sharding=sharding, gradient_checkpointing=checkpointing)
        return sum(arithmetic.gpu_memory(SIZE, stage(rows_per_batch=64), machine, Load(1024, 300, 9, 9)).values())

    assert need(2 * gpus, sharding) <= need(gpus, sharding)
    assert need(2 * gpus, "full_shard") <= need(2 * gpus, "shard_grad_op")


# ---- shapes ----------------------------------------------------------------------------------------------------------

# Qwen2.5-1.5B (the special tokens' rows are counted once, being tied), SigLIP 2 So400m, SANA 0.6B with DC-AE.
MODERN = {
    "language_model": 1_543_714_304 + 8 * 1536,
    "vision_model": 427_888_064,
    "vae": 312_250_275,
    "transformer": 591_747_872,
    "visual_projector": 1152 * 1536 + 1536 + 1536 * 1536 + 1536,
    "dream_queries": 64 * 1536,
}


def connector_parameters(layers: int, width: int = 1536, out: int = 2304) -> int:
    """Layers of Qwen2 (with biases of q, k and v), their norm, and the two-layer MLP with its norm."""
    layer = 4 * width**2 + 3 * width + 3 * width * 4 * width + 2 * width
    return layers * layer + width + width * out + out + out * out + out + out


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            "paper",
            {
                "language_model": 6_738_415_616
                + 2 * 8 * 4096,  # LLaMA-7B, and the special tokens in embeddings and head
                "vision_model": 303_179_776,
                "vae": 83_653_863,
                "unet": 865_910_724,
                "visual_projector": 1024 * 4096 + 4096,
                "dream_queries": 64 * 4096,
                "condition_projector": 4096 * 1024,
            },
        ),
        (
            "single_gpu",
            {
                "language_model": 1_100_048_384 + 2 * 8 * 2048,
                "vision_model": 85_799_424,
                "vae": 83_653_863,
                "unet": 859_520_964,
                "visual_projector": 768 * 2048 + 2048,
                "dream_queries": 64 * 2048,
                "condition_projector": 2048 * 768,
            },
        ),
        ("modern", MODERN | {"condition_projector": connector_parameters(2)}),
        ("metaquery", MODERN | {"condition_projector": connector_parameters(24)}),
    ],
)
def test_the_real_models_build_without_storage(config, expected, monkeypatch):
    monkeypatch.chdir(repository.ROOT)
    experiment = load(f"config/{config}.yaml")
    model = build(configurations(experiment), experiment.model)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert parameters_by_part(model) == expected
    assert (model.config.num_patches, model.config.draw_size) == ({"single_gpu": 196}.get(config, 256), 512)


def test_every_public_foundation_has_its_architecture():
    for path in sorted((repository.ROOT / "config").glob("*.yaml")):
        experiment = load(path)
        if experiment.foundations.source in ("hub", "import"):
            configurations(experiment, ARCHITECTURES)
    for path in ARCHITECTURES.glob("*.json"):
        assert json.loads(path.read_text())["source"], path


def test_a_tiny_model_is_measured():
    model, _ = tiny.build()
    size = measure(model.to("meta"))
    assert size.parameters == parameters_by_part(model)
    assert (size.layers, size.hidden, size.key_value_share, size.patches, size.queries) == (2, 32, 0.5, 16, 4)
    first = model.vision_model.embeddings.patch_embedding.weight.numel()
    layer = sum(p.numel() for p in model.vision_model.encoder.layers[0].parameters() if p.ndim == 2)
    scores = 2 * 2 * 17 * 17 * 24
    assert size.clip == 2 * 16 * first + 3 * (2 * 17 * layer + scores)
    assert 0 < size.unet_kept < size.unet_saved


def test_adapters_are_counted_as_peft_makes_them():
    from dreamllm.train import lora

    model, _ = tiny.build()
    size = measure(tiny.build()[0].to("meta"))
    model.train_only(["language_model"])
    lora.add_adapters(model, Lora(rank=3, alpha=6), seed=0)
    made = sum(p.numel() for p in model.language_model.parameters() if p.requires_grad)
    assert arithmetic.trained_parameters(size, stage(lora=Lora(rank=3, alpha=6))) == {"language_model": made}


def test_foundations_in_a_folder_or_a_store_are_read_there(tmp_path, monkeypatch):
    monkeypatch.chdir(repository.ROOT)
    experiment = load("config/embedded.yaml")
    elsewhere = experiment.foundations.model_copy(update={"folder": str(tmp_path / "none")})
    stored = configurations(experiment.model_copy(update={"foundations": elsewhere}))
    assert stored["llm"]["model_type"] == "llama" and "block_out_channels" in stored["unet"]
    there = experiment.foundations.model_copy(update={"folder": str(tiny.foundations(tmp_path / "there"))})
    found = configurations(experiment.model_copy(update={"foundations": there}))
    assert found["llm"]["hidden_size"] == 32 and found["scheduler"]["beta_schedule"] == "scaled_linear"


def test_an_experiment_that_cannot_be_planned_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(repository.ROOT)
    smoke = load("config/smoke.yaml")
    nowhere = smoke.foundations.model_copy(update={"folder": str(tmp_path)})
    with pytest.raises(PlanProblem, match="do not exist yet; train them first"):
        configurations(smoke.model_copy(update={"foundations": nowhere}))
    paper = load("config/paper.yaml")
    unknown = paper.foundations.model_copy(update={"folder": str(tmp_path), "llm": "other-7b"})
    with pytest.raises(PlanProblem, match="no architecture file of other-7b .* vicuna-7b-v1.1"):
        configurations(paper.model_copy(update={"foundations": unknown}))


# ---- the printed plan ------------------------------------------------------------------------------------------------


def test_the_plan_of_the_paper(monkeypatch, capsys):
    monkeypatch.chdir(repository.ROOT)
    cli.main(["plan", "--config", "config/paper.yaml", "--utilisation", "0.5"])
    text = capsys.readouterr().out
    assert "language_model           6,738,481,152" in text
    for name in load("config/paper.yaml").stages:
        assert f"stage {name}: " in text
    assert "A800: 3.12e+14 FLOP/s in bf16, of which training reaches 50%" in text
    assert "does NOT fit" not in text
    hours = [float(number.replace(",", "")) for number in re.findall(r"GPU-hours +([\d,.]+), ", text)]
    whole = float(re.search(r"all stages +([\d,.]+) GPU-hours", text)[1].replace(",", ""))
    assert sum(hours) == pytest.approx(whole, rel=1e-3)
    assert "a document of mmc4_core: 380 tokens of text, 3 picture(s)" in text
    assert "images to generate" in text and "assumed: a A800 reaches" in text


def test_the_images_of_an_evaluation_by_hand(monkeypatch):
    monkeypatch.chdir(repository.ROOT)
    paper = load("config/paper.yaml")
    assert evaluation.seconds_per_picture(paper, 1e12, 300e12, 0.5) == pytest.approx(150 * 2 * 1e12 / 150e12)
    found = {(one.model, one.benchmark): one for one in evaluation.generations(paper)}
    coco = found["sft", "coco_fid"]
    assert (coco.prompts, coco.samples, coco.pictures) == (30_000, 8, 240_000)
    assert found["sd", "in_context"].samples == 1, "FID is of benchmarks with real images alone"
    assert found["sft", "stories"].prompts is None and ("sft", "captions") not in found
    text = evaluation.lines(paper, 3.6, "measured, as given")
    assert text[0] == "evaluation: images to generate, 3.6 s each (measured, as given)"
    assert "  sft coco_fid                                 240.0 GPU-hours, 30,000 prompts x 8 samples" in text
    assert "  sft stories                              number of images not known" in text
    total = sum(one.pictures for one in found.values())
    assert text[-1].startswith(f"  {total:,} images, {total / 1000:,.1f} GPU-hours, ")
    few = paper.model_copy(update={"evaluation": paper.evaluation.model_copy(update={"limit": 10, "pictures": None})})
    assert {(one.prompts, one.samples) for one in evaluation.generations(few) if one.prompts} == {(10, 1)}


@pytest.mark.parametrize(
    ("config", "gpu"),
    [("single_gpu", "RTX4090 (24 GB)"), ("modern", "RTX4090 (24 GB)"), ("metaquery", "A100 (80 GB)")],
)
def test_configurations_of_one_gpu_fit_it(config, gpu, monkeypatch, capsys):
    monkeypatch.chdir(repository.ROOT)
    cli.main(["plan", "--config", f"config/{config}.yaml", "--gpu", gpu.split()[0]])
    text = capsys.readouterr().out
    assert text.count(f"fits {gpu}") == len(load(f"config/{config}.yaml").stages)
    assert ("activations of the connector" in text) == (config != "single_gpu")


def test_the_plan_proposes_the_checkpointing_that_fits_and_costs_least(monkeypatch):
    monkeypatch.chdir(repository.ROOT)
    experiment = load("config/smoke.yaml")
    sets = report.kinds(experiment, report.read_assumptions(ASSUMPTIONS), ASSUMPTIONS)
    sizes = dict.fromkeys({experiment.model_of(name) for name in experiment.stages}, SIZE)

    def proposed(memory: float, chosen=True) -> str:
        changed = experiment.machine.model_copy(update={"gradient_checkpointing": chosen})
        of = experiment.model_copy(update={"machine": changed})
        return report.proposed_checkpointing(of, sizes, sets, 1.0, arithmetic.RESERVED + memory)

    assert re.fullmatch(
        r"\{language_model: none, unet: none\}, .* GB at most, \d+% fewer FLOPs than now", proposed(1e12)
    )
    assert proposed(1e12, False) == "as it is: nothing that fits costs fewer FLOPs"
    assert proposed(1).startswith("nothing makes all stages fit; lower rows_at_a_time")
    found = [proposed(memory) for memory in range(0, 10**6, 20_000)]
    assert any("language_model: 2" in line for line in found), "between all layers and none"


def test_wrong_flags_and_assumptions_are_told(monkeypatch, tmp_path):
    monkeypatch.chdir(repository.ROOT)
    with pytest.raises(SystemExit, match="--gpu B9: .* knows A800, A100"):
        cli.main(["plan", "--config", "config/paper.yaml", "--gpu", "B9"])
    with pytest.raises(SystemExit, match="--utilisation 40.0: should be above 0"):
        cli.main(["plan", "--config", "config/paper.yaml", "--utilisation", "40"])
    with pytest.raises(SystemExit, match=r"--seconds-per-picture 0.0: should be above 0"):
        cli.main(["plan", "--config", "config/paper.yaml", "--seconds-per-picture", "0"])
    text = ASSUMPTIONS.read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("fill: {value: 0.95", "fill: {value: full"))
    with pytest.raises(ConfigProblem, match="fill.value: .* 'full'"):
        report.read_assumptions(tmp_path / "wrong.yaml")
    (tmp_path / "less.yaml").write_text(text.replace("  gqa:", "  gqa_questions:"))
    assumptions = report.read_assumptions(tmp_path / "less.yaml")
    with pytest.raises(ConfigProblem, match="has no entry gqa, which a mixture names"):
        report.kinds(load("config/paper-as-released.yaml"), assumptions, Path("less.yaml"))


def test_every_set_of_every_configuration_has_its_average_document():
    assumptions = report.read_assumptions(ASSUMPTIONS)
    for path in sorted((repository.ROOT / "config").glob("*.yaml")):
        report.kinds(load(path), assumptions, ASSUMPTIONS)

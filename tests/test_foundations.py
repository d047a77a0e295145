"""The miniature foundations: each is trained for a few steps and read back by the loaders of the real ones."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForCausalLM, CLIPModel

from dreamllm.config.foundations import FlowRecipe, SceneClassifierRecipe, SdRecipe
from dreamllm.config.world import World
from dreamllm.data import shards
from dreamllm.data.document import Text
from dreamllm.digests import digest
from dreamllm.emoji import corpus, grammar, world
from dreamllm.emoji.foundations import figures, gates, language, run, scene_classifier, text
from dreamllm.emoji.foundations.scene_batches import scene_batches
from dreamllm.emoji.scenes import (
    NAMES,
    Scene,
    names_of,
    render,
    sample_scene,
)
from dreamllm.evaluate import drawing
from dreamllm.model.build import build_from_foundations
from dreamllm.model.finite import NonFiniteValues
from dreamllm.train import finetune_sd
from dreamllm.train.optimise import optimise

EXPERIMENT = "config/smoke.yaml"


@pytest.fixture(scope="module")
def foundations(tmp_path_factory):
    """All parts of the smoke experiment, trained from nothing."""
    folder = tmp_path_factory.mktemp("foundations")
    for part in run.PARTS:
        inputs = [folder / "vae", folder / "clip"] if part in ("sd", "flow") else []
        run.main(argparse.Namespace(part=part, config=EXPERIMENT, inputs=inputs, start=None, out=folder / part))
    return folder


def test_the_trained_parts_load_like_the_real_ones_and_make_a_dreamllm(foundations):
    assert AutoModelForCausalLM.from_pretrained(foundations / "llm").config.model_type == "llama"
    assert CLIPModel.from_pretrained(foundations / "clip").config.vision_config.image_size == 48
    assert AutoImageProcessor.from_pretrained(foundations / "clip", backend="pil").crop_size["height"] == 48
    model, processor = build_from_foundations(
        foundations / "llm", foundations / "clip", foundations / "sd", num_dream_queries=2, template="plain"
    )
    assert model.dtype == torch.float32
    model, _ = build_from_foundations(
        foundations / "qwen", foundations / "clip", foundations / "flow", template="plain"
    )
    assert type(model.language_model).__name__ == "Qwen2ForCausalLM"
    assert type(model.denoiser).__name__ == "SD3Transformer2DModel"
    assert processor.num_patches == (48 // 16) ** 2


def test_weights_are_saved_in_half_precision(foundations):
    for part in ("llm", "clip", "vae"):
        (file,) = (foundations / part).glob("*.safetensors")
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in list(tensors.keys())} <= {"F16", "I64"}, part


def test_stable_diffusion_draws_from_words(foundations):
    pipeline = StableDiffusionPipeline.from_pretrained(foundations / "sd", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    (picture,) = pipeline("a red cat on sand.", num_inference_steps=2, height=side, width=side).images
    assert picture.size == (48, 48)


def test_latents_have_unit_scale(foundations):
    vae = AutoencoderKL.from_pretrained(foundations / "vae", dtype=torch.float32)
    pixels = next(scene_batches(seed=9, batch=32, side=48))[1]
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
    assert 0.8 < latents.std() < 1.2


def test_stable_diffusion_reads_by_clips_text_tower(foundations):
    read, kept = (
        {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
        for file in (foundations / "clip/model.safetensors", foundations / "sd/text_encoder/model.safetensors")
    )
    assert kept and all(torch.equal(read[name], tensor) for name, tensor in kept.items())
    tokenizers = [json.loads((foundations / part / "tokenizer.json").read_text()) for part in ("clip", "sd/tokenizer")]
    assert tokenizers[0]["model"] == tokenizers[1]["model"]


def test_training_starts_from_the_image_tower_and_the_unet_of_others(foundations, tmp_path):
    slow = yaml.safe_load(Path(EXPERIMENT).read_text(encoding="utf-8"))
    for part in ("clip", "sd"):
        slow["foundations"][part] |= {"learning_rate": 1e-12, "steps": 1}
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump(slow))
    for part, file, weight in (
        ("clip", "model.safetensors", "vision_model.post_layernorm.weight"),
        ("sd", "unet/diffusion_pytorch_model.safetensors", "conv_in.weight"),
    ):
        inputs = [foundations / "vae", foundations / "clip"] if part == "sd" else []
        run.main(
            argparse.Namespace(
                part=part, config=tmp_path / "slow.yaml", inputs=inputs, start=foundations / part, out=tmp_path / part
            )
        )
        torch.testing.assert_close(
            load_file(tmp_path / part / file)[weight], load_file(foundations / part / file)[weight]
        )
        record = json.loads((tmp_path / part / gates.TRAINING).read_text())
        assert record["started_from"] == digest(foundations / part)
        saved = [path.read_text() for folder in (foundations, tmp_path / part) for path in folder.rglob("*.json")]
        assert saved and not any(str(tmp_path.parent) in text or "_name_or_path" in text for text in saved)


def test_the_figures_of_foundations_that_learnt_nothing_fail_their_gates(foundations, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "SIZES", {"asked": 12, "pairs": 20, "fitted": 40, "read": 24, "drawn": 12})
    monkeypatch.setattr(figures, "TUNING", SdRecipe(steps=1, batch_size=4, learning_rate=1e-3, pictures=64))
    monkeypatch.setattr(figures, "FLOW_TUNING", FlowRecipe(steps=1, batch_size=4, learning_rate=1e-3, pictures=64))
    flags = argparse.Namespace(config=Path(EXPERIMENT), foundations=foundations, parts=[*figures.MEASURES])
    with pytest.raises(gates.GateProblem, match=r"llm has caption_colour 0\.\d+, below its gate"):
        figures.main(argparse.Namespace(**vars(flags), out=tmp_path / "card.json"))
    assert not (tmp_path / "card.json").exists()
    found = {line.split()[0]: json.loads(line.split(maxsplit=1)[1]) for line in capsys.readouterr().out.splitlines()}
    assert all(gates.GATES[part].keys() <= found[part].keys() for part in figures.MEASURES)
    assert all(0 <= share <= 1 for values in found.values() for share in values.values())
    monkeypatch.setattr(gates, "GATES", {part: dict.fromkeys(of, 0.0) for part, of in gates.GATES.items()})
    figures.main(argparse.Namespace(**vars(flags), out=tmp_path / "card.json"))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["sd"]["recipe"]["steps"] == 4 and card["sd"]["figures"] == found["sd"]
    gates.check_card(tmp_path / "card.json", World(), "here", ["qwen", "flow"])
    with pytest.raises(gates.GateProblem, match="here has a card"):
        (tmp_path / "card.json").write_text("[]")
        gates.check_card(tmp_path / "card.json", World(), "here")


def test_probes_find_what_is_there_and_nothing_in_noise():
    generator = torch.Generator().manual_seed(0)
    classes = [random.Random(n).choice("abc") for n in range(600)]
    noise = torch.randn(600, 8, generator=generator)
    told = noise + 4 * torch.eye(8)[["abc".index(one) for one in classes]]
    for features, low, high in ((told, 0.95, 1), (noise, 0.2, 0.5)):
        assert low <= figures.probe(features[:400], classes[:400], features[400:], classes[400:]) <= high


def test_training_a_part_twice_gives_the_same_bytes(foundations, tmp_path):
    for part in ("judge2", "clip", "sd", "flow"):
        inputs = [foundations / "vae", foundations / "clip"] if part in ("sd", "flow") else []
        run.main(argparse.Namespace(part=part, config=EXPERIMENT, inputs=inputs, start=None, out=tmp_path / part))
        for file in sorted(path for path in (foundations / part).rglob("*") if path.is_file()):
            if file.name != gates.TRAINING:  # it has the seconds
                assert (tmp_path / part / file.relative_to(foundations / part)).read_bytes() == file.read_bytes(), file


def test_fine_tuning_changes_the_unet_and_records_losses_and_precision(foundations, tmp_path):
    rng = random.Random(0)
    shards.write((world.pair(str(i), rng, 48) for i in range(4)), tmp_path / "pairs")
    before = UNet2DConditionModel.from_pretrained(foundations / "sd", subfolder="unet").conv_in.weight.float()
    content = yaml.safe_load(Path(EXPERIMENT).read_text(encoding="utf-8"))
    config, first = tmp_path / "config.yaml", {}
    for name in ("fp32", "bf16"):
        config.write_text(yaml.safe_dump(content | {"precision": name}), encoding="utf-8")
        out = tmp_path / name
        finetune_sd.main(
            argparse.Namespace(config=config, seed=None, foundations=foundations, data=[tmp_path], out=out)
        )
        after = UNet2DConditionModel.from_pretrained(out / "unet").conv_in.weight
        assert after.dtype == torch.float32 and not torch.equal(before, after)
        head, losses, *_ = (out / "losses.csv").read_text().splitlines()
        assert head == "step,diffusion_loss" and losses.startswith("1,")
        first[name] = float(losses.split(",")[1])
        assert json.loads((out / "checkpoint.json").read_text())["precision"] == name
    assert first["bf16"] != first["fp32"] and first["bf16"] == pytest.approx(first["fp32"], rel=0.02)


def test_fine_tuning_on_public_pairs_as_the_authors_code_does(foundations, tmp_path):
    """Weighted sets, mirrored pictures, accumulated gradients, a constant rate, and the average of the weights."""
    rng = random.Random(0)
    for name in ("blip_laion", "laion_coco"):
        shards.write((world.pair(f"{name} {i}", rng, 40) for i in range(3)), tmp_path / name)
    content = yaml.safe_load(Path(EXPERIMENT).read_text(encoding="utf-8"))
    content["sources"] = {"blip_laion": {}, "laion_coco": {}}
    recipe = {"mixture": {"blip_laion": 8, "laion_coco": 11}, "steps": 2, "batch_size": 2, "accumulation": 2}
    recipe |= {"learning_rate": 1e-3, "schedule": "constant", "flip": True, "condition_dropout": 0}
    weights = {}
    for name, ema in (("averaged", 0.9), ("last", None)):
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump(content | {"sd_finetuned": recipe | {"ema": ema}}), encoding="utf-8")
        out = tmp_path / name
        finetune_sd.main(argparse.Namespace(config=config, seed=1, foundations=foundations, data=[tmp_path], out=out))
        weights[name] = UNet2DConditionModel.from_pretrained(out / "unet").conv_in.weight
        assert len((out / "losses.csv").read_text().splitlines()) == 3
    before = UNet2DConditionModel.from_pretrained(foundations / "sd", subfolder="unet").conv_in.weight.float()
    moved = {name: float((weight - before).abs().sum()) for name, weight in weights.items()}
    assert 0 < moved["averaged"] < moved["last"]
    made = json.loads((tmp_path / "last/checkpoint.json").read_text())
    assert made["data"].keys() == {"blip_laion", "laion_coco"} and made["config"]["accumulation"] == 2


def test_accumulated_gradients_are_those_of_the_whole_batch():
    def trained(accumulation: int) -> tuple[torch.Tensor, list[float]]:
        weight, data = torch.nn.Parameter(torch.ones(3)), torch.arange(24.0).reshape(4 * accumulation, -1, 3) / 24
        losses = optimise(
            "sum", [weight], lambda n: ((data[n] @ weight) ** 2).mean(), 4, 0.1, schedule="constant",
            accumulation=accumulation,
        )  # fmt: skip
        return weight.detach(), losses

    (one, losses), (two, halves) = trained(1), trained(2)
    torch.testing.assert_close(one, two)
    assert losses == pytest.approx(halves)


def test_the_tokenizer_keeps_words_whole_and_any_text_whole():
    tokenizer = text.llama_tokenizer(language.sentences(300, seed=0), vocabulary=360)
    assert tokenizer.tokenize("a red cat on sand.") == ["▁a", "▁red", "▁cat", "▁on", "▁sand", "."]
    strange = "zebra é\n猫 ok"
    assert tokenizer.decode(tokenizer(strange).input_ids, skip_special_tokens=True) == strange
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id == 1


def test_the_language_corpus_is_laid_out_with_the_users_words_masked():
    tokenizer = text.llama_tokenizer(language.sentences(300, seed=0), vocabulary=360)
    chat = next(d for i in range(50) for d in [corpus.sample("x", random.Random(i))] if d.kind == "conversation")
    ids, labels = language.encode(chat, tokenizer)
    answers = "".join(part.text for part in chat.parts if isinstance(part, Text) and part.role == "assistant")
    kept = [label for label in labels if label not in (-100, tokenizer.eos_token_id)]
    assert len(ids) == len(labels)
    assert tokenizer.decode(kept).replace(" ", "") == answers.replace(" ", "")


@pytest.mark.parametrize("architecture", ["plain", "residual"])
def test_the_scene_classifier_learns_to_read_scenes(architecture):
    recipe = SceneClassifierRecipe(steps=90, batch_size=64, learning_rate=4e-3, width=8, architecture=architecture)
    trained = scene_classifier.train(recipe, side=48, seed=0)
    rng = random.Random(1)
    scenes = [sample_scene(rng) for _ in range(100)]
    read = trained.predict([render(scene, 48, rng) for scene in scenes])
    assert all(isinstance(scene, Scene) for scene in read)
    assert sum(a.background == b.background for a, b in zip(scenes, read, strict=True)) > 90
    assert sum(a.layout == b.layout for a, b in zip(scenes, read, strict=True)) > 50
    assert grammar.caption(read[0]).endswith(f"on {read[0].background}.")


def test_a_scene_classifier_of_a_larger_world_is_loaded_with_its_names(tmp_path):
    names = names_of(24)
    recipe = SceneClassifierRecipe(steps=2, batch_size=32, learning_rate=1e-3, width=4)
    scene_classifier.save(scene_classifier.train(recipe, 48, 0, names), tmp_path / "many")
    scene_classifier.save(scene_classifier.train(recipe, 48, 0), tmp_path / "few")
    assert (
        scene_classifier.load(tmp_path / "many").names == names
        and scene_classifier.load(tmp_path / "few").names == NAMES
    )
    assert json.loads((tmp_path / "few" / "config.json").read_text()) == {"side": 48, "width": 4}


def test_workers_render_the_same_pictures_as_one_process():
    here, there = (scene_batches(seed=3, batch=4, side=48, workers=workers) for workers in (0, 1))
    for _ in range(3):
        (told, pixels), (told_there, pixels_there) = next(here), next(there)
        assert told == told_there and torch.equal(pixels, pixels_there)
    there.close()


def test_prompts_that_the_text_encoder_does_not_see_to_their_end_are_counted(foundations):
    long = "there is a cat left of a car. there is a red cat. there is a blue car. a picture on sand."
    counted = drawing.count_truncated(foundations / "sd", ["a red cat on sand.", long])
    assert counted == {"longest": 24, "prompts": 2, "cut": 1}


def test_a_loss_that_is_not_finite_stops_with_the_step():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(NonFiniteValues, match="toy: the loss is nan at step 1"):
        optimise("toy", [weight], lambda step: weight.sum() * (float("nan") if step else 1.0), 3, 0.1)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet"])
def test_fine_tuning_writes_nothing_from_values_that_are_not_finite(part, foundations, tmp_path, monkeypatch):
    from dreamllm.model import weights

    load = weights.load_weights

    def spoilt(*args, **options):
        pipeline = load(*args, **options)
        with torch.no_grad():
            for parameter in getattr(pipeline, part).parameters():
                parameter.view(-1)[0] = float("nan")
        return pipeline

    monkeypatch.setattr(weights, "load_weights", spoilt)
    rng = random.Random(0)
    shards.write((world.pair(f"pair {i}", rng, 48) for i in range(4)), tmp_path / "pairs")
    asked = argparse.Namespace(
        config=EXPERIMENT, seed=None, foundations=foundations, data=[tmp_path], out=tmp_path / "out"
    )
    with pytest.raises(NonFiniteValues, match=r"^pair \d: .* are NaN or infinite"):
        finetune_sd.main(asked)
    assert not list(tmp_path.glob("out*"))


def test_a_card_keeps_the_figures_of_parts_that_were_not_measured_again(tmp_path):
    for part, steps in (("llm", 1), ("clip", 2)):
        (tmp_path / part).mkdir()
        (tmp_path / part / gates.TRAINING).write_text(json.dumps({"steps": steps}))
    gates.write_card(tmp_path / gates.CARD, tmp_path, {"llm": {"colour": 1.0}, "clip": {"exact": 0.5}})
    (tmp_path / "clip" / gates.TRAINING).write_text(json.dumps({"steps": 3}))  # trained again, so its figures are void
    gates.write_card(tmp_path / gates.CARD, tmp_path, {"llm": {"colour": 0.9}})
    card = json.loads((tmp_path / gates.CARD).read_text())
    assert {part: entry["figures"] for part, entry in card.items()} == {"llm": {"colour": 0.9}, "clip": {}}
    gates.write_card(tmp_path / gates.CARD, tmp_path, {"clip": {"exact": 0.7}})
    card = json.loads((tmp_path / gates.CARD).read_text())
    assert {part: entry["figures"] for part, entry in card.items()} == {"llm": {"colour": 0.9}, "clip": {"exact": 0.7}}

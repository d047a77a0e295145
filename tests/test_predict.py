"""Predictions of tiny random models on a tiny emoji world, and their scores."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

import tiny
from dreamllm.config.reading import load
from dreamllm.data.document import Document, Text
from dreamllm.emoji.foundations import scene_classifier
from dreamllm.emoji.world import write_benchmarks
from dreamllm.evaluate import likelihoods, predict, predictions, prompts, score, tasks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.tasks import language
from dreamllm.evaluate.tasks.language import ChoiceItem
from dreamllm.train import checkpoint

MODEL_OPTIONS = {"num_dream_queries": 4, "seed": 0, "vision_feature_layer": -2, "template": "plain"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yaml, benchmarks/, foundations/ (with a judge and a whole Stable Diffusion), stage/ and arm/."""
    folder = tmp_path_factory.mktemp("world")
    experiment = {
        "name": "tiny",
        "world": {"benchmarks": {"pictures": 8, "draw": 4, "stories": 2, "language": 3}},
        "foundations": {"source": "fetch", "md5": "0" * 32 + ".dir", "sha256": "0" * 64},
        "model": {"num_dream_queries": 4, "template": "plain"},
        "evaluation": {
            "text": {"max_new_tokens": 6, "batch_size": 5},
            "drawing": {"steps": 2, "batch_size": 3},
            "stories": {"max_new_tokens": 6, "max_pictures": 2},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(experiment))
    write_benchmarks(load(folder / "config.yaml").world, "test", folder / "benchmarks")
    foundations = tiny.foundations(folder / "foundations")
    torch.manual_seed(0)
    for part in ("judge", "judge2"):
        scene_classifier.save(scene_classifier.SceneClassifier(16, 2), foundations / part)
    sd = foundations / "sd"
    text_config = transformers.CLIPTextConfig(
        vocab_size=400, hidden_size=20, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2
    )
    words = tiny.tokenizer()
    words.pad_token, words.model_max_length = "</s>", 77
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(sd / "vae"),
        text_encoder=transformers.CLIPTextModel(text_config),
        tokenizer=words,
        unet=UNet2DConditionModel.from_pretrained(sd / "unet"),
        scheduler=DDPMScheduler.from_pretrained(sd / "scheduler", steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(sd)
    UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(sd / "unet")).save_pretrained(
        folder / "arm" / "unet"
    )
    about = {"foundations": {"sd": checkpoint.digest(sd)}, "tensors": checkpoint.digest(folder / "arm/unet")}
    (folder / "arm" / "checkpoint.json").write_text(json.dumps(about))
    model, _ = checkpoint.build_from_foundations(
        *(foundations / part for part in ("llm", "clip", "sd")), **MODEL_OPTIONS
    )
    metadata = {"model": MODEL_OPTIONS, "foundations": checkpoint.foundation_digests(foundations)}
    checkpoint.save_trained(folder / "stage", {"dream_queries": model.dream_queries}, metadata, "")
    return folder


def predicted(world: Path, out: Path, model: str, benchmark: str, checkpoints: list[str]) -> predictions.Predictions:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    flags = f"--config {world}/config.yaml --model {model} --benchmark {benchmark} --split test --out {out}"
    flags += f" --benchmarks {world}/benchmarks --foundations {world}/foundations --checkpoints"
    predict.main(parser.parse_args([*flags.split(), *(str(world / name) for name in checkpoints)]))
    return predictions.read(out)


def scored(world: Path, answers: predictions.Predictions) -> dict:
    benchmark = answers.header["benchmark"]
    return score.score(answers, benchmark, world / "benchmarks", world / "foundations")


@pytest.mark.parametrize("benchmark", ["captions", "vqa", "pope", "language"])
def test_a_model_answers_every_item_in_order_and_is_scored(world: Path, tmp_path: Path, benchmark: str) -> None:
    answers = predicted(world, tmp_path / "answers.jsonl", "stage", benchmark, ["stage"])
    items = tasks.load(benchmark, world / "benchmarks", "test")
    assert list(answers.records) == [item.id for item in items]
    result = scored(world, answers)
    assert result["protocol"]["n"] == len(items)
    assert result["protocol"]["checkpoints"] == {"stage": checkpoint.digest(world / "stage")}
    assert str(world) not in json.dumps(result)


@pytest.mark.parametrize(("model", "checkpoints"), [("stage", ["stage"]), ("sd", []), ("sd_finetuned", ["arm"])])
def test_all_models_draw_the_same_prompts_from_the_same_seeds(
    world: Path, tmp_path: Path, model: str, checkpoints: list[str]
) -> None:
    drawn = predicted(world, tmp_path / "drawn.tar", model, "draw", checkpoints)
    assert [record["seed"] for record in drawn.records.values()] == [42, 43, 44, 45]
    sizes = {drawn.image(record["image"], "").size for record in drawn.records.values()}
    assert sizes == {(16, 16)}
    metrics = scored(world, drawn)["metrics"]
    assert metrics["all"]["n"] == metrics["judge_on_real"]["n"] == 4
    assert metrics["fid"]["reason"] == "4 pictures are fewer than the 16 dimensions of their features"


def test_the_fine_tuned_unet_is_the_one_that_draws(world: Path, tmp_path: Path) -> None:
    plain = predicted(world, tmp_path / "plain.tar", "sd", "draw", [])
    tuned = predicted(world, tmp_path / "tuned.tar", "sd_finetuned", "draw", ["arm"])
    assert plain.image("000000.png", "").tobytes() != tuned.image("000000.png", "").tobytes()


def test_a_unet_that_was_fine_tuned_from_another_stable_diffusion_is_refused(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "arm", tmp_path / "arm")
    about = json.loads((tmp_path / "arm/checkpoint.json").read_text())
    (tmp_path / "arm/checkpoint.json").write_text(json.dumps(about | {"foundations": {"sd": "0" * 64}}))
    with pytest.raises(checkpoint.CheckpointProblem, match=r"arm: its checkpoint.json names another sd .* 0000"):
        predicted(world, tmp_path / "drawn.tar", "sd_finetuned", "draw", [str(tmp_path / "arm")])
    (tmp_path / "arm/checkpoint.json").write_text(json.dumps(about | {"tensors": "0" * 64}))
    with pytest.raises(checkpoint.CheckpointProblem, match=r"names another unet"):
        predicted(world, tmp_path / "drawn.tar", "sd_finetuned", "draw", [str(tmp_path / "arm")])
    assert not (tmp_path / "drawn.tar").exists()


def test_stories_are_told_and_scored(world: Path, tmp_path: Path) -> None:
    told = predicted(world, tmp_path / "told.tar", "stage", "stories", ["stage"])
    assert all(record["stopped"] in ("end", "tokens", "pictures", "context") for record in told.records.values())
    assert scored(world, told)["metrics"]["placement"]["n"] == 2


def test_predictions_are_the_same_bytes_every_time(world: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        predicted(world, tmp_path / name / "drawn.tar", "stage", "draw", ["stage"])
        predicted(world, tmp_path / name / "answers.jsonl", "llm", "language", [])
    for file in ("drawn.tar", "answers.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("model", "benchmark", "checkpoints", "words"),
    [
        (
            "sd",
            "vqa",
            [],
            "run only the tasks 'draw' and 'draw_human' and 'geneval' and 'illustrations' and 'in_context",
        ),
        ("llm", "draw", [], "run only the tasks 'harness' and 'language'"),
        ("stage", "vqa", [], "give its --checkpoints"),
        ("sd_finetuned", "draw", [], "give its --checkpoints"),
        ("sd", "draw", ["arm"], "give no --checkpoints"),
    ],
)
def test_models_that_cannot_take_a_benchmark(
    world: Path, tmp_path: Path, model: str, benchmark: str, checkpoints: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        predicted(world, tmp_path / f"x.{tasks.about(benchmark).predictions}", model, benchmark, checkpoints)


# ---- log-likelihoods -----------------------------------------------------------------------------------------------


def test_loglikelihoods_are_sums_of_token_log_probabilities_and_ignore_batch_mates() -> None:
    model = tiny.build()[0].language_model
    rows = [([1, 270, 280, 290], 2), ([1, 300, 310], 1), ([1, 270, 280], 2)]
    together = likelihoods.loglikelihoods(model, rows, pad=2)
    for row, value in zip(rows, together, strict=True):
        assert likelihoods.loglikelihoods(model, [row], pad=2) == pytest.approx([value], abs=1e-5)
    ids = torch.tensor([rows[0][0]])
    with torch.no_grad():
        gained = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert together[0] == pytest.approx(float(gained[1:].sum()), abs=1e-5)


def test_an_option_without_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="adds no token"):
        likelihoods.loglikelihoods(None, [([1, 2], 2)], pad=2)


# ---- prompts -------------------------------------------------------------------------------------------------------


def words_of(document: Document) -> list[str]:
    return [part.text if isinstance(part, Text) else "<image>" for part in document.parts]


def test_official_prompts_stand_round_the_picture_as_in_the_official_code() -> None:
    wording = tasks.about("vqa").wording_of("vqav2", "official")
    document = prompts.about_picture("1", tiny.picture(), "What colour is it?", wording, "official")
    assert words_of(document) == [
        "Based on the image, please answer the question.",
        "<image>",
        "What colour is it?Please provide an accurate answer within one word.",
        "The short answer (one word) is:",
    ]
    assert [part.role for part in document.parts] == ["user", "user", "user", "assistant"]


def test_emoji_prompts_are_a_bare_picture_or_a_bare_question() -> None:
    wording = tasks.about("pope").wording_of(None, "emoji")
    assert words_of(prompts.about_picture("1", tiny.picture(), "", wording, "emoji")) == ["<image>"]
    asked = prompts.about_picture("1", tiny.picture(), "is there a cat?", wording, "emoji")
    assert words_of(asked) == ["<image>", "is there a cat?"] and asked.kind == "conversation"


def test_official_choices_are_plain_text_and_emoji_ones_a_conversation() -> None:
    fields = {"passage": "A cat.", "question": "is there a cat"}
    item = ChoiceItem("b", "boolq", fields, ("No", "Yes"), 1)
    question, options = language.choices(item, "official")
    assert words_of(question) == ["Choose yes or no to answer the question.\n\nA cat.\n\nis there a cat?\nAnswer:"]
    assert words_of(options[1])[0].endswith("\nAnswer: Yes")
    assert words_of(language.choices(item, "emoji")[1][0]) == ["A cat. is there a cat?", "no"]


# ---- predictions that do not fit -----------------------------------------------------------------------------------


@pytest.fixture
def answers(world: Path, tmp_path: Path) -> Path:
    """A whole prediction file for `language` that was not made by a model."""
    items = tasks.load("language", world / "benchmarks", "test")
    records = [
        {"id": i.id, "prompt": "", "seed": 0, "options": [*i.options], "loglikelihoods": [0.0, -1.0]} for i in items
    ]
    header = {"model": "m", "benchmark": "language", "split": "test", "limit": None, "protocol": {}}
    predictions.write(tmp_path / "answers.jsonl", header, records)
    return tmp_path / "answers.jsonl"


def test_scores_of_known_answers(world: Path, answers: Path) -> None:
    items = tasks.load("language", world / "benchmarks", "test")
    result = scored(world, predictions.read(answers))
    assert result["metrics"]["accuracy"]["value"] == sum(item.answer == 0 for item in items) / len(items)
    assert set(result["groups"]) == {"piqa", "boolq"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('{"id": "piqa-1"', '{"id": "piqa-0"', "item piqa-0: occurs twice"),
        ('{"id": "piqa-1"', '{"id": "piqa-9"', "item piqa-1: 1 of 6 items have no prediction"),
        ("[0.0, -1.0]", "[NaN, -1.0]", "line 2: has the value NaN, which is no number"),
        ("[0.0, -1.0]", "[1e999, -1.0]", "item piqa-0: log-likelihoods .* hold NaN or infinity"),
        ("[0.0, -1.0]", "[0.0]", "item piqa-0: 1 log-likelihoods for 2 options"),
        ("[0.0, -1.0]", '["a", "b"]', "item piqa-0"),
        ('"loglikelihoods"', '"scores"', "item piqa-0: has no field 'loglikelihoods'"),
        ('{"header"', '{"heading"', "line 1: is not a header"),
        ('"benchmark": "language"', '"benchmark": "draw"', "header: is for 'draw', not for 'language'"),
    ],
)
def test_broken_predictions_are_errors_and_never_a_smaller_n(
    world: Path, answers: Path, old: str, new: str, words: str
) -> None:
    answers.write_text(answers.read_text().replace(old, new, 1))
    with pytest.raises(BenchmarkProblem, match=words):
        score.score(predictions.read(answers), "language", world / "benchmarks", world / "foundations")


def test_surplus_predictions_are_errors(world: Path, answers: Path) -> None:
    with answers.open("a") as file:
        file.write('{"id": "more", "loglikelihoods": [0, 0]}\n')
    with pytest.raises(BenchmarkProblem, match="item more: 1 predictions are for no item"):
        scored(world, predictions.read(answers))


def test_archives_that_are_cut_or_lack_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "drawn.tar"
    header = {"model": "m", "benchmark": "draw", "split": "test"}
    predictions.write(path, header, [{"id": "0", "image": "0.png"}], {"0.png": tiny.picture()})
    whole = path.read_bytes()
    assert predictions.read(path).image("0.png", "").tobytes() == tiny.picture().tobytes()
    with pytest.raises(BenchmarkProblem, match="item 3: names picture 1.png"):
        predictions.read(path).image("1.png", "item 3")
    path.write_bytes(whole[: whole.index(b"IDAT")])
    with pytest.raises(BenchmarkProblem, match="no whole tar archive"):
        predictions.read(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(BenchmarkProblem, match="no whole tar archive"):
        predictions.read(path)

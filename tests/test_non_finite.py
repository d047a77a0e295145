"""NaN and infinity stop evaluation and generation with the item's name; no picture, answer or score is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from dreamllm.config.evaluation import Drawing
from dreamllm.data.document import Document, Text
from dreamllm.emoji.foundations.scene_classifier import SceneClassifier
from dreamllm.evaluate import demo_page, drawing, features, files, likelihoods, networks
from dreamllm.evaluate.tasks import attention
from dreamllm.model import generate, weights
from dreamllm.model.finite import NonFiniteValues, check_finite
from dreamllm.model.generate import TextSampling
from dreamllm.model.sampling import PictureSampling
from dreamllm.train import feature_cache
from test_predict import predicted, world  # noqa: F401

PROMPTS = [Document(f"item {n}", "text", (Text(words),)) for n, words in enumerate(("A ship.", "A red fox."))]
QUICK = PictureSampling(steps=2)
PARTS = {
    "unet": "latents after the condition projector and the denoiser",
    "vae": "pixels of the VAE",
    "condition_projector": "latents after the condition projector and the denoiser",
    "dream_queries": "hidden states of the dream queries",
    "language_model": "hidden states of the dream queries",
}


def spoilt(part: str, value: float = float("nan")):
    """A model with one wrong weight, and its processor."""
    model, processor = tiny.build()
    with torch.no_grad():
        [parameter for name, parameter in model.named_parameters() if name.startswith(part)][-1].view(-1)[0] = value
    return model, processor


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", PARTS)
def test_no_picture_is_made_of_values_that_are_not_finite(part, value):
    model, processor = spoilt(part, value)
    if part == "language_model":
        with torch.no_grad():
            model.language_model.model.norm.weight[0] = value
    with pytest.raises(NonFiniteValues, match=PARTS[part]):
        generate.draw(model, processor, PROMPTS, [1, 2], QUICK)


def test_the_item_that_is_not_finite_is_named():
    with pytest.raises(NonFiniteValues, match="^b: the logits are NaN or infinite"):
        check_finite(torch.tensor([[1.0, 2.0], [3.0, float("nan")], [float("inf"), 0.0]]), "abc", "the logits")
    check_finite(torch.zeros(0, 3), [], "the logits")


def test_no_text_is_made_of_logits_that_are_not_finite():
    model, processor = tiny.build()
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")
    for beams in (1, 2):
        with pytest.raises(NonFiniteValues, match="item 0: the logits"):
            generate.write(model, processor, PROMPTS, max_new_tokens=3, num_beams=beams)
    with pytest.raises(NonFiniteValues, match="item 0: the logits"):
        generate.interleave(model, processor, PROMPTS, [1, 2], TextSampling(max_new_tokens=3), QUICK)


def test_a_token_that_is_never_written_may_have_the_logit_minus_infinity():
    scores = torch.tensor([[0.0, -torch.inf]] * 4)
    assert torch.equal(generate.FiniteLogits(["a", "b"])(torch.zeros(4, 1), scores), scores)
    scores[3, 0] = torch.nan
    with pytest.raises(NonFiniteValues, match="^b: "):
        generate.FiniteLogits(["a", "b"])(torch.zeros(4, 1), scores)


def test_nothing_is_written_and_the_picture_is_not_stored(world, tmp_path, monkeypatch):  # noqa: F811
    """Stable Diffusion and DreamLLM, from the command's arguments to the file."""
    from dreamllm.train import checkpoint

    model, processor = spoilt("unet")
    monkeypatch.setattr(checkpoint, "load_for_inference", lambda *_: (model, processor))
    for task in ("draw", "stories"):
        if task == "stories":
            with torch.no_grad():
                model.get_output_embeddings().weight[:] = float("nan")
        with pytest.raises(NonFiniteValues, match="are NaN or infinite"):
            predicted(world, tmp_path / "out/file.tar", "stage", task, ["stage"])
    for benchmark in ("vqa", "captions"):
        with pytest.raises(NonFiniteValues, match="the logits are NaN"):
            predicted(world, tmp_path / "out/file.jsonl", "stage", benchmark, ["stage"])
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_stable_diffusion_draws_nothing_from_values_that_are_not_finite(part, world, monkeypatch):  # noqa: F811
    load = weights.load_weights

    def spoil(*args, **options):  # after loading, which refuses such weights
        pipeline = load(*args, **options)
        with torch.no_grad():
            [*getattr(pipeline, part).parameters()][-1].view(-1)[0] = float("nan")
        return pipeline

    wanted = [drawing.DrawRequest(_Item(), "A ship.", 1, "000000.png")]
    settings = Drawing(steps=2)
    (whole,) = [
        picture for _, picture in drawing.draw_with_sd(world / "foundations/sd", None, torch.float32, wanted, settings)
    ]
    assert whole.size == (16, 16)
    monkeypatch.setattr(weights, "load_weights", spoil)
    with pytest.raises(NonFiniteValues, match="ship: (latents|pixels)"):
        list(drawing.draw_with_sd(world / "foundations/sd", None, torch.float32, wanted, settings))


class _Item:
    id, prompt = "ship", "A ship."


def test_stable_diffusion_draws_what_its_own_pipeline_draws(world):  # noqa: F811
    """The latents are decoded here, to be checked; the picture is the pipeline's to the last bit."""
    from diffusers import StableDiffusionPipeline

    from dreamllm.model.sampling import make_scheduler

    folder, settings = world / "foundations/sd", Drawing(steps=3)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = make_scheduler(settings.scheduler, dict(pipeline.scheduler.config) | {"steps_offset": 1})
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    generators = [torch.Generator().manual_seed(1)]
    torch.randn((4, 8, 8), generator=generators[0])
    wanted = pipeline(
        prompt=["A ship."], num_inference_steps=3, guidance_scale=settings.guidance, generator=generators, latents=noise
    ).images[0]
    one = drawing.DrawRequest(_Item(), "A ship.", 1, "000000.png")
    ((_, found),) = drawing.draw_with_sd(folder, None, torch.float32, [one], settings)
    assert np.array_equal(np.asarray(found), np.asarray(wanted))


def test_the_other_ways_to_an_answer(world, tmp_path, monkeypatch):  # noqa: F811
    """Each stands alone: likelihoods, attention maps, the scene classifier, features, cached features."""
    monkeypatch.setattr(likelihoods, "loglikelihoods", lambda *_: [0.0, float("nan"), 0.0, 0.0])
    with pytest.raises(NonFiniteValues, match="piqa-0: log-likelihoods"):
        predicted(world, tmp_path / "file.jsonl", "llm", "language", [])
    assert not (tmp_path / "file.jsonl").exists()

    classifier = SceneClassifier(16, 2).eval()
    torch.nn.init.constant_(classifier.heads.bias, float("nan"))
    with pytest.raises(NonFiniteValues, match="story 1: the scene classifier's logits"):
        classifier.predict([tiny.picture(side=16)], ["story 1"])

    network = networks.Network("n", lambda picture: np.zeros((2, 2, 3), np.float32), _nan_for_second, "w")
    shown = _Shown()
    with pytest.raises(files.BenchmarkProblem, match=r"picture b.png: its features for n are not finite"):
        features.real_statistics([_Named("a.png"), _Named("b.png")], shown, [network])


def _nan_for_second(pixels: torch.Tensor) -> torch.Tensor:
    values = torch.zeros(len(pixels), 4)
    values[1] = float("nan")
    return values


def test_the_harness_and_the_choice_of_examples(tmp_path, monkeypatch):
    """lm-evaluation-harness is replaced by what it returns; CLIP by an embedding that is NaN for one picture."""
    import sys
    from types import SimpleNamespace

    from dreamllm.config.benchmarks import BenchmarkUse
    from dreamllm.config.evaluation import EvaluationSettings
    from dreamllm.evaluate import few_shot
    from dreamllm.evaluate.tasks import harness

    def samples(value):
        asked = {"arguments": [("Q", "a"), ("Q", "b")], "acc": 1.0}
        told = [asked | {"doc_id": n, "filtered_resps": [(score, False), (0.5, True)]} for n, score in value]
        return {"samples": {"piqa": told}, "n-samples": {"piqa": {"effective": 2}}, "versions": {}}

    parts = {
        "lm_eval": SimpleNamespace(simple_evaluate=lambda **_: samples([(1, float("nan")), (0, -2.0)])),
        "lm_eval.models": SimpleNamespace(),
        "lm_eval.models.huggingface": SimpleNamespace(HFLM=lambda **_: None),
        "lm_eval.tasks": SimpleNamespace(TaskManager=lambda **_: SimpleNamespace(all_tasks=["piqa"])),
    }
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "a.parquet").touch()
    job = SimpleNamespace(
        model="stage",
        use=BenchmarkUse(task="harness", source="piqa", harness_task="piqa"),
        folder=tmp_path,
        settings=EvaluationSettings(),
        out=tmp_path / "answers.jsonl",
        load=lambda: (SimpleNamespace(language_model=None), SimpleNamespace(tokenizer=None, context=9)),
    )
    with pytest.raises(NonFiniteValues, match="^piqa-1: log-likelihoods are NaN"):
        harness.predict(job, [], {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]

    embeddings = iter([np.ones((2, 3), np.float32), np.array([[1, 1, 1], [1, np.inf, 1]], np.float32)])
    monkeypatch.setattr(few_shot, "clip_embeddings", lambda pictures, clip: next(embeddings))
    questions, pool = [_Named("q1.png"), _Named("q2.png")], [_Named("e1.png"), _Named("e2.png")]
    with pytest.raises(NonFiniteValues, match="^e2.png: CLIP's features are NaN or infinite"):
        few_shot.image_similarities(questions, _Shown(), pool, _Shown(), tmp_path)


class _Named:
    def __init__(self, picture: str) -> None:
        self.picture = picture


class _Shown:
    path = Path("images.zip")
    read: Callable[..., Image.Image] = staticmethod(lambda name: tiny.picture())


def test_cached_features_and_attention_maps(world, tmp_path):  # noqa: F811
    from dreamllm.data import shards

    (shard,) = shards.write([tiny.pair(1)], tmp_path / "pairs", per_shard=1)
    model, processor = spoilt("vae.encoder")
    with torch.no_grad():
        model.vae.quant_conv.bias[:] = float("nan")
    with pytest.raises(NonFiniteValues, match=r"pairs-00000.tar, picture .*: features of vae"):
        feature_cache.encode_shard(shard, "vae", model, processor)

    model, processor = tiny.build()
    with torch.no_grad():
        next(iter(model.decoder.cross_attention(model.unet).values())).to_q.weight[0] = float("nan")
    with pytest.raises(NonFiniteValues, match="ship: "):
        request = drawing.DrawRequest(_Item(), "A ship.", 1, "000000.png")
        attention.measure(model, processor, [request], Drawing(steps=2))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_file_with_a_value_that_is_not_finite_is_refused(constant, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"a": 1}\n{"loglikelihoods": [0.5, ' + constant + "]}\n")
    with pytest.raises(files.BenchmarkProblem, match=f"line 2: has the value {constant}, which is no number"):
        files.read_jsonl(path)


def test_no_list_of_prompts_gives_no_texts_and_no_pictures():
    model, processor = tiny.build()
    assert generate.write(model, processor, []) == generate.draw(model, processor, [], [], QUICK) == []
    assert generate.interleave(model, processor, [], [], TextSampling(), QUICK) == []


def test_the_demo_page_is_not_written(tmp_path, monkeypatch):
    import argparse

    from dreamllm.train import checkpoint

    model, processor = tiny.build()
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")
    monkeypatch.setattr(checkpoint, "load_for_inference", lambda *_: (model, processor))
    parser = argparse.ArgumentParser()
    demo_page.add_arguments(parser)
    with pytest.raises(NonFiniteValues, match="prompt 1: the logits"):
        demo_page.main(parser.parse_args(["a ship", "--out", str(tmp_path / "page")]))
    assert not (tmp_path / "page").exists()

"""Several pictures per prompt: seeds, selection, stored features, FID and CLIP score by several rules."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import tiny
from dreamllm import cli
from dreamllm.evaluate import (
    features,
    networks,
    predictions,
    score_pictures,
    selection,
    tasks,
)
from dreamllm.evaluate import predict as predicting
from dreamllm.evaluate.files import BenchmarkProblem, pictures_of
from test_predict import world as predict_world

world = predict_world  # config.yaml, benchmarks/, foundations/ and checkpoints of tiny random models


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with both towers, its image processor and a tokenizer; 6-dimensional embeddings."""
    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    texts = {"vocab_size": 400, "max_position_embeddings": 24, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    torch.manual_seed(0)
    transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**tower, **texts, "projection_dim": 6},
            vision_config={**tower, "image_size": 16, "patch_size": 4, "projection_dim": 6},
            projection_dim=6,
        )
    ).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    words = tiny.tokenizer()
    words.pad_token, words.model_max_length = "</s>", 24
    words.save_pretrained(folder)
    return folder


def configure(world: Path, tmp_path: Path, **evaluation: object) -> Path:
    """The experiment of the fixture with other settings of evaluation."""
    content = yaml.safe_load((world / "config.yaml").read_text())
    evaluations = evaluation.pop("evaluations", [])
    content["evaluation"] |= {"pictures": {"samples": 2, "features": "clip"}, **evaluation}
    content["stages"] = {"stage": STAGE}
    content["evaluations"] = evaluations
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "config.yaml"


STAGE = {
    "trains": ["dream_queries"],
    "mode": "creation",
    "mixture": {"pairs": 1},
    "steps": 1,
    "rows_per_batch": 1,
    "context": 8,
    "learning_rate": 0.1,
}


def run_predict(
    world: Path, config: Path, out: Path, model: str, benchmark: str, *more: str
) -> predictions.Predictions:
    parser = argparse.ArgumentParser()
    predicting.add_arguments(parser)
    flags = f"--config {config} --model {model} --benchmark {benchmark} --split test --out {out}"
    flags += f" --benchmarks {world}/benchmarks --foundations {world}/foundations"
    stages = [] if model == "sd" else ["--checkpoints", str(world / "stage")]
    predicting.main(parser.parse_args([*flags.split(), *stages, *more]))
    return predictions.read(out)


# ---- seeds and selection -------------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**31), st.integers(0, 63), st.integers(0, 63), st.integers(0, 10**6 - 1), st.integers(0, 999_999)
)
def test_two_pictures_never_share_a_seed(first: int, s: int, t: int, i: int, k: int) -> None:
    assert (selection.seed(first, s, i) == selection.seed(first, t, k)) == ((s, i) == (t, k))
    assert selection.seed(first, 0, k) == first + k


def test_items_that_would_run_into_the_next_samples_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 1000000 items"):
        selection.seed(42, 0, 10**6)


def test_best_takes_the_largest_score_and_first_does_not_look() -> None:
    scores = np.array([[0.1, 0.9, 0.3], [0.2, 0.5, 0.3]])
    assert selection.best(scores).tolist() == [1, 0, 0]  # the earlier of equal ones
    assert selection.first(scores).tolist() == [0, 0, 0]
    assert selection.take(np.arange(12).reshape(2, 3, 2), np.array([1, 0, 0])).tolist() == [[6, 7], [2, 3], [4, 5]]


@given(arrays(float, st.tuples(st.integers(1, 8), st.integers(1, 9)), elements=st.floats(-1, 1)))
def test_the_best_is_never_worse_than_any_sample(scores: np.ndarray) -> None:
    taken = selection.take(scores, selection.best(scores))
    assert (taken >= scores).all() and taken.shape == scores.shape[1:]


# ---- networks ------------------------------------------------------------------------------------------------------


class Layers(torch.nn.Module):
    """Stands in for the original Inception: 2048 features of the mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2048)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean(dim=(2, 3)))


class Inception(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the names of the two Inception files."""
    from torchvision.models import inception_v3

    folder = tmp_path_factory.mktemp("inception")
    torch.manual_seed(0)
    torch.jit.script(Inception()).save(folder / networks.INCEPTION["clean"][0])
    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    torch.save(network.state_dict(), folder / networks.INCEPTION["paper"][0])
    return folder


def trust(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: (file, "", address) for name, (file, _, address) in networks.INCEPTION.items()}
    monkeypatch.setattr(networks, "INCEPTION", known)


def test_inception_features_are_clean_fids(staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 256 px squares pytorch-fid's way, and antialiased; both as clean-fid's own loop over files gives them."""
    from cleanfid.fid import get_files_features

    trust(monkeypatch)
    shown = [Image.fromarray(np.random.default_rng(n).integers(0, 255, (256, 256, 3), np.uint8)) for n in range(2)]
    paths = [tmp_path / f"{n}.png" for n in range(2)]
    for path, picture in zip(paths, shown, strict=True):
        picture.save(path)
    chosen = networks.inception(staged)
    found = features.extract(shown.__getitem__, 2, chosen)
    for network, mode in zip(chosen, ("legacy_pytorch", "clean"), strict=True):
        options = {"num_workers": 0, "device": torch.device("cpu"), "mode": mode, "verbose": False}
        expected = get_files_features(paths, network.embed, **options)
        assert found[network.name].shape == (2, 2048)
        assert np.abs(found[network.name] - expected).max() <= 1e-6 * np.abs(expected).max()


def test_the_papers_protocol_crops_the_centre_of_256_pixels(staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust(monkeypatch)
    wide = Image.new("RGB", (600, 300), "red")
    wide.paste("blue", (150, 0, 450, 300))
    for network in networks.inception(staged):
        prepared = network.prepare(wide)
        assert prepared.shape == (299, 299, 3) and prepared.dtype == np.float32
        assert np.abs(prepared[:, 5:-5] - [0, 0, 255]).max() < 1e-3, network.name  # the red sides are gone


def test_inception_files_that_are_missing_or_others_are_told(staged: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkProblem, match=r"pt_inc.*: is missing; fetch it from https.*evaluation\.pictures"):
        networks.inception(tmp_path)
    with pytest.raises(BenchmarkProblem, match="should have 6726825d"):
        networks.inception(staged)


def test_clip_features_are_the_image_embeddings_of_transformers(clip: Path) -> None:
    shown = [tiny.picture(n, 16) for n in range(3)]
    found = features.extract(shown.__getitem__, 3, [networks.clip_network(clip)], threads=2)["clip"]
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(clip)(images=shown, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = transformers.CLIPModel.from_pretrained(clip).get_image_features(pixels).pooler_output
    assert np.abs(found - expected.numpy()).max() < 1e-5  # the same size: neither side resizes


def test_clip_cosines_order_pictures_as_clips_own_logits(clip: Path) -> None:
    shown, texts = [tiny.picture(n) for n in range(4)], ["a red cat", "two dogs on the beach", "snow " * 60]
    looks = networks.Clip(clip)
    cosines = looks.embed_pictures(shown) @ looks.embed_texts(texts).T
    inputs = looks.processor(images=shown, return_tensors="pt") | looks.tokenizer(
        texts, return_tensors="pt", padding="max_length", truncation=True, max_length=24
    )
    with torch.no_grad():
        logits = looks.model(**inputs)
    scale = float(looks.model.logit_scale.exp().detach())
    assert np.abs(scale * cosines - logits.logits_per_image.numpy()).max() < 1e-4
    assert [looks.too_long(text) for text in texts] == [False, False, True]


# ---- from predictions to metrics -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(world: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples of the tiny Stable Diffusion, their features, and the statistics of the real pictures."""
    folder = tmp_path_factory.mktemp("measured")
    shutil.copytree(world / "benchmarks", folder / "benchmarks")
    lines = [json.loads(line) for line in (folder / "benchmarks/draw_test.jsonl").read_text().splitlines()]
    more = [{**line, "id": 100 + line["id"]} for line in lines] + [{**line, "id": 200 + line["id"]} for line in lines]
    lines = [*lines, *more]  # 12 prompts, more than CLIP has dimensions
    lines[0]["captions"] = [lines[0]["prompt"], "a dog"]
    (folder / "benchmarks/draw_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = {"config.yaml": "", "foundations": "", "stage": ""}
    for name in names:
        (folder / name).symlink_to(world / name)
    (folder / "own").mkdir()
    config = configure(world, folder / "own")
    for sample in ("0", "1"):
        run_predict(folder, config, folder / f"draw-{sample}.tar", "sd", "draw", "--sample", sample)
        look(config, folder, clip, folder / f"{sample}.safetensors", folder / f"draw-{sample}.tar")
    items = tasks.load("draw", folder / "benchmarks", "test")
    shown = pictures_of(folder / "benchmarks", "test")
    about, statistics = features.real_statistics(items, shown, [networks.clip_network(clip)])
    features.write_features(folder / "real.safetensors", about | {"n": 12}, statistics)  # as if of as many
    return folder


def look(config: Path, folder: Path, clip: Path, out: Path, drawn: Path) -> None:
    flags = ["--config", config, "--benchmark", "draw", "--benchmarks", folder / "benchmarks", "--clip", clip]
    cli.main(["features", *map(str, [*flags, "--out", out, "--predictions", drawn])])


def samples_of(folder: Path) -> list[features.FeatureFile]:
    return [features.read_features(folder / f"{number}.safetensors") for number in (0, 1)]


def test_every_sample_has_its_own_seeds_and_pictures_and_all_have_the_same_prompts(measured: Path) -> None:
    one, two = (predictions.read(measured / f"draw-{number}.tar") for number in (0, 1))
    assert [record["prompt"] for record in one.records.values()] == [r["prompt"] for r in two.records.values()]
    assert [record["seed"] for record in one.records.values()] == list(range(42, 54))
    assert [record["seed"] for record in two.records.values()] == list(range(1_000_042, 1_000_054))
    for name in one.images:
        assert one.image(name, "").tobytes() != two.image(name, "").tobytes()


def test_metrics_by_every_rule_with_the_spread_over_the_seeds(measured: Path) -> None:
    result = score_pictures.score(samples_of(measured)[::-1], features.read_features(measured / "real.safetensors"))
    metrics = result["metrics"]
    assert set(metrics) == {
        f"{kind}_{name}" for kind in ("fid_clip", "clip_score") for name in (*selection.RULES, "seeds", "seeds_std")
    }
    assert (result["model"], result["benchmark"], result["protocol"]["samples"]) == ("sd", "draw_pictures", 2)
    alone = result["samples"]["fid_clip"]
    assert metrics["fid_clip_first"]["value"] == alone[0]
    assert metrics["fid_clip_seeds"]["value"] == pytest.approx(np.mean(alone))
    assert metrics["fid_clip_seeds_std"]["value"] == pytest.approx(np.std(alone, ddof=1))
    assert metrics["clip_score_best"]["value"] >= max(result["samples"]["clip_score"])
    assert metrics["clip_score_first"]["n"] == 12
    assert str(measured) not in json.dumps(result)


def test_the_verbs_end_in_a_metrics_file(measured: Path, clip: Path, tmp_path: Path) -> None:
    flags = ["--config", measured / "own/config.yaml", "--benchmark", "draw", "--benchmarks", measured / "benchmarks"]
    cli.main(["features", *map(str, [*flags, "--clip", clip, "--out", tmp_path / "real.safetensors"])])
    real = features.read_features(tmp_path / "real.safetensors")
    assert (real.about["n"], real.arrays["clip.covariance"].shape) == (4, (6, 6))
    given = [measured / "0.safetensors", measured / "1.safetensors"]
    out = ["--statistics", tmp_path / "real.safetensors", "--out", tmp_path / "draw.json"]
    cli.main(["score-pictures", "--features", *map(str, [*given, *out])])
    assert json.loads((tmp_path / "draw.json").read_text())["protocol"]["real_pictures"] == 4


def test_the_best_picture_is_the_one_whose_own_prompt_fits_best(measured: Path) -> None:
    one, two = samples_of(measured)
    chosen = selection.best(np.stack([one.arrays["clip_prompt"], two.arrays["clip_prompt"]]))
    expected = np.where((chosen == 1)[:, None], two.arrays["clip"], one.arrays["clip"])
    real = features.read_features(measured / "real.safetensors")
    result = score_pictures.score([one, two], real)["metrics"]["fid_clip_best"]["value"]
    mean, covariance = real.arrays["clip.mean"], real.arrays["clip.covariance"]
    assert result == score_pictures.fid.score(expected, mean, covariance, 12)["value"]
    assert 0 < chosen.sum() < 12


def test_all_captions_of_the_real_picture_count_where_the_benchmark_has_them(measured: Path, clip: Path) -> None:
    one = samples_of(measured)[0]
    drawn = predictions.read(measured / "draw-0.tar")
    looks = networks.Clip(clip)
    item = tasks.load("draw", measured / "benchmarks", "test")[0]
    cosines = looks.embed_texts(item.captions) @ looks.embed_pictures([drawn.image("000000.png", "")])[0]
    assert one.arrays["clip_captions"][0] == pytest.approx(cosines.max(), abs=1e-5)
    assert (one.arrays["clip_captions"][1:] == one.arrays["clip_prompt"][1:]).all()


def test_stored_features_are_the_same_bytes_every_time(measured: Path, clip: Path, tmp_path: Path) -> None:
    config = measured / "own/config.yaml"
    look(config, measured, clip, tmp_path / "again.safetensors", measured / "draw-0.tar")
    assert (tmp_path / "again.safetensors").read_bytes() == (measured / "0.safetensors").read_bytes()


def test_one_sample_has_no_spread_and_few_pictures_no_fid(measured: Path) -> None:
    one, real = samples_of(measured)[0], features.read_features(measured / "real.safetensors")
    metrics = score_pictures.score([one], real)["metrics"]
    assert metrics["fid_clip_seeds"]["reason"] == "one sample per prompt has no spread"
    real.about["n"] = 4
    metrics = score_pictures.score(samples_of(measured), real)["metrics"]
    for name in ("first", "best", "seeds", "seeds_std"):
        assert metrics[f"fid_clip_{name}"]["reason"] == "4 pictures are fewer than the 6 dimensions of their features"
    assert metrics["clip_score_best"]["value"] is not None


def test_the_spread_has_students_interval_and_the_chi_squared_one() -> None:
    alone = [{"value": value} for value in (8.0, 9.0, 10.0, 11.0, 12.0)]
    metrics = score_pictures.spread("x", alone)
    mean, std = metrics["x"], metrics["x_std"]
    assert (mean["value"], mean["n"]) == (10, 5) and std["value"] == pytest.approx(1.5811388)
    assert (mean["low"], mean["high"]) == pytest.approx((10 - 1.9632432, 10 + 1.9632432))  # 2.7764451 std / 5^(1/2)
    quantiles = (11.143286782, 0.484418557)  # of chi squared with 4 degrees of freedom, 97.5 % and 2.5 %
    assert (std["low"], std["high"]) == pytest.approx([(10 / quantile) ** 0.5 for quantile in quantiles])


# ---- what does not belong together ---------------------------------------------------------------------------------


def broken(measured: Path, words: str, change) -> None:
    stored, real = samples_of(measured), features.read_features(measured / "real.safetensors")
    change(stored, real)
    with pytest.raises(BenchmarkProblem, match=words):
        score_pictures.score(stored, real)


def test_samples_that_do_not_belong_together_are_refused(measured: Path) -> None:
    def reorder(stored, real):
        stored[1].about["ids"].reverse()

    def repeat(stored, real):
        stored[1].arrays["seeds"][3] = stored[0].arrays["seeds"][3]

    def skip(stored, real):
        stored[1].about["sample"] = 2

    def other_model(stored, real):
        stored[1].about["model"] = "sft"

    def other_networks(stored, real):
        real.about["networks"] = {"clip": "another"}

    broken(measured, r"1.safetensors, ids: is not the same as in .*0.safetensors", reorder)
    broken(measured, r"1.safetensors, item 3: has the same seed as in .*0.safetensors", repeat)
    broken(measured, "is sample 2, sample 1 is missing", skip)
    broken(measured, "model: is not the same", other_model)
    broken(measured, "other networks", other_networks)


def test_files_of_the_other_kind_are_refused(measured: Path, tmp_path: Path) -> None:
    (one, two), real = samples_of(measured), features.read_features(measured / "real.safetensors")
    with pytest.raises(BenchmarkProblem, match="holds statistics of real pictures"):
        score_pictures.score([features.FeatureFile(real.path, real.about | {"sample": 0}, real.arrays)], real)
    with pytest.raises(BenchmarkProblem, match="holds features of drawn pictures"):
        score_pictures.score([one], two)
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BenchmarkProblem, match="is no features file"):
        features.read_features(tmp_path / "x.safetensors")


def rewrite_index(source: Path, out: Path, change) -> Path:
    """A copy of a prediction file with other records."""
    drawn = predictions.read(source)
    records = list(drawn.records.values())
    change(records)
    predictions.write(out, drawn.header, records, {name: drawn.image(name, "") for name in drawn.images})
    return out


def test_pictures_of_other_prompts_and_other_numbers_of_pictures_are_refused(
    measured: Path, clip: Path, tmp_path: Path
) -> None:
    def shuffle(records):
        records[0]["prompt"], records[1]["prompt"] = records[1]["prompt"], records[0]["prompt"]

    config = measured / "own/config.yaml"
    cases = [
        (shuffle, "item 0: was drawn for"),
        (lambda records: records.pop(), "item 203: 1 of 12 items have no prediction"),
        (lambda records: records.append({**records[0], "id": "x"}), "item x: 1 predictions are for no item"),
        (lambda records: records[2].update(image="999999.png"), "item 2: names picture 999999.png"),
    ]
    for number, (change, words) in enumerate(cases):
        drawn = rewrite_index(measured / "draw-0.tar", tmp_path / f"{number}.tar", change)
        with pytest.raises(SystemExit, match=words):
            look(config, measured, clip, tmp_path / "out.safetensors", drawn)
    assert not (tmp_path / "out.safetensors").exists()


def test_features_that_are_not_finite_name_the_item(measured: Path, clip: Path) -> None:
    broken = networks.Network("n", np.asarray, lambda pixels: pixels.float().mean(dim=(2, 3)) / 0, "")
    drawn = predictions.read(measured / "draw-0.tar")
    items = tasks.load("draw", measured / "benchmarks", "test")
    with pytest.raises(BenchmarkProblem, match="item 0: its features for n are not finite"):
        features.generated_features(drawn, "draw", items, [broken], networks.Clip(clip))
    with pytest.raises(BenchmarkProblem, match="not finite"):
        features.real_statistics(items, pictures_of(measured / "benchmarks", "test"), [broken])


def test_empty_prompts_and_captions_are_refused(measured: Path, tmp_path: Path) -> None:
    shutil.copytree(measured / "benchmarks", tmp_path / "b")
    file = tmp_path / "b/draw_test.jsonl"
    for change in ({"prompt": " "}, {"captions": ["a", ""]}, {"captions": [3]}):
        lines = (measured / "benchmarks/draw_test.jsonl").read_text().splitlines()
        lines[4] = json.dumps(json.loads(lines[4]) | change)
        file.write_text("\n".join(lines))
        with pytest.raises(BenchmarkProblem, match="line 5: has an empty prompt or caption"):
            tasks.load("draw", tmp_path / "b", "test")

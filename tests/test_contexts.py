"""In-context generation: the contexts, the benchmark, its predictions and scores; attention maps."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from dreamllm.config.evaluation import Drawing
from dreamllm.config.reading import ConfigProblem, load
from dreamllm.config.world import World
from dreamllm.data import shards
from dreamllm.data.document import Picture, Text
from dreamllm.emoji import contexts, corpus, grammar
from dreamllm.emoji.foundations import scene_classifier
from dreamllm.emoji.scenes import ALL_NAMES, NAMES, Scene, render, split_of
from dreamllm.emoji.world import write_benchmarks, write_training
from dreamllm.evaluate import predict, predictions, score, tasks
from dreamllm.evaluate.drawing import plan
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.metrics import attention_maps, scene_attributes
from dreamllm.evaluate.metrics.story_structure import follow
from dreamllm.evaluate.tasks import attention, in_context
from test_predict import world as predict_world

seeds = st.integers(0, 2**32)
kinds = st.sampled_from(contexts.KINDS)
COUNTS = {"pictures": 6, "draw": 6, "stories": 2, "language": 1}
world = predict_world  # config.yaml, foundations/ and checkpoints of tiny random models


# ---- what is shown, said and wanted --------------------------------------------------------------------------------


def scene_of(context: contexts.Context) -> Scene | None:
    """What a reader makes of it, who takes colours from the pictures and all else from the sentence."""
    if context.kind == "edit":
        return follow(context.references[0], context.sentence)
    words = context.sentence
    for name, colour in {scene.objects[0] for scene in context.references}:
        words = words.replace(f"the {name} ", f"{grammar.noun_phrase(name, colour)} ")
        for number in ("two", "three", "four"):
            words = words.replace(f"{number} {grammar.plural(name)} ", f"{number} {colour} {grammar.plural(name)} ")
    return grammar.parse_caption(words)


@given(seeds, kinds, st.booleans())
def test_pictures_and_sentence_together_tell_what_is_wanted(seed, kind, held_out):
    context = contexts.sample(random.Random(seed), kind, "test", held_out)
    assert scene_of(context) == context.target
    assert context.target not in context.references


@given(seeds, kinds)
def test_no_sentence_tells_a_colour_that_is_only_shown(seed, kind):
    context = contexts.sample(random.Random(seed), kind, "test")
    said = set(context.sentence.rstrip(".").split())
    shown = {colour for scene in context.references for _, colour in scene.objects}
    if kind == "compose":
        assert not said & shown
    if kind == "subject":  # another thing may stand beside the subject, in a colour of its own
        name = context.references[0].objects[0][0]
        assert f"{context.references[0].objects[0][1]} {name}" not in context.sentence


@given(seeds, kinds, st.sampled_from(["dev", "test"]), st.booleans())
def test_what_is_wanted_is_of_its_split_and_shown_is_nothing_of_the_other(seed, kind, split, held_out):
    context = contexts.sample(random.Random(seed), kind, split, held_out)
    assert split_of(context.target) == split and context.target.held_out == held_out
    assert {split_of(scene) for scene in context.references} <= {"train", split}
    assert held_out or not any(scene.held_out for scene in context.references)


@given(seeds)
def test_training_documents_are_of_training_scenes(seed):
    document = contexts.document("c", random.Random(seed), 12)
    assert document.kind == "interleaved" and isinstance(document.parts[-1], Picture)
    assert all(split_of(Scene.from_json(scene)) == "train" for scene in document.meta["scenes"])
    assert len(document.meta["scenes"]) == len(document.pictures)


def test_the_language_model_knows_every_word():
    rng = random.Random(0)
    documents = [corpus._sample_about_pictograms("c", rng, NAMES) for _ in range(2000)]  # before things are renamed
    known = {
        word
        for document in documents
        for part in document.parts
        if isinstance(part, Text)
        for word in part.text.replace("?", ".").replace(",", ".").replace(".", " ").split()
    }
    said = {
        word
        for kind in contexts.KINDS
        for _ in range(200)
        for word in contexts.sample(rng, kind, "train").sentence.rstrip(".").split()
    }
    assert said <= known


# ---- files ---------------------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_with_contexts_every_other_file_of_the_world_keeps_its_bytes(tmp_path):
    training = {"pairs": 2, "stories": 2, "instructions": 2, "text": 2}
    plain = World(picture_side=12, training=training, benchmarks=COUNTS)
    more = World(picture_side=12, training=training | {"contexts": 3}, benchmarks=COUNTS | {"in_context": 8})
    for name, one in (("plain", plain), ("more", more), ("again", more)):
        write_training(one, tmp_path / name / "train")
        write_benchmarks(one, "test", tmp_path / name / "benchmarks")
    for part, added in (
        ("train", {"contexts-00000.tar"}),
        ("benchmarks", {"in_context_test.jsonl", "in_context_test.zip"}),
    ):
        before, after, again = (bytes_of(tmp_path / name / part) for name in ("plain", "more", "again"))
        assert after.keys() - before.keys() == added
        assert before.items() <= after.items() and after == again
    assert len(list(shards.read(shards.find(tmp_path / "more" / "train" / "contexts")))) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmarks with twelve items in context."""
    folder = tmp_path_factory.mktemp("contexts")
    write_benchmarks(World(benchmarks=COUNTS | {"in_context": 12}), "test", folder)
    return folder


def test_the_first_items_are_balanced_and_their_real_pictures_show_what_is_wanted(folder):
    items = tasks.load("in_context", folder, "test")
    assert [item.scene.kind for item in items[::4]] == list(contexts.KINDS)
    assert [item.scene.held_out for item in items] == [False, False, False, True] * 3
    pictures = in_context.context_pictures(folder, "test")
    plain = np.stack([np.asarray(render(Scene.from_json(item.scene.scene), 48), dtype=float) for item in items])
    for number, item in enumerate(items):
        shown = np.asarray(pictures.read(item.picture), dtype=float)  # with its things shifted a little
        assert np.abs(plain - shown).mean(axis=(1, 2, 3)).argmin() == number
        document = in_context.document(item, pictures)
        assert document.kind == "interleaved" and document.parts[-1] == Text(item.prompt)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"shown": ["000000000000.png"]', '"shown": []', "needs a sentence and at least one picture"),
        ('"shown": ["000000000000.png"]', '"shown": ["7.png"]', "picture 7.png is not in"),
        ('"held_out": false', '"held_out": 0', "field 'held_out' should be bool"),
        ('"id": 1,', '"id": 0,', "0: occurs twice"),
    ],
)
def test_broken_items_are_named(folder, tmp_path, old, new, words):
    broken = shutil.copytree(folder, tmp_path / "broken")
    path = broken / "in_context_test.jsonl"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(BenchmarkProblem, match=words):
        tasks.load("in_context", broken, "test")


def test_a_configuration_that_asks_for_what_its_world_lacks_is_refused(world, tmp_path):
    text = (world / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text + "\nevaluations: [{model: sd, benchmarks: [in_context]}]\n")
    with pytest.raises(ConfigProblem, match=r"there is no in_context, world.benchmarks.in_context is 0"):
        tasks.check(load(tmp_path / "config.yaml"), "config.yaml")


# ---- predictions and scores ----------------------------------------------------------------------------------------


def predicted(world: Path, folder: Path, out: Path, model: str, benchmark: str) -> predictions.Predictions:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    config = out.with_suffix(".yaml")
    text = (world / "config.yaml").read_text()
    text = text.replace("evaluation:\n", "evaluation:\n  attention: {prompts: 4}\n")
    config.write_text(f"{text}precision: fp32\n")  # in bf16 a picture depends on how many are drawn with it
    flags = f"--config {config} --model {model} --benchmark {benchmark} --split test --out {out}"
    flags += f" --benchmarks {folder} --foundations {world}/foundations"
    stages = [] if model == "sd" else ["--checkpoints", str(world / "stage")]
    predict.main(parser.parse_args([*flags.split(), *stages]))
    return predictions.read(out)


def test_a_model_draws_from_the_pictures_and_stable_diffusion_from_the_sentence(world, folder, tmp_path):
    drawn = {
        model: predicted(world, folder, tmp_path / f"{model}.tar", model, "in_context") for model in ("stage", "sd")
    }
    swapped = shutil.copytree(folder, tmp_path / "swapped")  # item 0 is shown what item 4 is shown
    path = swapped / "in_context_test.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["shown"] = lines[4]["shown"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for model, differs in (("stage", True), ("sd", False)):
        other = predicted(world, swapped, tmp_path / f"other_{model}.tar", model, "in_context")
        same = drawn[model].image("000000.png", "").tobytes() == other.image("000000.png", "").tobytes()
        assert same != differs, model
        assert drawn[model].image("000005.png", "").tobytes() == other.image("000005.png", "").tobytes()


class PerfectClassifier:
    """A scene classifier that returns scenes given in advance."""

    def __init__(self, scenes: list[Scene]) -> None:
        self.scenes = scenes
        self.names = ALL_NAMES

    def predict(self, pictures: list, ids: list[str] | None = None) -> list[Scene]:
        return self.scenes[: len(pictures)]


def test_scores_are_by_kind_and_a_picture_of_another_scene_is_wrong(folder, tmp_path, monkeypatch):
    items = tasks.load("in_context", folder, "test")
    wanted = [Scene.from_json(item.scene.scene) for item in items]
    seen = [wanted[1] if item.scene.kind == "edit" else scene for item, scene in zip(items, wanted, strict=True)]
    images = {f"{item.id}.png": render(scene, 48) for item, scene in zip(items, seen, strict=True)}
    records = [{"id": item.id, "image": f"{item.id}.png"} for item in items]
    header = {"model": "sft", "benchmark": "in_context", "split": "test"}
    predictions.write(tmp_path / "p.tar", header, records, images)
    monkeypatch.setattr(scene_classifier, "load", lambda path: PerfectClassifier(seen))
    for part in ("judge", "judge2"):
        (tmp_path / part).mkdir()
    result = score.score(predictions.read(tmp_path / "p.tar"), "in_context", folder, tmp_path)
    assert result["groups"]["subject"]["all"]["value"] == result["groups"]["compose/held_out"]["bind"]["value"] == 1
    right = scene_attributes.compare_each(seen[:4], wanted[:4])["all"]
    assert result["groups"]["edit"]["all"]["value"] == sum(right) / 4 < 1
    assert result["metrics"]["all"]["n"] == 12


# ---- attention -----------------------------------------------------------------------------------------------------


def test_shares_sum_to_one_and_drawing_is_not_disturbed(world, folder, tmp_path):
    drawn = predicted(world, folder, tmp_path / "drawn.tar", "stage", "draw")
    for name in ("one", "two"):
        maps = predicted(world, folder, tmp_path / f"{name}.safetensors", "stage", "attention")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert maps.tensor("maps").shape == (4, 4, 8, 8)  # prompts, queries, latent
    assert maps.tensor("maps").sum(axis=1) == pytest.approx(np.ones((4, 8, 8)), abs=1e-5)
    for number, picture in enumerate(maps.tensor("pictures")):
        assert (picture == np.asarray(drawn.image(f"{number:06d}.png", ""))).all()
    assert maps.header["protocol"]["layers"]
    result = score.score(maps, "attention", folder, tmp_path)
    assert result["protocol"]["n"] == result["metrics"]["difference"]["n"] == 4


def test_maps_are_the_conditions_and_not_the_null_conditions(folder):
    model, processor = tiny.build()
    wanted = plan(tasks.load("draw", folder, "test", 2), 0, 0)
    guided, alone = (
        attention.measure(model, processor, wanted, Drawing(steps=1, guidance=guidance))["maps"] for guidance in (2, 1)
    )
    assert torch.allclose(guided, alone, atol=1e-6)  # at the first step guidance has changed nothing yet


def test_queries_with_places_of_their_own_correlate_with_themselves_alone():
    generator = np.random.default_rng(0)
    own = np.eye(9).reshape(1, 9, 3, 3) + 0.01 * generator.random((6, 9, 3, 3))
    metrics = attention_maps.score(own)["metrics"]
    assert metrics["same"]["value"] > 0.99
    assert metrics["other"]["value"] == pytest.approx(-1 / 8, abs=0.01)  # of different unit vectors in 9 places
    assert metrics["difference"]["low"] > 1
    metrics = attention_maps.score(generator.random((6, 9, 3, 3)))["metrics"]
    assert metrics["difference"]["low"] < 0 < metrics["difference"]["high"]


def test_correlations_are_those_of_numpy():
    maps = np.random.default_rng(0).random((3, 4, 10))
    centred = maps - maps.mean(axis=-1, keepdims=True)
    same, other = attention_maps.correlations(centred / np.linalg.norm(centred, axis=-1, keepdims=True))
    between = np.corrcoef(maps[0], maps[1])[:4, 4:]
    assert same[0, 1] == pytest.approx(between.trace() / 4)
    assert other[0, 1] == pytest.approx((between.sum() - between.trace()) / 12)


def test_maps_without_differences_have_a_reason_in_place_of_a_number():
    metrics = attention_maps.score(np.ones((3, 2, 4, 4)))["metrics"]
    assert metrics["same"]["reason"] == "a query's map is the same everywhere"
    metrics = attention_maps.score(np.ones((3, 1, 4, 4)))["metrics"]
    assert metrics["difference"]["reason"] == "there is one query only"

"""The emoji world: scenes, splits, language, documents and benchmark files."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamllm.config.world import World
from dreamllm.data import shards
from dreamllm.data.document import Picture, Text
from dreamllm.emoji import corpus, grammar, human, questions, scenes, world
from dreamllm.evaluate import tasks
from dreamllm.evaluate.metrics.story_structure import follow

seeds = st.integers(0, 2**32)


@given(seeds)
def test_every_caption_parses_to_its_scene(seed):
    scene = scenes.sample_scene(random.Random(seed))
    assert len(set(grammar.captions(scene))) == 5
    assert [grammar.parse_caption(words) for words in grammar.captions(scene)] == [scene] * 5
    assert scenes.Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


@pytest.mark.parametrize(
    "words",
    ["", "a red cat", "a red on sand.", "three red cat on sand", "a red cat on sand on snow", "a cat red on sand"],
)
def test_text_that_is_no_caption_parses_to_none(words):
    assert grammar.parse_caption(words) is None


@given(seeds)
def test_a_sentence_and_the_scene_before_determine_the_scene_after(seed):
    rng = random.Random(seed)
    scene = scenes.sample_scene(rng)
    sentence, after = grammar.step(scene, rng)
    assert follow(scene, sentence) == after


@given(seeds)
def test_training_documents_show_training_scenes_without_held_out_combinations(seed):
    rng = random.Random(seed)
    documents = [make("d", rng, 12) for make in (world.pair, world.story, world.instruction, world.question)]
    for document in documents:
        for scene in document.meta.get("scenes") or [document.meta["scene"]]:
            scene = scenes.Scene.from_json(scene)
            assert scenes.split_of(scene) == "train" and not scene.held_out


def test_held_out_combinations_are_spread_over_objects_and_colours():
    held_out = {pair for pair in scenes.HELD_OUT if pair[0] in scenes.NAMES}
    assert len(held_out) == 12
    assert len({name for name, _ in held_out}) == 12
    assert all(sum(colour == c for _, colour in held_out) == 2 for c in scenes.COLOURS)


def test_with_more_objects_the_same_are_held_out_and_the_same_share_of_them():
    combinations = [(name, colour) for name in scenes.ALL_NAMES for colour in scenes.COLOURS]
    assert sum(pair in scenes.HELD_OUT for pair in combinations) * 8 == len(combinations) == 144
    assert {pair for pair in scenes.HELD_OUT if pair[0] in scenes.NAMES} == set(list_of_sixteen())
    assert all(sum(colour == c for _, colour in scenes.HELD_OUT) == 3 for c in scenes.COLOURS)
    assert len({name for name, _ in scenes.HELD_OUT}) == len(scenes.HELD_OUT)


def list_of_sixteen() -> list[tuple[str, str]]:
    """What was held out from the sixteen objects before there were more."""
    names = ["apple", "mushroom", "tree", "leaf", "fish", "cat", "butterfly", "car", "house", "star", "heart", "bell"]
    return list(zip(names, [*scenes.COLOURS] * 2, strict=True))


@pytest.mark.parametrize("count", [6, 15, 16, 17, 24])
def test_a_world_shows_and_names_its_own_objects_alone_and_all_of_them(count):
    names, rng = scenes.names_of(count), random.Random(count)
    shown, asked = set(), set()
    for _ in range(600):
        scene = scenes.sample_scene(rng, names=names)
        shown |= {name for name, _ in scene.objects}
        asked |= {
            questions.absent_object(scene, how, rng, names) for how in ("random", "popular", "adversarial", "frequent")
        }
        assert set(scenes.companions(scene.objects[0][0], names)) <= set(names) - {scene.objects[0][0]}
        _, after = grammar.step(scene, rng, names)
        assert {name for name, _ in after.objects} <= set(names)
    assert shown == asked == set(names)
    assert World.model_validate({"pictograms": count}).pictograms == count


@pytest.mark.parametrize("count", [5, 25])
def test_too_few_and_too_many_pictograms_are_refused(count):
    with pytest.raises(ValueError, match=f"6 to 24 pictograms, not {count}"):
        scenes.names_of(count)
    with pytest.raises(ValueError, match="pictograms"):
        World.model_validate({"pictograms": count})


def test_every_object_has_its_own_picture_and_words():
    glyphs = [scenes.glyph(name, "blue", 20).tobytes() for name in scenes.ALL_NAMES]
    assert len(set(glyphs)) == len(scenes.ALL_NAMES) == 24
    unseen = {*corpus.TEXT_ONLY_NOUNS}
    words = {form for name in (*scenes.ALL_NAMES, *human.SYNONYMS.values()) for form in (name, grammar.plural(name))}
    assert len(words) == 4 * len(scenes.ALL_NAMES) - 1  # fish are one or many
    assert not words & (unseen | {f"{word}s" for word in unseen})
    rng = random.Random(0)
    for _ in range(50):  # enough things without a picture for all of them
        corpus.sample("t", rng, scenes.ALL_NAMES)


def test_a_picture_shows_its_background_and_its_objects_in_place():
    scene = scenes.Scene("sand", "row", (("heart", "red"), ("star", "blue")), 2)
    picture = scenes.render(scene, 48)
    assert picture.size == (48, 48) and picture.mode == "RGB"
    assert picture.getpixel((0, 0)) == scenes.BACKGROUNDS["sand"]
    red, _, blue = picture.getpixel((12, 24))
    assert red > 180 and blue < 90
    red, _, blue = picture.getpixel((36, 24))
    assert blue > 150 and red < 90


@pytest.fixture(scope="module")
def small() -> World:
    return World.model_validate(
        {
            "training": {"pairs": 5, "stories": 3, "instructions": 4, "questions": 3, "text": 4},
            "benchmarks": {"pictures": 12, "draw": 8, "stories": 3, "language": 4},
        }
    )


def test_the_world_is_the_same_bytes_for_the_same_seed(small, tmp_path):
    for name in ("one", "two"):
        world.write_training(small, tmp_path / name)
        world.write_benchmarks(small, "test", tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 5 + 16
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_training_shards_read_back_with_the_promised_kinds(small, tmp_path):
    world.write_training(small, tmp_path)
    kinds = {
        name: [document.kind for document in shards.read(shards.find(tmp_path / name))]
        for name in ("pairs", "stories", "instructions", "questions", "text")
    }
    assert kinds["pairs"] == ["pair"] * 5
    assert kinds["stories"] == ["interleaved"] * 3
    assert kinds["instructions"] + kinds["questions"] == ["conversation"] * 7
    assert set(kinds["text"]) <= {"text", "conversation"} and len(kinds["text"]) == 4
    story = next(shards.read(shards.find(tmp_path / "stories")))
    assert [type(part) for part in story.parts[:4]] == [Text, Picture, Text, Picture]


def test_benchmark_files_load_with_the_loaders_of_the_real_sets(small, tmp_path):
    world.write_benchmarks(small, "dev", tmp_path)
    for benchmark in ("captions", "vqa", "pope", "draw", "narratives", "stories", "language"):
        assert tasks.load(benchmark, tmp_path, "dev"), benchmark
    captions = tasks.load("captions", tmp_path, "dev")
    assert all(len(item.references) == 5 for item in captions)
    shown = [scenes.Scene.from_json(item.scene.scene) for item in captions]
    assert all(scenes.split_of(scene) == "dev" for scene in shown)
    assert [scene.held_out for scene in shown] == [i % 4 == 3 for i in range(12)]
    prompts = {name: tasks.load(name, tmp_path, "dev") for name in ("draw", "draw_human", "narratives")}
    parsers = {"draw": grammar.parse_caption, "draw_human": human.parse, "narratives": human.parse}
    for name, items in prompts.items():
        told = [parsers[name](item.prompt) for item in items]
        assert told == [scenes.Scene.from_json(item.scene.scene) for item in items] == shown[:8], name


def test_too_many_benchmark_pictures_are_refused_with_advice(small):
    many = small.model_copy(update={"benchmarks": small.benchmarks.model_copy(update={"pictures": 100_000})})
    with pytest.raises(ValueError, match=r"world\.benchmarks\.pictures = 100000 is more than .* use a smaller number"):
        list(world.benchmark_scenes(many, "dev"))

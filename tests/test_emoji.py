"""The emoji world: scenes, splits, language, documents and benchmark files."""

from __future__ import annotations

import functools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamllm.config.world import World
from dreamllm.data import shards
from dreamllm.data.document import Picture, Text
from dreamllm.emoji import corpus, grammar, scenes, world
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
    documents = [world.pair("p", rng, 12), world.story("s", rng, 12), world.instruction("i", rng, 12)]
    for document in documents:
        for scene in document.meta.get("scenes") or [document.meta["scene"]]:
            scene = scenes.Scene.from_json(scene)
            assert scenes.split_of(scene) == "train" and not scene.held_out
    told = [part.text for part in corpus.sample("t", rng).parts if isinstance(part, Text)]
    told = [words for words in told if "is there" not in words]  # what is asked for may be absent from the world
    for name, colour in scenes.HELD_OUT:
        assert not any(f"{colour} {form}" in words for words in told for form in (name, grammar.plural(name)))


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
        asked |= {grammar.absent_object(scene, how, rng, names) for how in ("random", "popular", "adversarial")}
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
    unseen = {word for words in corpus.TEXT_ONLY_NOUNS.values() for word in words}
    words = {*scenes.ALL_NAMES, *map(grammar.plural, scenes.ALL_NAMES)}
    assert not words & (unseen | {f"{word}s" for word in unseen})
    rng = random.Random(0)
    for _ in range(50):  # enough things without a picture for all of them
        corpus.sample("t", rng, scenes.ALL_NAMES)


@given(seeds)
def test_a_narrative_has_every_fact_and_only_words_of_captions(seed):
    rng = random.Random(seed)
    scene = scenes.sample_scene(rng, names=scenes.ALL_NAMES)
    opening, *details = grammar.narrative(scene, rng).rstrip(".").split(". ")
    nouns = [(grammar.plural(name) if scene.kind == "group" else name) for name, _ in scene.objects]
    wanted = [f"there are {scene.objects[0][1]} {nouns[0]}"] if scene.kind == "group" else []
    wanted = wanted or [f"there is {grammar.noun_phrase(*pair)}" for pair in scene.objects]
    assert sorted(details) == sorted([*wanted, f"a picture on {scene.background}"])
    relation = {"row": " left of ", "column": " above "}.get(scene.layout)
    assert [part.split()[-1] for part in opening.split(relation)] == nouns if relation else nouns[0] in opening
    assert scene.kind != "group" or grammar.NUMBERS[scene.count] in opening
    assert set(f"{opening} {' '.join(details)}".split()) <= vocabulary()


@functools.lru_cache(maxsize=1)
def vocabulary() -> set[str]:
    """Words of the captions of 3000 scenes, from which the tokenizer of the text encoder learns."""
    rng = random.Random(0)
    drawn = [scenes.sample_split(rng, "train", names=scenes.ALL_NAMES) for _ in range(3000)]
    return {word.rstrip(".") for scene in drawn for words in grammar.captions(scene) for word in words.split()}


@given(seeds)
def test_presence_and_relation_answers_are_true(seed):
    rng = random.Random(seed)
    scene = scenes.sample_scene(rng)
    for kind in grammar.question_kinds(scene):
        asked = grammar.ask(scene, kind, rng)
        words = asked.question.rstrip("?").split()
        if kind == "presence":
            wanted = words[3:]  # is there a [colour] name
            there = any(wanted in ([name], [colour, name]) for name, colour in scene.objects)
            assert asked.answer == ("yes" if there else "no")
        if kind == "relation" and asked.answer not in ("yes", "no"):
            assert asked.answer in [name for name, _ in scene.objects] and asked.answer not in words


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
            "training": {"pairs": 5, "stories": 3, "instructions": 4, "text": 4},
            "benchmarks": {"pictures": 12, "draw": 8, "stories": 3, "language": 4},
        }
    )


def test_the_world_is_the_same_bytes_for_the_same_seed(small, tmp_path):
    for name in ("one", "two"):
        world.write_training(small, tmp_path / name)
        world.write_benchmarks(small, "test", tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 4 + 15
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_training_shards_read_back_with_the_promised_kinds(small, tmp_path):
    world.write_training(small, tmp_path)
    kinds = {
        name: [document.kind for document in shards.read(shards.find(tmp_path / name))]
        for name in ("pairs", "stories", "instructions", "text")
    }
    assert kinds["pairs"] == ["pair"] * 5
    assert kinds["stories"] == ["interleaved"] * 3
    assert kinds["instructions"] == ["conversation"] * 4
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
    short, long = (tasks.load(name, tmp_path, "dev") for name in ("draw", "narratives"))
    assert [item.picture for item in short] == [item.picture for item in long]
    assert all(len(item.prompt.split()) < len(other.prompt.split()) for item, other in zip(short, long, strict=True))


def test_too_many_benchmark_pictures_are_refused_with_advice(small):
    many = small.model_copy(update={"benchmarks": small.benchmarks.model_copy(update={"pictures": 100_000})})
    with pytest.raises(ValueError, match=r"world\.benchmarks\.pictures = 100000 is more than .* use a smaller number"):
        list(world.benchmark_scenes(many, "dev"))

"""Placement of pictures in stories, and following a story from sentence to sentence."""

from __future__ import annotations

import random

import pytest

from dreamllm.emoji.grammar import step
from dreamllm.emoji.scenes import Scene, sample_scene
from dreamllm.evaluate.metrics.story_structure import expected_scenes, follow, sentences, well_placed

OPENING = "a red cat on sky."
CAT = Scene("sky", "single", (("cat", "red"),), 1)
IMAGE = {"image": "0.png"}


def text(words: str) -> dict[str, str]:
    return {"text": words}


@pytest.mark.parametrize(
    ("parts", "right"),
    [
        ([IMAGE], True),
        ([IMAGE, text("now it is on sand."), IMAGE], True),
        ([], False),
        ([IMAGE, IMAGE], False),
        ([IMAGE, text("now it is on sand. the cat turns blue."), IMAGE], False),
        ([text("now it is on sand."), IMAGE], False),  # the opening has no picture of its own
        ([IMAGE, text("now it is on sand.")], False),
        ([IMAGE, text("now it is"), IMAGE], False),
        ([IMAGE, text("now it is"), text(" on sand."), IMAGE], True),
        ([IMAGE, text(" "), IMAGE], False),
    ],
)
def test_every_sentence_is_followed_by_exactly_one_picture(parts: list[dict[str, str]], right: bool) -> None:
    assert well_placed(OPENING, parts) == right


def test_sentences_keep_their_marks() -> None:
    assert sentences(" one. two... three?  four") == ["one.", "two...", "three?", "four"]
    assert sentences("  ") == []


def test_any_sentence_of_a_story_can_be_followed() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        scene = sample_scene(rng)
        words, after = step(scene, rng)
        assert follow(scene, words) == after, (scene, words)


@pytest.mark.parametrize(
    "words",
    [
        "now it is on mars.",
        "the dog turns blue.",
        "the cat turns loud.",
        "a blue cat comes above the cat.",
        "a blue car comes above the car.",
        "now there are two cars.",
        "the cat leaves.",
        "only one cat stays.",
        "and then?",
    ],
)
def test_sentences_that_do_not_fit_the_scene_lead_nowhere(words: str) -> None:
    assert follow(CAT, words) is None


def test_expected_scenes_follow_the_words_of_the_model_and_stop_where_they_fail() -> None:
    parts = [IMAGE, text("the cat turns blue."), IMAGE, text("hm."), IMAGE, text("now it is on sand."), IMAGE]
    blue = Scene("sky", "single", (("cat", "blue"),), 1)
    assert list(expected_scenes(CAT, parts)) == [CAT, blue, None, None]

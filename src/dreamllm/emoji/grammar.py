"""The language of the emoji world: clean captions (register S) with their parser, and the sentences of stories.

Noisy alt texts (register W) are in `alt_text.py`, human sentences and narratives (register H) in `human.py`, and
questions in `questions.py`. All are pure functions of scenes; random choices come from the `random.Random` passed in.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from dreamllm.emoji.scenes import (
    ALL_NAMES,
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    NAMES,
    Layout,
    Names,
    Scene,
    Split,
    sample_split,
    split_of,
)

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
PLURALS = {"leaf": "leaves", "fish": "fish", "butterfly": "butterflies"}
_SINGULARS = {PLURALS.get(name, f"{name}s"): name for name in ALL_NAMES}
_COUNTS = {word: number for number, word in NUMBERS.items()}
# relation: (layout, whether the object named first is the first of the scene)
RELATIONS: dict[str, tuple[Layout, bool]] = {
    "left of": ("row", True),
    "right of": ("row", False),
    "above": ("column", True),
    "below": ("column", False),
}


def plural(name: str) -> str:
    """`cat` -> `cats`, `leaf` -> `leaves`."""
    return PLURALS.get(name, f"{name}s")


def noun_phrase(name: str, colour: str = "") -> str:
    """`a cat`, `an apple`, `a red cat`, `an orange cat`."""
    words = f"{colour} {name}".strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def with_articles(text: str) -> str:
    """The same text with `an` before vowels and `a` elsewhere, after words in it were replaced."""
    return re.sub(r"\ban? (?=(\w))", lambda match: "an " if match[1] in "aeiou" else "a ", text)


def scene_phrase(scene: Scene, reverse: bool = False) -> str:
    """The scene's objects in words, without the background; `reverse` names the right or lower one of a pair first."""
    if scene.layout == "single":
        return noun_phrase(*scene.objects[0])
    if scene.layout == "group":
        name, colour = scene.objects[0]
        return f"{NUMBERS[scene.count]} {colour} {plural(name)}"
    relation = next(words for words, rule in RELATIONS.items() if rule == (scene.layout, not reverse))
    first, second = scene.objects[::-1] if reverse else scene.objects
    return f"{noun_phrase(*first)} {relation} {noun_phrase(*second)}"


def caption(scene: Scene) -> str:
    """The canonical caption: `a red cat left of a blue car on sand.`"""
    return f"{scene_phrase(scene)} on {scene.background}."


def captions(scene: Scene) -> list[str]:
    """Five different captions of a scene, as COCO has five references; the canonical one first."""
    there = "there is" if scene.layout != "group" else "there are"
    other = scene_phrase(scene, reverse=scene.kind == "pair")
    return [
        caption(scene),
        f"{there} {other} on {scene.background}.",
        f"on {scene.background} {there} {scene_phrase(scene)}.",
        f"a picture of {other} on {scene.background}.",
        f"a picture on {scene.background} of {scene_phrase(scene)}.",
    ]


def sample_caption(scene: Scene, rng: random.Random) -> str:
    """A caption of the scene: the canonical one with probability 0.6, each of the four others with 0.1."""
    return rng.choices(captions(scene), [6, 1, 1, 1, 1])[0]


_NOUN = rf"an? ({'|'.join(COLOUR_NAMES)}) ({'|'.join(ALL_NAMES)})"
_PAIR = re.compile(rf"{_NOUN} ({'|'.join(RELATIONS)}) {_NOUN}")
_GROUP = re.compile(rf"(two|three|four) ({'|'.join(COLOUR_NAMES)}) ({'|'.join(sorted(_SINGULARS, key=len)[::-1])})")
_SINGLE = re.compile(_NOUN)
_ON = rf"on (?P<ground>{'|'.join(BACKGROUND_NAMES)})"
_FRAMES = [  # the five forms of `captions`; "there is" is also accepted before a group
    re.compile(frame)
    for frame in (
        rf"(?P<subject>.+) {_ON}",
        rf"there (?:is|are) (?P<subject>.+) {_ON}",
        rf"{_ON} there (?:is|are) (?P<subject>.+)",
        rf"a picture of (?P<subject>.+) {_ON}",
        rf"a picture {_ON} of (?P<subject>.+)",
    )
]


def parse_caption(text: str) -> Scene | None:
    """The scene that a caption of one of the five forms describes, or None for any other text.

    Inverse of `captions`: every caption of a scene parses to that scene. Additional words give None.
    """
    text = " ".join(text.lower().split()).rstrip(".").strip()
    for frame in _FRAMES:
        if (match := frame.fullmatch(text)) and (scene := _parse_subject(match["subject"], match["ground"])):
            return scene
    return None


def _parse_subject(subject: str, background: str) -> Scene | None:
    if match := _PAIR.fullmatch(subject):
        colour_1, name_1, relation, colour_2, name_2 = match.groups()
        layout, in_order = RELATIONS[relation]
        pair = ((name_1, colour_1), (name_2, colour_2))
        return Scene(background, layout, pair if in_order else pair[::-1], 2)
    if match := _GROUP.fullmatch(subject):
        count, colour, names = match.groups()
        return Scene(background, "group", ((_SINGULARS[names], colour),), _COUNTS[count])
    if match := _SINGLE.fullmatch(subject):
        return Scene(background, "single", ((match[2], match[1]),), 1)
    return None


def other_colour(colour: str, rng: random.Random) -> str:
    """Another colour."""
    return rng.choice([c for c in COLOUR_NAMES if c != colour])


def step(scene: Scene, rng: random.Random, names: Names = NAMES) -> tuple[str, Scene]:
    """One step of a story: a sentence, and the next scene, which follows from the sentence and the scene before.

    The next scene may be of any split.
    """
    they = "they" if scene.count > 1 else "it"
    moves = ["recolour", "background", "add" if scene.layout == "single" else "leave", "count"]
    move = rng.choice(moves if scene.kind != "pair" else ["recolour", "background", "leave"])
    i = rng.randrange(len(scene.objects))
    name, colour = scene.objects[i]
    if move == "background":
        ground = rng.choice([g for g in BACKGROUND_NAMES if g != scene.background])
        return f"now {they} {'are' if they == 'they' else 'is'} on {ground}.", replace(scene, background=ground)
    if move == "recolour":
        new = other_colour(colour, rng)
        objects = tuple((name, new) if j == i else pair for j, pair in enumerate(scene.objects))
        words = f"the {plural(name)} turn {new}." if scene.layout == "group" else f"the {name} turns {new}."
        return words, replace(scene, objects=objects)
    if move == "add":
        relation, (layout, in_order) = rng.choice(list(RELATIONS.items()))
        new = (rng.choice([n for n in names if n != name]), rng.choice(COLOUR_NAMES))
        objects = (new, (name, colour)) if in_order else ((name, colour), new)
        words = f"{noun_phrase(*new)} comes {relation} the {name}."
        return words, Scene(scene.background, layout, objects, 2)
    if move == "count":
        number = rng.choice([n for n in (2, 3, 4) if n != scene.count])
        return f"now there are {NUMBERS[number]} {plural(name)}.", replace(scene, layout="group", count=number)
    stays = (scene.objects[1 - i],) if scene.kind == "pair" else scene.objects
    words = f"the {name} leaves." if scene.kind == "pair" else f"only one {name} stays."
    return words, Scene(scene.background, "single", stays, 1)


def story(rng: random.Random, split: Split, length: int, names: Names = NAMES) -> tuple[list[str], list[Scene]]:
    """A story of `length` sentences and scenes without held-out combinations; it starts with a caption.

    The first scene is of the split; the others too for training, else they are of any split.
    """
    scenes = [sample_split(rng, split, names=names)]
    sentences = [caption(scenes[0])]
    while len(scenes) < length:
        words, scene = step(scenes[-1], rng, names)
        # Outside training only the first scene must be unseen: chains of steps rarely stay in a tenth of all scenes.
        if not scene.held_out and (split_of(scene) == "train" or split != "train"):
            sentences.append(words)
            scenes.append(scene)
    return sentences, scenes

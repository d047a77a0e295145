"""Noisy alt texts (register W): bags of words with much of the scene missing, some of it wrong; and their parser.

They stand in for the alt texts of LAION. Pure functions of scenes; all random choices come from the `random.Random`
that is passed in.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import pairwise

from dreamllm.emoji.grammar import NUMBERS, RELATIONS, other_colour, plural
from dreamllm.emoji.scenes import ALL_NAMES, BACKGROUND_NAMES, COLOUR_NAMES, HELD_OUT, Layout, Scene

# Shares of texts, or of the facts in them.
OBJECT_MISSING = 0.1  # of pairs: one of the two objects
COLOUR_MISSING, COLOUR_WRONG = 0.3, 0.08
NUMBER_MISSING = 0.3
RELATION_MISSING = 0.6
BACKGROUND_MISSING, BACKGROUND_WRONG = 0.5, 0.05
SHUFFLED = 0.15  # texts whose words are in random order, so that colours stand beside any object
CUT = 0.2  # texts without their last one to three words
FILLERS = ("photo", "image", "clipart", "icon", "sticker", "vector", "stock", "free", "download", "hd")


@dataclass(frozen=True)
class Told:
    """What an alt text still tells of a scene, right or wrong; None and () for what it does not tell.

    objects: (name, colour or None) in the order of the words, or of the scene if the layout is told.
    """

    objects: tuple[tuple[str, str | None], ...] = ()
    layout: Layout | None = None
    count: int | None = None
    background: str | None = None


def bag(scene: Scene, rng: random.Random) -> str:
    """A noisy alt text: `icon blue car red cat free sand`. It puts no held-out combination into words beside each
    other, unless the scene has it."""
    while True:
        words = _words(scene, rng)
        beside = {(name, colour) for colour, name in pairwise(words)}
        beside |= {(_SINGULARS.get(name, name), colour) for name, colour in beside}
        if words and not (beside & HELD_OUT) - set(scene.objects):
            return " ".join(words)


def _words(scene: Scene, rng: random.Random) -> list[str]:
    things = [_thing(scene, name, colour, rng) for name, colour in scene.objects]
    ground = scene.background
    if rng.random() < BACKGROUND_WRONG:
        ground = rng.choice([other for other in BACKGROUND_NAMES if other != ground])
    if scene.kind == "pair" and rng.random() < OBJECT_MISSING:
        things = [rng.choice(things)]
    elif scene.kind == "pair" and rng.random() >= RELATION_MISSING:
        relation, (_, in_order) = rng.choice([item for item in RELATIONS.items() if item[1][0] == scene.layout])
        first, second = things if in_order else things[::-1]
        things = [[*first, *relation.split(), *second]]
    chunks = [*things, *([word] for word in rng.sample(FILLERS, rng.choice([0, 1, 1, 2])))]
    chunks += [] if rng.random() < BACKGROUND_MISSING else [[ground]]
    rng.shuffle(chunks)
    words = [word for chunk in chunks for word in chunk]
    if rng.random() < SHUFFLED:
        rng.shuffle(words)
    return words[: -rng.randint(1, 3)] if rng.random() < CUT else words


def _thing(scene: Scene, name: str, colour: str, rng: random.Random) -> list[str]:
    draw = rng.random()
    shade = other_colour(colour, rng) if draw < COLOUR_WRONG else colour
    words = [] if draw > 1 - COLOUR_MISSING else [shade]
    if scene.kind != "group":
        return [*words, name]
    return [*([] if rng.random() < NUMBER_MISSING else [NUMBERS[scene.count]]), *words, plural(name)]


_SINGULARS = {plural(name): name for name in ALL_NAMES}
_COUNTS = {word: number for number, word in NUMBERS.items()}
_NOUNS = "|".join(sorted({*ALL_NAMES, *_SINGULARS}, key=len, reverse=True))
_COLOURED = rf"(?:\b({'|'.join(COLOUR_NAMES)}) )?\b({_NOUNS})\b"
_THING = re.compile(_COLOURED)
_RELATED = re.compile(rf"{_COLOURED} ({'|'.join(RELATIONS)}) {_COLOURED}")


def parse(text: str) -> Told | None:
    """What a text of `bag` tells, a colour being of the object right after it; None if it names no object."""
    text = " ".join(text.lower().split())
    grounds = [word for word in text.split() if word in BACKGROUND_NAMES]
    numbers = [_COUNTS[word] for word in text.split() if word in _COUNTS]
    found = [(match[2], match[1]) for match in _THING.finditer(text)]
    if not found:
        return None
    objects = tuple((_SINGULARS.get(noun, noun), colour) for noun, colour in found)
    layout: Layout | None = (
        "group" if numbers or any(noun in _SINGULARS and noun != "fish" for noun, _ in found) else None
    )
    if match := _RELATED.search(text):
        layout, in_order = RELATIONS[match[3]]
        objects = objects if in_order else objects[::-1]
    return Told(objects, layout, numbers[0] if numbers else None, grounds[0] if grounds else None)

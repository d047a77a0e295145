"""Questions about scenes with their answers. Pure functions, like the rest of the language (`grammar.py`)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dreamllm.emoji.grammar import NUMBERS, RELATIONS, noun_phrase, plural
from dreamllm.emoji.scenes import COLOUR_NAMES, HELD_OUT, NAMES, Names, Scene, companions, popularity

NOTHING = "nothing"
"""The answer where no object stands in the place that is asked for."""


@dataclass(frozen=True)
class Question:
    """A question about a picture with its one-word answer; `type` is what VQAv2 calls question_type."""

    type: str
    question: str
    answer: str


def kinds(scene: Scene) -> list[str]:
    """The kinds of question that can be asked of a scene.

    colour              what colour is the cat?             which               is there a cat or a car?
    count               how many cats are there?            background          what is the background?
    presence            is there a cat?                     relation            what is left of the cat?
    presence_coloured   is there a red cat?                 relation_yes_no     is the cat left of the car?
    """
    pairs_only = ["relation", "relation_yes_no"] if scene.kind == "pair" else []
    return ["colour", "count", "presence", "presence_coloured", "which", "background", *pairs_only]


def ask(scene: Scene, kind: str, rng: random.Random, names: Names = NAMES) -> Question:
    """One question about a scene, of one of its `kinds`.

    Half of the questions for yes or no have the answer yes. Raises ValueError for a kind that the scene does not have.
    """
    name, colour = rng.choice(scene.objects)
    if kind not in kinds(scene):
        raise ValueError(f"no {kind!r} question about a scene of layout {scene.layout!r}")
    if kind == "colour":
        words = f"what colour are the {plural(name)}?" if scene.kind == "group" else f"what colour is the {name}?"
        return Question(kind, words, colour)
    if kind == "count":
        number = scene.count if scene.layout == "group" else 1
        return Question(kind, f"how many {plural(name)} are there?", NUMBERS[number])
    if kind == "background":
        return Question(kind, "what is the background?", scene.background)
    if kind == "presence_coloured":
        there = rng.random() < 0.5
        wanted = noun_phrase(name, colour) if there else noun_phrase(*_wrong(scene, name, colour, rng, names))
        return Question(kind, f"is there {wanted}?", "yes" if there else "no")
    if kind == "relation":
        return _ask_what(scene, rng)
    if kind == "relation_yes_no":
        return _ask_whether(scene, rng)
    absent = absent_object(scene, rng.choice(["frequent", "adversarial"]), rng, names)
    if kind == "which":
        first, second = rng.sample([name, absent], 2)
        return Question(kind, f"is there {noun_phrase(first)} or {noun_phrase(second)}?", name)
    there = rng.random() < 0.5
    return Question(kind, f"is there {noun_phrase(name if there else absent)}?", "yes" if there else "no")


def absent_object(scene: Scene, strategy: str, rng: random.Random, names: Names = NAMES) -> str:
    """An object that is not in the scene.

    strategy: POPE's random, popular, or adversarial (often seen together); or frequent: as often as scenes have it, so
    that the name alone does not tell whether it is there
    """
    present = [name for name, _ in scene.objects]
    absent = [name for name in names if name not in present]
    if strategy == "frequent":
        return rng.choices(absent, [popularity(name, names) for name in absent])[0]
    if strategy == "popular":
        absent = sorted(absent, key=lambda name: popularity(name, names), reverse=True)[:3]
    elif strategy == "adversarial":
        absent = [name for name in companions(present[0], names) if name in absent]
    return rng.choice(absent)


def _wrong(scene: Scene, name: str, colour: str, rng: random.Random, names: Names) -> tuple[str, str]:
    """An object and a colour that the scene does not have together; in pairs mostly the colour of the other object.

    Held-out combinations are asked for only where the scene has one: no training question names any.
    """

    def allowed(thing: str, shade: str) -> bool:
        return (thing, shade) not in scene.objects and (scene.held_out or (thing, shade) not in HELD_OUT)

    swapped = [(name, other) for _, other in scene.objects if allowed(name, other)]
    if swapped and rng.random() < 0.6:
        return swapped[0]
    absent = absent_object(scene, "frequent", rng, names)
    if rng.random() < 0.5 and allowed(absent, colour):
        return absent, colour
    return rng.choice([(name, other) for other in COLOUR_NAMES if allowed(name, other)])


def _relation_words(scene: Scene, first: bool) -> str:
    """The words between the objects of a pair in the order of the scene (first), or the other way round."""
    return next(words for words, rule in RELATIONS.items() if rule == (scene.layout, first))


def _ask_what(scene: Scene, rng: random.Random) -> Question:
    """Six of ten have an object as answer; the others nothing: beyond the outer one, or along the other axis."""
    first = rng.random() < 0.5  # whether the place asked for is on the side of the scene's first object
    relation, of = _relation_words(scene, first), scene.objects[int(first)][0]
    answer = scene.objects[1 - int(first)][0]
    draw = rng.random()
    if draw > 0.85:
        across = [words for words, (layout, _) in RELATIONS.items() if layout != scene.layout]
        relation, of, answer = rng.choice(across), rng.choice(scene.objects)[0], NOTHING
    elif draw > 0.6:
        of, answer = answer, NOTHING
    return Question("relation", f"what is {relation} the {of}?", answer)


def _ask_whether(scene: Scene, rng: random.Random) -> Question:
    """Both orders with both words; one in five of those to be denied names a direction of the other axis."""
    first = rng.random() < 0.5
    relation = _relation_words(scene, first)
    one, other = (name for name, _ in scene.objects[:: 1 if first else -1])
    yes = rng.random() < 0.5
    if not yes and rng.random() < 0.2:
        relation = rng.choice([words for words, (layout, _) in RELATIONS.items() if layout != scene.layout])
    elif not yes:
        one, other = other, one
    return Question("relation_yes_no", f"is the {one} {relation} the {other}?", "yes" if yes else "no")

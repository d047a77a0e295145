"""The language of the emoji world: captions, their parser, questions with answers, and the sentences of stories.

Pure functions of scenes; all random choices come from the `random.Random` that is passed in.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from dreamllm.emoji.scenes import (
    ALL_NAMES,
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    NAMES,
    Layout,
    Names,
    Scene,
    Split,
    companions,
    popularity,
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


def narrative(scene: Scene, rng: random.Random) -> str:
    """The scene in three or four sentences of one fact each: `there is a cat left of a car. there is a blue car. ...`

    Stands in for a Localized Narrative (LN-COCO). The objects come first, then colours and background in random order.
    Only words of `captions` occur, which a text encoder trained on captions knows, so that narratives are difficult
    because of their length alone.
    """
    first, last = (name for name, _ in (scene.objects[0], scene.objects[-1]))
    if scene.layout == "group":
        opening = f"there are {NUMBERS[scene.count]} {plural(first)}."
        details = [f"there are {scene.objects[0][1]} {plural(first)}."]
    else:
        relation = next((words for words, rule in RELATIONS.items() if rule == (scene.layout, True)), "")
        opening = f"there is {noun_phrase(first)}{f' {relation} {noun_phrase(last)}' if relation else ''}."
        details = [f"there is {noun_phrase(name, colour)}." for name, colour in scene.objects]
    details.append(f"a picture on {scene.background}.")
    return " ".join([opening, *rng.sample(details, len(details))])


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


@dataclass(frozen=True)
class Question:
    """A question about a picture with its one-word answer; `type` is what VQAv2 calls question_type."""

    type: str
    question: str
    answer: str


def absent_object(scene: Scene, strategy: str, rng: random.Random, names: Names = NAMES) -> str:
    """An object that is not in the scene, sampled as in POPE: random, popular, or adversarial (often seen together)."""
    present = [name for name, _ in scene.objects]
    absent = [name for name in names if name not in present]
    if strategy == "popular":
        absent = sorted(absent, key=lambda name: popularity(name, names), reverse=True)[:3]
    elif strategy == "adversarial":
        absent = [name for name in companions(present[0], names) if name in absent]
    return rng.choice(absent)


def _other_colour(colour: str, rng: random.Random) -> str:
    return rng.choice([c for c in COLOUR_NAMES if c != colour])


def ask(scene: Scene, kind: str, rng: random.Random, names: Names = NAMES) -> Question:
    """One question about a scene: colour, count, presence, relation (pairs only) or background.

    Half of the presence questions have the answer yes. The others ask for a random object, for one that is often seen
    together with an object of the scene, for an object in a wrong colour, or in a pair for one in the other's colour.
    Raises ValueError for a relation question about a scene that is not a pair.
    """
    name, colour = rng.choice(scene.objects)
    if kind == "colour":
        words = f"what colour are the {plural(name)}?" if scene.kind == "group" else f"what colour is the {name}?"
        return Question(kind, words, colour)
    if kind == "count":
        number = scene.count if scene.layout == "group" else 1
        return Question(kind, f"how many {plural(name)} are there?", NUMBERS[number])
    if kind == "background":
        return Question(kind, "what is the background?", scene.background)
    if kind == "presence":
        return _ask_presence(scene, name, colour, rng, names)
    if kind == "relation" and scene.kind == "pair":
        return _ask_relation(scene, rng)
    raise ValueError(f"no {kind!r} question about a scene of layout {scene.layout!r}")


def _ask_presence(scene: Scene, name: str, colour: str, rng: random.Random, names: Names) -> Question:
    coloured = rng.random() < 0.5
    if rng.random() < 0.5:
        return Question("presence", f"is there {noun_phrase(name, colour) if coloured else noun_phrase(name)}?", "yes")
    if not coloured:
        absent = absent_object(scene, rng.choice(["random", "adversarial"]), rng, names)
        return Question("presence", f"is there {noun_phrase(absent)}?", "no")
    wrong = [(name, _other_colour(colour, rng))]
    if scene.kind == "pair" and scene.objects[0][1] != scene.objects[1][1]:
        wrong += [(name, other) for _, other in scene.objects if other != colour]
    return Question("presence", f"is there {noun_phrase(*rng.choice(wrong))}?", "no")


def _ask_relation(scene: Scene, rng: random.Random) -> Question:
    relation, (_, in_order) = rng.choice([item for item in RELATIONS.items() if item[1][0] == scene.layout])
    first, second = (name for name, _ in (scene.objects if in_order else scene.objects[::-1]))
    if rng.random() < 0.5:
        return Question("relation", f"what is {relation} the {second}?", first)
    if rng.random() < 0.5:
        return Question("relation", f"is the {first} {relation} the {second}?", "yes")
    return Question("relation", f"is the {second} {relation} the {first}?", "no")


def question_kinds(scene: Scene) -> list[str]:
    """The kinds of question that can be asked of a scene."""
    return ["colour", "count", "presence", "background"] + (["relation"] if scene.kind == "pair" else [])


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
        new = _other_colour(colour, rng)
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

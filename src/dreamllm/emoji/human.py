"""Human sentences about scenes (register H): synonyms, relations told from either side, coreference; and their parser.

They stand in for the captions that people write (COCO), and narratives for Localized Narratives (LN-COCO). Pure
functions of scenes; all random choices come from the `random.Random` that is passed in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from dreamllm.emoji.grammar import NUMBERS, RELATIONS, noun_phrase, plural, with_articles
from dreamllm.emoji.scenes import ALL_NAMES, BACKGROUND_NAMES, COLOUR_NAMES, Layout, Scene

# One synonym, or word for a kind of it, for every object. None of them is a word of captions, nor of other objects.
SYNONYMS = {
    "apple": "fruit",
    "mushroom": "toadstool",
    "tree": "oak",
    "leaf": "frond",
    "fish": "minnow",
    "cat": "kitten",
    "butterfly": "moth",
    "car": "automobile",
    "house": "cottage",
    "star": "pentagram",
    "heart": "valentine",
    "bell": "chime",
    "umbrella": "parasol",
    "shirt": "blouse",
    "crown": "tiara",
    "rocket": "spaceship",
    "hand": "palm",
    "moon": "crescent",
    "boot": "wellington",
    "gem": "jewel",
    "ghost": "phantom",
    "lock": "padlock",
    "guitar": "banjo",
    "duck": "mallard",
}
COLOUR_SYNONYMS = {
    "red": "scarlet",
    "orange": "tangerine",
    "yellow": "golden",
    "green": "emerald",
    "blue": "azure",
    "purple": "violet",
}
PLACES = {"snow": "on the ice", "sky": "in the air", "sand": "on the beach", "grass": "on the lawn"}

# words between two objects: (layout, whether the object named first is the first of the scene), as in RELATIONS
HUMAN_RELATIONS: dict[str, tuple[Layout, bool]] = {
    "to the left of": ("row", True),
    "at the left of": ("row", True),
    "to the right of": ("row", False),
    "at the right of": ("row", False),
    "over": ("column", True),
    "on top of": ("column", True),
    "under": ("column", False),
    "beneath": ("column", False),
}
# words for the place beside an object named before: (layout, whether what is there is the first of the scene)
BESIDE: dict[str, tuple[Layout, bool]] = {
    "on its left": ("row", True),
    "to its left": ("row", True),
    "on its right": ("row", False),
    "to its right": ("row", False),
    "over it": ("column", True),
    "above it": ("column", True),
    "under it": ("column", False),
    "beneath it": ("column", False),
}

# Sentences by kind of scene. The longest has 24 tokens, so that Stable Diffusion's text encoder reads it whole.
# x and y are the objects of a pair in either order, x the one of a single or a group. {x}: a red cat.  {x_plain}: a cat
# {x_to_y}: words of HUMAN_RELATIONS.  {x_by_y}: where x is, seen from y, of BESIDE
SENTENCES = {
    "single": [
        "{x} is {place}.",
        "{place} you can see {x}.",
        "there is {x_plain} {place}, and it is {x_colour}.",
        "{x_plain} that is {x_colour} is {place}.",
        "the {x_name} {place} is {x_colour}.",
    ],
    "group": [
        "{number} {x_names} are {place}, all of them {x_colour}.",
        "{place} you can see {number} {x_colour} {x_names}.",
        "there are {number} {x_names} {place}, and they are {x_colour}.",
        "{x_colour} {x_names} are {place}, and there are {number} of them.",
        "the {number} {x_names} {place} are {x_colour}.",
    ],
    "pair": [
        "{x} is {x_to_y} {y} {place}.",
        "{x_to_y} {y} you can see {x}, {place}.",
        "{y} has {x} {x_by_y}, {place}.",
        "{y} is {place}, and {x_by_y} is {x}.",
        "{x_plain} that is {x_colour} is {x_to_y} {y_plain} that is {y_colour}, {place}.",
        "there is {y_plain} {place}. it is {y_colour}, and {x_by_y} is {x}.",
        "the {x_name} {place} is {x_colour}, and {y} is {y_by_x}.",
        "{y} and {x_plain} are {place}, the latter {x_colour} and {x_to_y} the former.",
    ],
}
# Narratives: an opening, then the details in any order, each in one of its forms. The former is x, the latter y.
OPENINGS = {
    "single": ["there is {x_plain}.", "you can see {x_plain}."],
    "group": ["there are {number} {x_names}.", "you can see {number} {x_names}."],
    "pair": ["{x_plain} is {x_to_y} {y_plain}.", "you can see {x_plain}, and {y_plain} is {y_by_x}."],
}
_SCENERY = ["everything is {place}.", "all of this is {place}."]
DETAILS = {
    "single": [["it is {x_colour}.", "the {x_name} is {x_colour}."], _SCENERY],
    "group": [["they are {x_colour}.", "the {x_names} are {x_colour}."], _SCENERY],
    "pair": [
        ["the former is {x_colour}.", "the {x_name} is {x_colour}."],
        ["the latter is {y_colour}.", "the {y_name} is {y_colour}."],
        _SCENERY,
    ],
}


def _words_for(name: str, synonyms: Mapping[str, str], rng: random.Random) -> str:
    return rng.choice([name, synonyms[name]])


def _values(scene: Scene, rng: random.Random) -> dict[str, str]:
    """Words for the fields of a sentence: a half of objects, colours and backgrounds by their synonym."""
    ground = scene.background
    values = {"place": rng.choice([f"on {ground}", PLACES[ground]]), "number": NUMBERS[scene.count]}
    order = rng.choice([1, -1]) if scene.kind == "pair" else 1
    for field, (name, colour) in zip("xy", scene.objects[::order], strict=False):
        name, colour = _words_for(name, SYNONYMS, rng), _words_for(colour, COLOUR_SYNONYMS, rng)
        values |= {field: noun_phrase(name, colour), f"{field}_plain": noun_phrase(name)}
        values |= {f"{field}_name": name, f"{field}_names": plural(name), f"{field}_colour": colour}
    if scene.kind == "pair":
        rules = {"x_to_y": (HUMAN_RELATIONS, order == 1), "y_to_x": (HUMAN_RELATIONS, order == -1)}
        rules |= {"x_by_y": (BESIDE, order == 1), "y_by_x": (BESIDE, order == -1)}
        for field, (table, first) in rules.items():
            values[field] = rng.choice([words for words, rule in table.items() if rule == (scene.layout, first)])
    return values


def sentence(scene: Scene, rng: random.Random) -> str:
    """A human sentence or two that tell the whole scene: `an azure car has a kitten on its left, on the beach.`"""
    return rng.choice(SENTENCES[scene.kind]).format_map(_values(scene, rng))


def narrative(scene: Scene, rng: random.Random) -> str:
    """The scene at length, one fact per sentence: `a kitten is over a car. the latter is blue. everything is on sand.`

    Stands in for a Localized Narrative. The objects come first, then colours and background in random order.
    """
    details = rng.sample(DETAILS[scene.kind], len(DETAILS[scene.kind]))
    forms = [rng.choice(OPENINGS[scene.kind]), *map(rng.choice, details)]
    return " ".join(forms).format_map(_values(scene, rng))


# ---- the parser ------------------------------------------------------------------------------------------------------

_NAME = {word: name for name in ALL_NAMES for word in (name, SYNONYMS[name])}
_PLURAL = {plural(word): name for word, name in _NAME.items()}
_COLOUR = {word: colour for colour in COLOUR_NAMES for word in (colour, COLOUR_SYNONYMS[colour])}
_PLACE = {words: ground for ground in BACKGROUND_NAMES for words in (f"on {ground}", PLACES[ground])}
_NUMBER = {word: number for number, word in NUMBERS.items()}
_TABLES: dict[str, Mapping[str, Any]] = {
    "name": _NAME,
    "names": _PLURAL,
    "colour": _COLOUR,
    "place": _PLACE,
    "number": _NUMBER,
    "to_x": HUMAN_RELATIONS,
    "to_y": HUMAN_RELATIONS,
    "by_x": BESIDE,
    "by_y": BESIDE,
}


def _compile(form: str) -> re.Pattern[str]:
    """The regular expression of a sentence with fields; a field that stands twice has the same words twice."""
    form = re.sub(r"\{([xy])\}", r"{a}{\1_colour} {\1_name}", form)
    form = re.sub(r"\{([xy])_plain\}", r"{a}{\1_name}", form)
    pattern, known = "", set()
    for text, field in re.findall(r"([^{]*)(?:\{(\w+)\})?", form):
        pattern += re.escape(text)
        if field == "a":
            pattern += "an? "
        elif field in known:
            pattern += f"(?P={field})"
        elif field:
            known.add(field)
            pattern += f"(?P<{field}>{'|'.join(_TABLES[field.removeprefix('x_').removeprefix('y_')])})"
    return re.compile(pattern)


_SENTENCES = [(kind, _compile(form)) for kind, forms in SENTENCES.items() for form in forms]
_OPENINGS = [(kind, _compile(form)) for kind, forms in OPENINGS.items() for form in forms]
_DETAILS = {kind: [[_compile(form) for form in forms] for forms in DETAILS[kind]] for kind in DETAILS}


def parse(text: str) -> Scene | None:
    """The scene that a text of `sentence` or `narrative` tells, or None for any other text, contradictions included."""
    text = " ".join(text.lower().split())
    for kind, form in _SENTENCES:
        if match := form.fullmatch(text):
            return _scene(kind, match.groupdict())
    opening, *details = re.findall(r"[^.]+\.", text) or [""]
    for kind, form in _OPENINGS:
        if (match := form.fullmatch(opening)) and len(details) == len(_DETAILS[kind]):
            return _narrated(kind, match.groupdict(), [detail.strip() for detail in details])
    return None


def _narrated(kind: str, told: dict[str, str], details: list[str]) -> Scene | None:
    """The scene of an opening and its details: each detail occurs once, of objects that the opening names."""
    for forms in _DETAILS[kind]:
        matches = [match.groupdict() for form in forms for detail in details if (match := form.fullmatch(detail))]
        said = [one for one in matches if all(told.get(field, words) == words for field, words in one.items())]
        if len(said) != 1:
            return None
        told = told | said[0]
    return _scene(kind, told)


def _scene(kind: str, told: Mapping[str, str]) -> Scene | None:
    things = [
        (_NAME[told[f"{x}_name"]] if f"{x}_name" in told else _PLURAL[told[f"{x}_names"]], _COLOUR[told[f"{x}_colour"]])
        for x in "xy"
        if f"{x}_colour" in told
    ]
    background = _PLACE[told["place"]]
    if kind == "single":
        return Scene(background, "single", (things[0],), 1)
    if kind == "group":
        number = _NUMBER[told["number"]]
        return Scene(background, "group", (things[0],), number) if number > 1 else None
    if things[0][0] == things[1][0]:
        return None
    field = next(field for field in ("x_to_y", "y_to_x", "x_by_y", "y_by_x") if field in told)
    layout, in_order = (HUMAN_RELATIONS if "_to_" in field else BESIDE)[told[field]]
    pair = (things[0], things[1]) if in_order == field.startswith("x") else (things[1], things[0])
    return Scene(background, layout, pair, 2)


# ---- captions and questions in human words ---------------------------------------------------------------------------

_HUMAN_WORDS = {name: [synonym] for name, synonym in (SYNONYMS | COLOUR_SYNONYMS).items()}
_HUMAN_WORDS |= {plural(name): [plural(synonym)] for name, synonym in SYNONYMS.items()}
_HUMAN_WORDS |= {
    words: [other for other, other_rule in HUMAN_RELATIONS.items() if other_rule == rule]
    for words, rule in RELATIONS.items()
}
del _HUMAN_WORDS["fish"]  # one or many, which a question does not say
_WORDS = re.compile(rf"\b({'|'.join(sorted(_HUMAN_WORDS, key=len, reverse=True))})\b")


def reword(text: str, rng: random.Random) -> str:
    """A question or caption with a half of its objects, colours and relations in words of human sentences.

    `is the cat left of the car?` -> `is the kitten to the left of the car?`
    """
    return with_articles(_WORDS.sub(lambda match: rng.choice([match[0], rng.choice(_HUMAN_WORDS[match[0]])]), text))

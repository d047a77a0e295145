"""The text-only corpus of the emoji world, on which its language model is pretrained.

It has texts of all registers, questions about texts, lists and stories, and worked examples before a question. All are
about training scenes, so that the language model has not read of held-out object-colour combinations. Half of the
documents are about objects that have no picture, so that the model learns that any object may have any colour.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from dreamllm.config.world import AltText, Register, Registers
from dreamllm.data.document import Document, Text
from dreamllm.emoji import grammar, human, registers
from dreamllm.emoji.questions import Question, ask, kinds
from dreamllm.emoji.scenes import BACKGROUND_NAMES, COLOUR_NAMES, HELD_OUT, NAMES, Names, Scene, sample_split

# Objects without a picture. All have regular plurals and no synonym.
_NOUNS = """
    ball bird boat book cake chair clock cloud cup dog drum flag frog hat horse key kite lamp map pear pig ring rose
    shoe sock spoon tent train wheel wagon ant anchor arrow egg onion owl
"""
TEXT_ONLY_NOUNS = _NOUNS.split()

DESCRIBE = ["describe the picture.", "what does the picture show?", "give a caption."]

REGISTERS = Registers()
"""Shares of the registers, unless a configuration says otherwise."""

# What tells which colour and place belong to which object is asked most often: it is the most difficult to learn.
QUESTION_WEIGHTS = {
    "colour": 3,
    "count": 1,
    "presence": 1,
    "presence_coloured": 3,
    "which": 1,
    "background": 1,
    "relation": 2,
    "relation_yes_no": 2,
}

Form = Literal["text", "facts", "reading", "list", "statements", "few_shot", "tracking", "story", "colours"]
FORMS: Mapping[Form, float] = {
    "text": 10,  # a description
    "facts": 10,  # a scene as data, then its caption and questions
    "reading": 28,  # a description, then its caption or questions
    "list": 8,  # two to eight objects in their colours: questions, or the list once more
    "statements": 10,  # a description, then its single facts, in words of the same order
    "few_shot": 14,  # four descriptions with question and answer, then a fifth
    "tracking": 12,  # a story, then questions about its last scene
    "story": 8,
}
"""Shares of the kinds of document."""

FIRST_FORMS: Mapping[Form, float] = {"colours": 1}  # two to four objects in their colours, then questions about these
"""Documents to begin with. They ask for nothing else than which colour belongs to which object, many times."""


def facts(scene: Scene, rng: random.Random) -> str:
    """A scene as a shuffled list of facts: `background sand, left red cat, right blue car.`"""
    places = {"row": ("left", "right"), "column": ("above", "below")}.get(scene.layout, (grammar.NUMBERS[scene.count],))
    items = [f"{place} {colour} {name}" for place, (name, colour) in zip(places, scene.objects, strict=True)]
    items.append(f"background {scene.background}")
    rng.shuffle(items)
    return f"{', '.join(items)}."


def statements(scene: Scene, rng: random.Random) -> str:
    """Single facts of a scene in random order: `the cat is red. the background is sand. the cat is left of the car.`"""
    group = scene.kind == "group"
    told = [
        f"the {grammar.plural(name) if group else name} {'are' if group else 'is'} {c}." for name, c in scene.objects
    ]
    told.append(f"the background is {scene.background}.")
    if group:
        told.append(f"there are {grammar.NUMBERS[scene.count]} {grammar.plural(scene.objects[0][0])}.")
    if scene.kind == "pair":
        for relation, (layout, in_order) in grammar.RELATIONS.items():
            (first, _), (second, _) = scene.objects if in_order else scene.objects[::-1]
            told += [f"the {first} is {relation} the {second}."] if layout == scene.layout else []
    return " ".join(rng.sample(told, len(told)))


def questions(scene: Scene, rng: random.Random, limit: int, names: Names = NAMES) -> list[Question]:
    """Up to `limit` different questions about a scene, by `QUESTION_WEIGHTS`."""
    able = kinds(scene)
    drawn = rng.choices(able, [QUESTION_WEIGHTS[kind] for kind in able], k=limit)
    return list({asked.question: asked for kind in drawn for asked in [ask(scene, kind, rng, names)]}.values())


def _chat(id: str, premise: str, turns: list[tuple[str, str]]) -> Document:
    parts = [Text(f"{premise} {turns[0][0]}".strip(), "user"), Text(turns[0][1], "assistant")]
    for question, answer in turns[1:]:
        parts += [Text(question, "user"), Text(answer, "assistant")]
    return Document(id, "conversation", tuple(parts))


def _turns(scene: Scene, rng: random.Random, limit: int, names: Names, human_words: bool) -> list[tuple[str, str]]:
    """Questions with their answers; with `human_words` half of the questions are in the words of human sentences."""
    asked = questions(scene, rng, limit, names)
    worded = {human.reword(q.question, rng) if human_words and rng.random() < 0.5 else q.question: q for q in asked}
    return [(words, q.answer) for words, q in worded.items()]


def replace_objects(document: Document, rng: random.Random, names: Names = NAMES) -> Document:
    """The same document about objects of `TEXT_ONLY_NOUNS`: each object becomes the same other one throughout, by
    whatever synonym it is called.

    Fish stay fish: without a plural of their own, a text does not say whether `fish` are one or many.
    """
    words: dict[str, str] = {}
    named = [name for name in names if name != "fish"]
    for name, other in zip(named, rng.sample(TEXT_ONLY_NOUNS, len(named)), strict=True):
        for word in (name, human.SYNONYMS[name]):
            words |= {word: other, grammar.plural(word): f"{other}s"}
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    texts = [part for part in document.parts if isinstance(part, Text)]
    replaced = [grammar.with_articles(pattern.sub(lambda match: words[match[0]], part.text)) for part in texts]
    return replace(document, parts=tuple(replace(part, text=text) for part, text in zip(texts, replaced, strict=True)))


def sample(
    id: str,
    rng: random.Random,
    names: Names = NAMES,
    shares: Registers = REGISTERS,
    forms: Mapping[Form, float] = FORMS,
) -> Document:
    """One document of the corpus: plain text (descriptions, stories) or a conversation about something told in words.

    forms: weights of the kinds of document, on any scale
    """
    document = _sample_about_pictograms(id, rng, names, shares, forms)
    return replace_objects(document, rng, names) if rng.random() < 0.5 else document


def _sample_about_pictograms(
    id: str,
    rng: random.Random,
    names: Names,
    shares: Registers = REGISTERS,
    forms: Mapping[Form, float] = FORMS,
) -> Document:
    form = registers.pick(forms, rng)
    if form == "list":
        return _list(id, rng, names)
    if form == "colours":
        return _colours(id, rng, names)
    scene = _scene(rng, names)
    if form == "text":
        return Document(id, "text", (Text(_describe(scene, rng, shares.text, shares.alt_text)),))
    exact: dict[Register, float] = {one: share for one, share in shares.text.items() if one != "alt_text"}
    exact = exact or {"caption": 1}  # no question is about an alt text, which does not tell the whole scene
    if form == "statements":
        words = f"{_describe(scene, rng, exact)} {statements(scene, rng)}"
        return Document(id, "text", (Text(words),))
    if form == "few_shot":
        return _few_shot(id, rng, names, exact)
    speaks_human = "human" in exact
    if form == "facts":
        turns = [(rng.choice(DESCRIBE), grammar.sample_caption(scene, rng))]
        turns += _turns(scene, rng, 4, names, speaks_human)
        rng.shuffle(turns)
        return _chat(id, facts(scene, rng), turns)
    if form == "reading":
        turns = _turns(scene, rng, rng.choice([4, 8, 12]), names, speaks_human)
        if rng.random() < 0.3:
            turns.insert(0, (rng.choice(DESCRIBE), grammar.caption(scene)))
        return _chat(id, _describe(scene, rng, exact), turns)
    sentences, scenes = grammar.story(rng, "train", rng.choice([2, 3, 4]), names)
    if form == "story":
        return Document(id, "text", (Text(" ".join(sentences)),))
    turns = [(rng.choice(DESCRIBE), grammar.caption(scenes[-1]))] + _turns(scenes[-1], rng, 3, names, speaks_human)
    rng.shuffle(turns)
    return _chat(id, " ".join(sentences), turns)


def _scene(rng: random.Random, names: Names) -> Scene:
    """Mostly pairs, in which the model has to learn which colour and place belong to which object."""
    return sample_split(rng, "train", rng.choices(["single", "pair", "group"], [15, 70, 15])[0], names=names)


def _describe(
    scene: Scene,
    rng: random.Random,
    shares: Mapping[Register, float],
    alt_texts: Mapping[AltText, float] = registers.ALT_TEXT,
) -> str:
    """A description in a register; a third of the human ones are narratives."""
    register = registers.pick(shares, rng)
    if register == "human" and rng.random() < 1 / 3:
        return human.narrative(scene, rng)
    return registers.describe(scene, register, rng, alt_texts)


def _few_shot(id: str, rng: random.Random, names: Names, shares: Mapping[Register, float]) -> Document:
    """Four worked examples and a question, each about a description of its own; in half of them all of one kind."""
    kind = registers.pick(QUESTION_WEIGHTS, rng)
    same, turns = rng.random() < 0.5, []
    for _ in range(5):
        scene = _scene(rng, names)
        while kind not in kinds(scene):
            scene = _scene(rng, names)
        asked = ask(scene, kind, rng, names) if same else questions(scene, rng, 1, names)[0]
        turns.append((f"{registers.describe(scene, registers.pick(shares, rng), rng)} {asked.question}", asked.answer))
    return _chat(id, "", turns)


def _list(id: str, rng: random.Random, names: Names) -> Document:
    """Two to eight objects in colours, `a red cat, a blue car, a green bell.`, then the list again or questions."""
    things = _things(rng, min(rng.randint(2, 8), len(names) - 1), names)
    told = f"{', '.join(grammar.noun_phrase(*thing) for thing in things)}."
    if rng.random() < 0.3:
        again = " ".join(
            f"the {name} is {colour}." for name, colour in rng.choice([things, rng.sample(things, len(things))])
        )
        return Document(id, "text", (Text(f"{told} {rng.choice([told, again])}"),))
    turns = [_about_list(things, rng, names) for _ in range(rng.choice([4, 6, 8]))]
    return _chat(id, told, list(dict(turns).items()))


def _things(rng: random.Random, count: int, names: Names) -> list[tuple[str, str]]:
    """Different objects, each in a colour; no held-out combinations."""
    return [
        (name, rng.choice([colour for colour in COLOUR_NAMES if (name, colour) not in HELD_OUT]))
        for name in rng.sample(names, count)
    ]


def _colours(id: str, rng: random.Random, names: Names) -> Document:
    """Two to four objects in colours, and questions about their colours, the same ones more than once."""
    things = _things(rng, rng.randint(2, 4), names)
    between = rng.choice([", ", ". ", " and ", " left of ", " above "])
    told = between.join(grammar.noun_phrase(*thing) for thing in things)
    ground = rng.choice(["", f" on {rng.choice(BACKGROUND_NAMES)}"])
    asked = rng.choices(things, k=rng.randint(4, 8))
    return _chat(id, f"{told}{ground}.", [(f"what colour is the {name}?", colour) for name, colour in asked])


def _about_list(things: list[tuple[str, str]], rng: random.Random, names: Names) -> tuple[str, str]:
    """A question about one of the objects of a list, with its answer."""
    name, colour = rng.choice(things)
    kind = rng.choice(["colour", "colour", "presence_coloured", "presence"])
    if kind == "colour":
        return f"what colour is the {name}?", colour
    there = rng.random() < 0.5
    if kind == "presence":
        absent = rng.choice([other for other in names if other not in dict(things)])
        return f"is there {grammar.noun_phrase(name if there else absent)}?", "yes" if there else "no"
    others = [c for c in (dict(things).values() if rng.random() < 0.7 else COLOUR_NAMES) if c != colour]
    others = [c for c in others if (name, c) not in HELD_OUT]
    if not there and not others:
        return f"what colour is the {name}?", colour
    return f"is there {grammar.noun_phrase(name, colour if there else rng.choice(others))}?", "yes" if there else "no"

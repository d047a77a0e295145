"""The text-only corpus of the emoji world: what its language model learns to read and write before it sees a picture.

Captions, data-to-text, questions about described scenes, and stories whose last state has to be tracked. Only training
scenes occur, so the language model has not met a held-out combination either. Half of the documents tell of things that
no picture shows: a language model has read of more than it will see, and so learns that any thing may have any colour.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from dreamllm.data.document import Document, Text
from dreamllm.emoji import grammar
from dreamllm.emoji.scenes import NAMES, Names, Scene, sample_split

# Things without a picture, by the article they take. All have regular plurals.
_A = """
    ball bird boat book cake chair clock cloud cup dog drum flag frog hat horse key kite lamp map pear pig ring rose
    shoe sock spoon tent train wheel wagon
"""
UNSEEN = {"a": _A.split(), "an": ["ant", "anchor", "arrow", "egg", "onion", "owl"]}

DESCRIBE = ["describe the picture.", "what does the picture show?", "give a caption."]


def facts(scene: Scene, rng: random.Random) -> str:
    """A scene as a shuffled list of facts: `background sand, left red cat, right blue car.`"""
    places = {"row": ("left", "right"), "column": ("above", "below")}.get(scene.layout, (grammar.NUMBERS[scene.count],))
    items = [f"{place} {colour} {name}" for place, (name, colour) in zip(places, scene.objects, strict=True)]
    items.append(f"background {scene.background}")
    rng.shuffle(items)
    return f"{', '.join(items)}."


def _chat(id: str, premise: str, turns: list[tuple[str, str]]) -> Document:
    parts = [Text(f"{premise} {turns[0][0]}".strip(), "user"), Text(turns[0][1], "assistant")]
    for question, answer in turns[1:]:
        parts += [Text(question, "user"), Text(answer, "assistant")]
    return Document(id, "conversation", tuple(parts))


def questions(scene: Scene, rng: random.Random, most: int, names: Names = NAMES) -> list[tuple[str, str]]:
    """Up to `most` different questions about a scene with their answers; presence twice as often as the others."""
    kinds = grammar.question_kinds(scene) + ["presence"]
    asked = {
        q.question: q.answer for kind in rng.choices(kinds, k=most) for q in [grammar.ask(scene, kind, rng, names)]
    }
    return list(asked.items())


def rename(document: Document, rng: random.Random, names: Names = NAMES) -> Document:
    """The same document about things of `UNSEEN`: each thing becomes one other throughout, fish stay fish.

    Fish have no plural of their own, so that a text does not say whether `fish` are one or many.
    """
    unseen = {article: rng.sample(things, len(things)) for article, things in UNSEEN.items()}
    words: dict[str, str] = {}
    for name in [name for name in names if name != "fish"]:
        other = unseen[grammar.noun_plain(name).split()[0]].pop()
        words |= {name: other, grammar.plural(name): f"{other}s"}
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    told = [part for part in document.parts if isinstance(part, Text)]
    return replace(
        document, parts=tuple(replace(part, text=pattern.sub(lambda m: words[m[0]], part.text)) for part in told)
    )


def sample(id: str, rng: random.Random, names: Names = NAMES) -> Document:
    """One document of the corpus: plain text (captions, stories) or a conversation about a scene told in words."""
    document = _about_seen_things(id, rng, names)
    return rename(document, rng, names) if rng.random() < 0.5 else document


def _about_seen_things(id: str, rng: random.Random, names: Names) -> Document:
    # Pairs are where language has work to do: which colour and which place belong to which object.
    scene = sample_split(rng, "train", rng.choices(["single", "pair", "group"], [15, 70, 15])[0], names=names)
    form = rng.choices(["caption", "facts", "reading", "tracking", "story"], [10, 25, 35, 20, 10])[0]
    if form == "caption":
        return Document(id, "text", (Text(grammar.sample_caption(scene, rng)),))
    if form == "facts":
        turns = [(rng.choice(DESCRIBE), grammar.sample_caption(scene, rng))] + questions(scene, rng, 2, names)
        rng.shuffle(turns)
        return _chat(id, facts(scene, rng), turns)
    if form == "reading":
        return _chat(id, grammar.sample_caption(scene, rng), questions(scene, rng, 4, names))
    sentences, scenes = grammar.story(rng, "train", rng.choice([2, 3, 4]), names)
    if form == "story":
        return Document(id, "text", (Text(" ".join(sentences)),))
    turns = [(rng.choice(DESCRIBE), grammar.caption(scenes[-1]))] + questions(scenes[-1], rng, 2, names)
    rng.shuffle(turns)
    return _chat(id, " ".join(sentences), turns)

"""The text-only corpus of the emoji world, on which its language model is pretrained.

It has captions, data-to-text, questions about described scenes, and stories whose last state has to be tracked. All are
about training scenes, so that the language model has not read of held-out object-colour combinations. Half of the
documents are about objects that have no picture, so that the model learns that any object may have any colour.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from dreamllm.data.document import Document, Text
from dreamllm.emoji import grammar
from dreamllm.emoji.scenes import NAMES, Names, Scene, sample_split

# Objects without a picture, by article. All have regular plurals.
_A = """
    ball bird boat book cake chair clock cloud cup dog drum flag frog hat horse key kite lamp map pear pig ring rose
    shoe sock spoon tent train wheel wagon
"""
TEXT_ONLY_NOUNS = {"a": _A.split(), "an": ["ant", "anchor", "arrow", "egg", "onion", "owl"]}

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


def questions(scene: Scene, rng: random.Random, limit: int, names: Names = NAMES) -> list[tuple[str, str]]:
    """Up to `limit` different questions about a scene with their answers; presence twice as often as other kinds."""
    kinds = grammar.question_kinds(scene) + ["presence"]
    asked = {
        q.question: q.answer for kind in rng.choices(kinds, k=limit) for q in [grammar.ask(scene, kind, rng, names)]
    }
    return list(asked.items())


def replace_objects(document: Document, rng: random.Random, names: Names = NAMES) -> Document:
    """The same document about objects of `TEXT_ONLY_NOUNS`: each object becomes the same other one throughout.

    Fish stay fish: without a plural of their own, a text does not say whether `fish` are one or many.
    """
    unseen = {article: rng.sample(nouns, len(nouns)) for article, nouns in TEXT_ONLY_NOUNS.items()}
    words: dict[str, str] = {}
    for name in [name for name in names if name != "fish"]:
        other = unseen[grammar.noun_phrase(name).split()[0]].pop()
        words |= {name: other, grammar.plural(name): f"{other}s"}
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    texts = [part for part in document.parts if isinstance(part, Text)]
    return replace(
        document, parts=tuple(replace(part, text=pattern.sub(lambda m: words[m[0]], part.text)) for part in texts)
    )


def sample(id: str, rng: random.Random, names: Names = NAMES) -> Document:
    """One document of the corpus: plain text (captions, stories) or a conversation about a scene described in words."""
    document = _sample_about_pictograms(id, rng, names)
    return replace_objects(document, rng, names) if rng.random() < 0.5 else document


def _sample_about_pictograms(id: str, rng: random.Random, names: Names) -> Document:
    # Mostly pairs, in which the model has to learn which colour and place belong to which object.
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

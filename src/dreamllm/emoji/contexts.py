"""Drawing in context (paper Figure 5): documents whose pictures are gone on with by a sentence and one more picture.

    edit      a picture, what changes in it, the changed picture       [picture] the cat turns blue.
    subject   one or two pictures of a thing, the thing elsewhere      [picture] the cat left of a red car on sand.
    compose   a picture of each of two things, both of them together   [picture] [picture] the cat above the car on sky.

What the pictures show is not told, their colours least of all: it has to be read off them. The words are those of
captions, questions and stories, which the language model knows (`grammar.py`, `corpus.py`).
"""

from __future__ import annotations

import json
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.data.images import encode_png
from dreamllm.emoji import grammar
from dreamllm.emoji.scenes import (
    BACKGROUND_NAMES,
    NAMES,
    Names,
    Scene,
    Split,
    render,
    sample_scene,
    split_of,
)
from dreamllm.seeds import seed_of

Kind = Literal["edit", "subject", "compose"]
KINDS: tuple[Kind, ...] = ("edit", "subject", "compose")


@dataclass(frozen=True)
class Context:
    """What is shown, what is said, and what shall be drawn."""

    kind: Kind
    shown: tuple[Scene, ...]
    sentence: str
    wanted: Scene

    def fits(self, split: Split, held_out: bool) -> bool:
        """Whether it may stand in a split: what is wanted is of the split, what is shown of it or of training.

        held_out: whether a combination that training never shows is wanted; else none is shown either
        """
        places = all(split_of(scene) in ("train", split) for scene in self.shown)
        seen = held_out or not any(scene.held_out for scene in self.shown)
        return places and seen and split_of(self.wanted) == split and self.wanted.held_out == held_out


def sample(rng: random.Random, kind: Kind, split: Split, held_out: bool = False, names: Names = NAMES) -> Context:
    """Draw a context of a kind and a split by rejection. In training nothing is held out."""
    make = {"edit": _edit, "subject": _subject, "compose": _compose}[kind]
    while True:
        context = make(rng, names)
        if context.fits(split, held_out):
            return context


def _edit(rng: random.Random, names: Names) -> Context:
    """The step of a story, whose beginning is only shown."""
    before = sample_scene(rng, names=names)
    sentence, after = grammar.step(before, rng, names)
    return Context("edit", (before,), sentence, after)


def _subject(rng: random.Random, names: Names) -> Context:
    """A thing alone on one or two other backgrounds, then elsewhere: alone, in numbers or in company."""
    wanted = sample_scene(rng, names=names)
    place = rng.randrange(len(wanted.objects))
    name, colour = wanted.objects[place]
    grounds = rng.sample([ground for ground in BACKGROUND_NAMES if ground != wanted.background], rng.choice([1, 2]))
    if wanted.kind == "group":
        words = f"{grammar.NUMBERS[wanted.count]} {grammar.plural(name)}"
    elif wanted.kind == "single":
        words = f"the {name}"
    else:
        words = f"the {name} {_relation(wanted, place)} {grammar.noun(*wanted.objects[1 - place])}"
    shown = tuple(_alone(name, colour, ground) for ground in grounds)
    return Context("subject", shown, f"{words} on {wanted.background}.", wanted)


def _compose(rng: random.Random, names: Names) -> Context:
    """Two things alone, in either order, then both of them."""
    wanted = sample_scene(rng, "pair", names)
    shown = [_alone(name, colour, rng.choice(BACKGROUND_NAMES)) for name, colour in wanted.objects]
    rng.shuffle(shown)
    place = rng.randrange(2)
    first, second = wanted.objects[place][0], wanted.objects[1 - place][0]
    sentence = f"the {first} {_relation(wanted, place)} the {second} on {wanted.background}."
    return Context("compose", tuple(shown), sentence, wanted)


def _alone(name: str, colour: str, background: str) -> Scene:
    return Scene(background, "single", ((name, colour),), 1)


def _relation(pair: Scene, place: int) -> str:
    """How one thing of a pair stands to the other one, in words."""
    return next(words for words, rule in grammar.RELATIONS.items() if rule == (pair.layout, place == 0))


def document(id: str, rng: random.Random, side: int, names: Names = NAMES) -> Document:
    """A document to learn from, the kinds equally often."""
    context = sample(rng, rng.choice(KINDS), "train", names=names)
    shown = [Picture(render(scene, side, rng)) for scene in context.shown]
    parts: tuple[Part, ...] = (*shown, Text(context.sentence), Picture(render(context.wanted, side, rng)))
    scenes = [scene.to_json() for scene in (*context.shown, context.wanted)]
    return Document(id, "interleaved", parts, {"kind": context.kind, "scenes": scenes})


def write_benchmark(folder: Path, split: Split, seed: int, count: int, side: int, names: Names) -> None:
    """Write in_context_SPLIT.jsonl and its pictures, in_context_SPLIT.zip, into the folder of a world's benchmarks.

    Kinds in turn, every fourth held out, so that any first n are balanced.
    """
    rng = random.Random(seed_of(seed, "emoji world contexts", split))
    records = []
    with zipfile.ZipFile(folder / f"in_context_{split}.zip", "w", zipfile.ZIP_STORED) as archive:
        for i in range(count):
            context = sample(rng, KINDS[i // 4 % 3], split, i % 4 == 3, names)
            scenes = (*context.shown, context.wanted)
            files = [f"{10 * i + n:012d}.png" for n in range(len(scenes))]
            for name, scene in zip(files, scenes, strict=True):
                archive.writestr(zipfile.ZipInfo(name), encode_png(render(scene, side, rng)))
            record = {
                "id": i,
                "kind": context.kind,
                "held_out": context.wanted.held_out,
                "shown": files[:-1],
                "sentence": context.sentence,
                "picture": files[-1],
                "scene": context.wanted.to_json(),
            }
            records.append(record)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"in_context_{split}.jsonl").write_text(lines)

"""In-context image generation (paper Figure 5): reference pictures, a sentence, and the picture that follows from both.

    edit      a picture, what changes in it, the changed picture       [picture] the cat turns blue.
    subject   one or two pictures of an object, the object elsewhere   [picture] the cat left of a red car on sand.
    compose   a picture of each of two objects, both together          [picture] [picture] the cat above the car on sky.

The sentence does not say what the reference pictures show, in particular no colours: a model has to read that off the
pictures. The words are those of captions, questions and stories, which the language model knows (`grammar.py`,
`corpus.py`).
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
    """Scenes of the reference pictures, the sentence, and the scene to draw."""

    kind: Kind
    references: tuple[Scene, ...]
    sentence: str
    target: Scene

    def is_in(self, split: Split, held_out: bool) -> bool:
        """Whether the target is in the split and all references are in the split or in training.

        held_out: whether the target has an object-colour combination that training never shows; if not, the references
        have none either.
        """
        if not held_out and any(scene.held_out for scene in self.references):
            return False
        allowed = all(split_of(scene) in ("train", split) for scene in self.references)
        return allowed and split_of(self.target) == split and self.target.held_out == held_out


def sample(rng: random.Random, kind: Kind, split: Split, held_out: bool = False, names: Names = NAMES) -> Context:
    """Sample a context of a kind and a split, by rejection."""
    make = {"edit": _edit, "subject": _subject, "compose": _compose}[kind]
    while True:
        context = make(rng, names)
        if context.is_in(split, held_out):
            return context


def _edit(rng: random.Random, names: Names) -> Context:
    """A step of a story; the scene before it is only shown."""
    before = sample_scene(rng, names=names)
    sentence, after = grammar.step(before, rng, names)
    return Context("edit", (before,), sentence, after)


def _subject(rng: random.Random, names: Names) -> Context:
    """An object alone on one or two other backgrounds, then elsewhere: alone, in a group or in a pair."""
    target = sample_scene(rng, names=names)
    place = rng.randrange(len(target.objects))
    name, colour = target.objects[place]
    grounds = rng.sample([ground for ground in BACKGROUND_NAMES if ground != target.background], rng.choice([1, 2]))
    if target.kind == "group":
        words = f"{grammar.NUMBERS[target.count]} {grammar.plural(name)}"
    elif target.kind == "single":
        words = f"the {name}"
    else:
        words = f"the {name} {_relation(target, place)} {grammar.noun_phrase(*target.objects[1 - place])}"
    references = tuple(_alone(name, colour, ground) for ground in grounds)
    return Context("subject", references, f"{words} on {target.background}.", target)


def _compose(rng: random.Random, names: Names) -> Context:
    """Each of two objects alone, in either order, then both together."""
    target = sample_scene(rng, "pair", names)
    references = [_alone(name, colour, rng.choice(BACKGROUND_NAMES)) for name, colour in target.objects]
    rng.shuffle(references)
    place = rng.randrange(2)
    first, second = target.objects[place][0], target.objects[1 - place][0]
    sentence = f"the {first} {_relation(target, place)} the {second} on {target.background}."
    return Context("compose", tuple(references), sentence, target)


def _alone(name: str, colour: str, background: str) -> Scene:
    return Scene(background, "single", ((name, colour),), 1)


def _relation(pair: Scene, place: int) -> str:
    """The relation of the object at `place` in a pair to the other one, in words."""
    return next(words for words, rule in grammar.RELATIONS.items() if rule == (pair.layout, place == 0))


def document(id: str, rng: random.Random, side: int, names: Names = NAMES) -> Document:
    """A training document; the kinds are equally frequent."""
    context = sample(rng, rng.choice(KINDS), "train", names=names)
    references = [Picture(render(scene, side, rng)) for scene in context.references]
    parts: tuple[Part, ...] = (*references, Text(context.sentence), Picture(render(context.target, side, rng)))
    scenes = [scene.to_json() for scene in (*context.references, context.target)]
    return Document(id, "interleaved", parts, {"kind": context.kind, "scenes": scenes})


def write_benchmark(folder: Path, split: Split, seed: int, count: int, side: int, names: Names) -> None:
    """Write in_context_SPLIT.jsonl and its pictures, in_context_SPLIT.zip, into a folder of benchmarks.

    Kinds alternate and every fourth target is held out, so that the first n items are balanced for any n.
    """
    rng = random.Random(seed_of(seed, "emoji world contexts", split))
    records = []
    with zipfile.ZipFile(folder / f"in_context_{split}.zip", "w", zipfile.ZIP_STORED) as archive:
        for i in range(count):
            context = sample(rng, KINDS[i // 4 % 3], split, i % 4 == 3, names)
            scenes = (*context.references, context.target)
            files = [f"{10 * i + n:012d}.png" for n in range(len(scenes))]
            for name, scene in zip(files, scenes, strict=True):
                archive.writestr(zipfile.ZipInfo(name), encode_png(render(scene, side, rng)))
            record = {
                "id": i,
                "kind": context.kind,
                "held_out": context.target.held_out,
                "shown": files[:-1],
                "sentence": context.sentence,
                "picture": files[-1],
                "scene": context.target.to_json(),
            }
            records.append(record)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"in_context_{split}.jsonl").write_text(lines)

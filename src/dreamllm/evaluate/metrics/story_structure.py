"""Free interleaving: are images where they belong, and which scene should each show?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dreamllm.emoji.grammar import NUMBERS, RELATIONS, plural
from dreamllm.emoji.scenes import BACKGROUND_NAMES, COLOUR_NAMES, PICTOGRAMS, Scene

Part = dict[str, str]  # {"text": ...} or {"image": file name}, as in a prediction


def sentences(text: str) -> list[str]:
    """Split at full stops, question and exclamation marks, which stay with their sentence."""
    return [sentence.strip() for sentence in re.findall(r"[^.!?]*[.!?]+|[^.!?]+$", text) if sentence.strip()]


def well_placed(opening: str, parts: Sequence[Part]) -> bool:
    """Whether every sentence, the opening included, is complete and followed by exactly one picture.

    So a story without pictures, with two pictures in a row, or that breaks off in a sentence is not well placed.
    """
    words = opening  # since the last picture
    for part in parts:
        if "text" in part:
            words += part["text"]
        elif len(complete := sentences(words)) == 1 and complete[0][-1] in ".!?":
            words = ""
        else:
            return False
    return not sentences(words)


def expected_scenes(first: Scene, parts: Sequence[Part]) -> Iterator[Scene | None]:
    """For each generated image, the scene that the story has reached by the model's own words.

    `first` is the scene of the opening; after a sentence that does not fit the scene, the expected scene is None.
    """
    scene: Scene | None = first
    words = ""  # since the last picture
    for part in parts:
        if "text" in part:
            words += part["text"]
            continue
        for sentence in sentences(words):
            scene = follow(scene, sentence) if scene else None
        words = ""
        yield scene


def follow(scene: Scene, sentence: str) -> Scene | None:
    """The scene after a sentence of a story, inverse of `grammar.step`; None when the sentence does not fit."""
    words = " ".join(sentence.lower().split()).rstrip(".")
    names = [name for name, _ in scene.objects]
    if match := re.fullmatch(r"now (?:it is|they are) on (\w+)", words):
        return replace(scene, background=match[1]) if match[1] in BACKGROUND_NAMES else None
    if match := re.fullmatch(r"the (\w+) turns? (\w+)", words):
        spoken = [plural(name) if scene.layout == "group" else name for name in names]
        if match[1] not in spoken or match[2] not in COLOUR_NAMES:
            return None
        place = spoken.index(match[1])
        objects = [*scene.objects]
        objects[place] = (names[place], match[2])
        return replace(scene, objects=tuple(objects))
    if match := re.fullmatch(rf"an? (\w+) (\w+) comes ({'|'.join(RELATIONS)}) the (\w+)", words):
        colour, name, relation, other = match.groups()
        known = colour in COLOUR_NAMES and name in PICTOGRAMS and name != other
        if scene.layout != "single" or names != [other] or not known:
            return None
        layout, in_order = RELATIONS[relation]
        pair = ((name, colour), scene.objects[0])
        return Scene(scene.background, layout, pair if in_order else pair[::-1], 2)
    if match := re.fullmatch(r"now there are (two|three|four) (\w+)", words):
        count = next(number for number, word in NUMBERS.items() if word == match[1])
        fits = len(names) == 1 and match[2] == plural(names[0])
        return replace(scene, layout="group", count=count) if fits else None
    if match := re.fullmatch(r"the (\w+) leaves|only one (\w+) stays", words):
        left, alone = match.groups()
        if left in names and scene.kind == "pair":
            return Scene(scene.background, "single", tuple(pair for pair in scene.objects if pair[0] != left), 1)
        return replace(scene, layout="single", count=1) if scene.layout == "group" and names == [alone] else None
    return None

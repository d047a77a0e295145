"""The three registers of the emoji world's language: the same scene, said in three ways.

    alt_text   W   noisy alt texts (LAION)                      icon blue car red cat
    caption    S   clean captions (LAION-COCO, BLIP captions)   a red cat left of a blue car on sand.
    human      H   human sentences (COCO, LN-COCO)              a car is on the beach. on its left is a scarlet kitten.

An alt text of a world is a `bag` of words (`alt_text.py`) or, by the shares of its configuration, a clean caption or a
human sentence: some texts of the web are that good.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TypeVar

from dreamllm.config.world import AltText, Register, Registers
from dreamllm.emoji import alt_text, human
from dreamllm.emoji.grammar import sample_caption
from dreamllm.emoji.scenes import Scene

Name = TypeVar("Name", bound=str)

ALT_TEXT: Mapping[AltText, float] = Registers().alt_text
"""Shares of the forms of alt texts, unless a configuration says otherwise."""


def describe(scene: Scene, register: Register, rng: random.Random, forms: Mapping[AltText, float] = ALT_TEXT) -> str:
    """A text of a register about a scene.

    forms: shares of the forms among alt texts, on any scale
    """
    form = pick(forms, rng) if register == "alt_text" else register
    return {"bag": alt_text.bag, "caption": sample_caption, "human": human.sentence}[form](scene, rng)


def pick(shares: Mapping[Name, float], rng: random.Random) -> Name:
    """One of the names, by shares on any scale, in whatever order they are given."""
    names = sorted(shares)
    return rng.choices(names, [shares[name] for name in names])[0]

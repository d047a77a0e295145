"""The words that scenes of the emoji world are made of, for people who write prompts: `dreamllm generate --words`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from dreamllm.emoji.grammar import NUMBERS, RELATIONS, scene_phrase
from dreamllm.emoji.human import COLOUR_SYNONYMS, HUMAN_RELATIONS, PLACES, SYNONYMS
from dreamllm.emoji.scenes import BACKGROUND_NAMES, COLOUR_NAMES, HELD_OUT, NAMES, Scene


def listing(names: Sequence[str] = NAMES) -> str:
    """All words for objects, colours, places, numbers and relations, with their synonyms, and examples of prompts.

    names: the objects of the world
    """
    single = Scene("grass", "single", (("cat", "red"),), 1)
    group = Scene("snow", "group", (("star", "yellow"),), 3)
    pair = Scene("sand", "row", (("fish", "blue"), ("tree", "green")), 2)
    held_out = [f"{colour} {name}" for name, colour in sorted(HELD_OUT) if name in names]
    rows = {
        "objects": [f"{name} ({SYNONYMS[name]})" for name in names],
        "colours": [f"{colour} ({COLOUR_SYNONYMS[colour]})" for colour in COLOUR_NAMES],
        "places": [f"on {ground} ({PLACES[ground]})" for ground in BACKGROUND_NAMES],
        "numbers": list(NUMBERS.values()),
        "relations": [*RELATIONS, *HUMAN_RELATIONS],
        "held out of training": held_out,
    }
    prompts = [f"draw {scene_phrase(scene)} on {scene.background}." for scene in (single, group, pair)]
    lines = [f"{title}: {', '.join(words)}" for title, words in rows.items()]
    return "\n".join([*lines, "prompts such as:", *(f"  {prompt}" for prompt in prompts)])


class PrintWords(argparse.Action):
    """The flag --words: print the listing, and nothing else."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        """Print and exit."""
        print(listing())
        parser.exit()

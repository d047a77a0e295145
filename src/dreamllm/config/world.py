"""The section `world` of an experiment file: the emoji world, its training documents and its benchmarks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dreamllm.config.base import Count, Number, Section

WORLD_SETS = ("pairs", "stories", "instructions", "text", "contexts")
"""Shard sets of the emoji world. A mixture names them, or sets of the section `sources`."""


class WorldTraining(Section):
    """Number of training documents per shard set."""

    pairs: Count = 12000
    """Pictures with a caption."""
    stories: Count = 4000
    """Interleaved stories, the scene changes step by step."""
    instructions: Count = 6000
    """Drawing, describing and question-answering instructions."""
    text: Count = 12000
    """Text-only documents."""
    contexts: Number = 0
    """Pictures, a sentence and the picture that follows from both: editing, subject-driven, compositional; 0 = none."""


class WorldBenchmarks(Section):
    """Number of benchmark items in each of the splits dev and test, on scenes that no training document holds."""

    pictures: Count = 240
    """Pictures with five reference captions each; the questions of VQA and POPE are asked about them."""
    draw: Count = 240
    """Prompts to draw, and as many narratives of the same pictures."""
    stories: Count = 100
    """Openings of stories to go on with in text and pictures."""
    language: Count = 200
    """Text-only items of each kind, PIQA and BoolQ."""
    in_context: Number = 0
    """Pictures to draw from other pictures and a sentence (docs/figures.md); 0 = none."""


class World(Section):
    """The emoji world: documents and benchmarks made of OpenMoji pictograms."""

    folder: str = "data/emoji"
    """Where it is written. Experiments with the same world may share a folder."""
    seed: int = 0
    """Everything in the world follows from this number."""
    picture_side: Count = 48
    """Width and height of a picture in pixels."""
    pictograms: Annotated[int, Field(ge=6, le=24)] = 16
    """Number of different objects: the first ones of the list in src/dreamllm/emoji/scenes.py. Foundation models know
    those of the world that they were trained on."""
    training: WorldTraining = WorldTraining()
    benchmarks: WorldBenchmarks = WorldBenchmarks()

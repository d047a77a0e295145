"""The section `world` of an experiment file: the emoji world, its training documents and its benchmarks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dreamllm.config.base import Count, Number, OwnFolder, Section, Seed

WORLD_SETS = ("pairs", "stories", "instructions", "text", "contexts")
"""Shard sets of the emoji world, for mixtures."""


class WorldTraining(Section):
    """Number of training documents per shard set."""

    pairs: Count = 12000
    """Pictures with a caption."""
    stories: Count = 4000
    """Interleaved stories, in which a scene changes step by step."""
    instructions: Count = 6000
    """Instructions to draw, to describe, and to answer questions."""
    text: Count = 12000
    """Text-only documents."""
    contexts: Number = 0
    """In-context generation (editing, subject-driven, compositional): reference pictures, a sentence, and the picture
    that follows from both; 0 = none."""


class WorldBenchmarks(Section):
    """Number of benchmark items in each of the splits dev and test, on scenes that no training document has."""

    pictures: Count = 240
    """Pictures with five reference captions each; the questions of VQA and POPE are about them."""
    draw: Count = 240
    """Prompts for image generation, and as many narratives of the same pictures."""
    stories: Count = 100
    """Openings of stories to continue with text and pictures."""
    language: Count = 200
    """Text-only items of each format, PIQA and BoolQ."""
    in_context: Number = 0
    """Items of in-context generation, each with reference pictures and a sentence (docs/figures.md); 0 = none."""


class World(Section):
    """The emoji world: documents and benchmarks made of OpenMoji pictograms."""

    folder: OwnFolder = "data/emoji"
    """Folder below data/ to write to. Experiments with the same world may share it."""
    seed: Seed = 0
    """Seed of everything in the world."""
    picture_side: Count = 48
    """Width and height of a picture in pixels."""
    pictograms: Annotated[int, Field(ge=6, le=24)] = 16
    """Number of different objects: the first ones of the list in src/dreamllm/emoji/scenes.py. Foundation models know
    only the objects of the world that they were trained on."""
    training: WorldTraining = WorldTraining()
    benchmarks: WorldBenchmarks = WorldBenchmarks()

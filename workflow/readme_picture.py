"""Makes the picture at the top of README.md from stored predictions: text and images that the default run generated.

Usage: python workflow/readme_picture.py      (after `make tables`)

Items are chosen by rule, not by their looks (CHOICE). The same predictions give the same bytes.
"""

from __future__ import annotations

import io
import textwrap
import zipfile
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from dreamllm.atomic import new_file
from dreamllm.data.images import decode
from dreamllm.evaluate.predictions import Predictions, read

ROOT = Path(__file__).parent.parent
PREDICTIONS, BENCHMARKS = ROOT / "results/predictions/embedded/sft", ROOT / "data/emoji/benchmarks"
OUT = ROOT / "docs/images/readme.png"
CHOICE = """Items of the split test, mistakes included: the first two stories that begin with one kind of object and
have three images; the first prompts of each kind of scene (three with one object, three with a group, one with two
different objects), as captions and as human sentences; as many images after those."""
STORIES, STORY_IMAGES = ("2", "3"), 3
PROMPTS = ("0", "1", "2", "8", "9", "10", "4")
IMAGES = ("12", "13", "14", "20", "21", "22", "16")

WIDTH, MARGIN, GAP, SIDE, ROUND = 1720, 52, 22, 212, 14  # pixels; GitHub shows about half the width
INK, GREY, GIVEN, CARD, LINE = "#1f2328", "#656d76", "#0550ae", "#ffffff", "#d0d7de"
FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"

Panel = tuple[Image.Image, str, str]  # image, words below it, their colour


def font(size: int, style: str = "") -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with Matplotlib."""
    return ImageFont.truetype(str(FONTS / f"DejaVuSans{style}.ttf"), size)


class Card:
    """A white card, filled from the top row by row, so that it looks the same on light and dark pages."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH, 2000), CARD)
        self.draw = ImageDraw.Draw(self.image)
        self.top = MARGIN - 10

    def title(self, words: str, *explained: tuple[str, str]) -> None:
        """A heading, and beside it words in colours."""
        left = float(MARGIN)
        for text, colour, face in [(words, INK, font(30, "-Bold")), *((text, c, font(24)) for text, c in explained)]:
            self.draw.text((left, self.top + 30), text, colour, face, anchor="ls")
            left += self.draw.textlength(text, face) + (22 if text == words else 8)
        self.top += 54

    def row(self, panels: list[Panel], *, apart: int = 0) -> None:
        """Images side by side with words below them; behind each `apart` images there is a wider gap."""
        mask, most = rounded((SIDE, SIDE), ROUND), 0
        for number, (image, words, colour) in enumerate(panels):
            wider = (SIDE + GAP) * (number // apart) // 2 if apart else 0
            left = MARGIN + number * (SIDE + GAP) + wider
            self.image.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, self.top), mask)
            edge = (left, self.top, left + SIDE - 1, self.top + SIDE - 1)
            self.draw.rounded_rectangle(edge, ROUND, outline=LINE, width=2)
            lines = textwrap.wrap(words, 17, break_on_hyphens=False)
            self.draw.multiline_text((left + 2, self.top + SIDE + 8), "\n".join(lines), colour, font(22), spacing=4)
            most = max(most, len(lines))
        self.top += SIDE + 20 + most * 30

    def finished(self) -> Image.Image:
        """The card, cut to its content, with round corners, in 96 colours."""
        image = self.image.crop((0, 0, WIDTH, self.top + 4))
        ImageDraw.Draw(image).rounded_rectangle((0, 0, WIDTH - 1, image.height - 1), 2 * ROUND, outline=LINE, width=3)
        image.putalpha(rounded(image.size, 2 * ROUND))
        return image.quantize(96, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """A mask of a rectangle with round corners."""
    mask = Image.new("L", (4 * size[0], 4 * size[1]), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * size[0] - 1, 4 * size[1] - 1), 4 * radius, fill=255)
    return mask.resize(size, Image.Resampling.LANCZOS)


def story(model: Predictions, id_: str) -> list[Panel]:
    """The first images of a story, each with the words before it; the opening is given, the rest is generated."""
    panels: list[Panel] = []
    words, colour = model.get(id_, "prompt", str), GIVEN
    for part in model.get(id_, "parts", list):
        if "text" in part:
            words = f"{words} {part['text']}".strip()
        else:
            panels.append((model.image(part["image"], f"story {id_}"), words, colour))
            words, colour = "", INK
    return panels[:STORY_IMAGES]


def generated(benchmark: str) -> list[Panel]:
    """The images that the model generated from PROMPTS."""
    model = read(PREDICTIONS / f"{benchmark}.tar")
    records = [model.records[id_] for id_ in PROMPTS]
    return [(model.image(one["image"], f"item {one['id']}"), one["prompt"], GIVEN) for one in records]


def real(id_: str) -> Image.Image:
    """An image of the emoji world's test split."""
    with zipfile.ZipFile(BENCHMARKS / "images_test.zip") as archive:
        return decode(archive.read(f"{int(id_):012}.png"))


def picture() -> bytes:
    """The picture as PNG."""
    stories, captions = read(PREDICTIONS / "stories.tar"), read(PREDICTIONS / "captions.jsonl")
    card = Card()
    card.title(
        "Interleaved documents", ("given a first sentence,", GIVEN), ("the model continues in text and images", GREY)
    )
    card.row([panel for id_ in STORIES for panel in story(stories, id_)], apart=STORY_IMAGES)
    card.title("Text to image", ("given a caption,", GIVEN), ("the model generates the image", GREY))
    card.row(generated("draw"))
    card.title("Text to image, human sentences", ("given the same scenes in other words", GIVEN))
    card.row(generated("draw_human"))
    card.title("Image to text", ("given an image, the model writes the caption", GREY))
    card.row([(real(id_), captions.get(id_, "output", str), INK) for id_ in IMAGES])
    stream = io.BytesIO()
    card.finished().save(stream, "PNG", optimize=True)
    return stream.getvalue()


if __name__ == "__main__":
    with new_file(OUT) as file:
        file.write_bytes(picture())
    print(f"wrote {OUT.relative_to(ROOT)}, {OUT.stat().st_size} bytes. {CHOICE}")

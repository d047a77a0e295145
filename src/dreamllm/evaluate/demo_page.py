"""Continue prompts with text and pictures and show the result as a small page: `dreamllm generate "Draw a red cat."`

Writes index.html, which holds its pictures and can be sent around, and every drawn picture as a PNG beside it. The page
names model, seeds and settings.
In a prompt, <image> stands for the next --image file.
"""

from __future__ import annotations

import argparse
import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dreamllm
from dreamllm.atomic import new_file
from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.data.images import encode_png
from dreamllm.emoji.words import PrintWords
from dreamllm.evaluate import model_options
from dreamllm.output_paths import folder_to_write

if TYPE_CHECKING:
    from PIL import Image

    from dreamllm.model.generate import Continuation

STOPPED = {
    "end": "the model ended here",
    "tokens": "stopped at the maximum number of tokens",
    "pictures": "stopped at the maximum number of pictures",
    "context": "stopped where the context was full",
    "criteria": "stopped by a criterion",
}

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>DreamLLM</title>
<style>
:root {{ color-scheme: light dark; --text: #222; --quiet: #6b6b6b; --line: #ccc; --page: #fff }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #ddd; --quiet: #a0a0a0; --line: #444; --page: #161616 }}
}}
body {{ font: 18px/1.5 Georgia, serif; max-width: 40em; margin: 2em auto; padding: 0 1em }}
body {{ color: var(--text); background: var(--page) }}
article, footer {{ border-top: 1px solid var(--line); padding: 1em 0 }}
.prompt, small, footer {{ color: var(--quiet) }}
img {{ display: block; margin: 0.5em 0; min-width: 192px; max-width: 100% }}
footer {{ font-size: 15px; overflow-wrap: anywhere }}
</style>
{articles}
<footer>{settings}</footer>
</html>
"""


def render(continuations: Sequence[Continuation], seeds: Sequence[int], settings: Mapping[str, Any]) -> str:
    """The page for some continuations: prompts in grey, what the model made, its seed, and why it stopped.

    settings: for the end of the page, by name
    """
    articles = []
    for continuation, seed in zip(continuations, seeds, strict=True):
        given = "\n".join(_element(part) for part in continuation.prompt.parts)
        made = "\n".join(_element(part) for part in continuation.parts)
        why = f"<small>seed {seed}; {STOPPED[continuation.stopped]}</small>"
        articles.append(f'<article>\n<div class="prompt">\n{given}\n</div>\n{made}\n{why}\n</article>')
    about = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    return PAGE.format(articles="\n".join(articles), settings=html.escape(about))


def save(
    continuations: Sequence[Continuation], seeds: Sequence[int], settings: Mapping[str, Any], folder: Path
) -> None:
    """Write the page of `render`, index.html, and the drawn pictures, PROMPT-PICTURE.png, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, continuation in enumerate(continuations, 1):
        drawn = [part.image for part in continuation.parts if isinstance(part, Picture)]
        for index, image in enumerate(drawn, 1):
            _write(folder / f"{number}-{index}.png", encode_png(image))
    _write(folder / "index.html", render(continuations, seeds, settings).encode())


def _element(part: Part) -> str:
    if isinstance(part, Text):
        return f"<p>{html.escape(part.text)}</p>"
    return f'<img alt="" src="{data_url(part.image)}">'


def data_url(image: Image.Image) -> str:
    """An image as an address that holds it, for a page that loads no files."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def _write(path: Path, data: bytes) -> None:
    with new_file(path) as file:
        file.write_bytes(data)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm generate`."""
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to say to the model, or how a story begins")
    parser.add_argument("--words", action=PrintWords, nargs=0, help="list the words of the emoji world, and exit")
    image = "file for an <image> in the prompts; once for each"  # nargs would take the prompts for files
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE", help=image)
    parser.add_argument("--as", dest="kind", choices=["conversation", "story"], default="conversation")
    model_options.add_model(parser)
    parser.add_argument(
        "--out", type=folder_to_write, default=Path("scratch/generated"), help="for index.html and the pictures"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first prompt; each next prompt has the next number"
    )
    model_options.add_text_sampling(parser)
    parser.add_argument("--max-pictures", type=int, default=8, help="generated for one prompt")
    model_options.add_picture_sampling(parser)


def main(arguments: argparse.Namespace) -> None:
    """Load the model, continue the prompts, write the page."""
    from dreamllm.model.generate import interleave
    from dreamllm.model.processor import parse

    is_story = arguments.kind == "story"
    images = model_options.read_images(arguments.image)
    parsed = parse(arguments.prompts, images, role="" if is_story else "user")
    prompts = [
        Document(f"prompt {number}", "interleaved" if is_story else "conversation", parts)
        for number, parts in enumerate(parsed, 1)
    ]
    text_sampling = model_options.text_sampling(arguments, arguments.max_pictures)
    picture_sampling = model_options.picture_sampling(arguments)
    seeds = [arguments.seed + index for index in range(len(prompts))]
    model, processor = model_options.load(arguments)
    continuations = interleave(model, processor, prompts, seeds, text_sampling, picture_sampling)
    settings = {"model": model_options.name(arguments), "DreamLLM": dreamllm.__version__}
    settings |= {k: v for k, v in {**asdict(text_sampling), **asdict(picture_sampling)}.items() if v not in (None, "")}
    save(continuations, seeds, settings, arguments.out)
    print(arguments.out / "index.html")

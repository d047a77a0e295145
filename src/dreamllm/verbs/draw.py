"""Generate exactly one image for each prompt: `dreamllm draw "a red cat"`.

Writes 1.png, 2.png, ... in the order of the prompts. In a prompt, <image> stands for the next --image file. To let the
model decide where an image belongs, use `dreamllm generate`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamllm.atomic import new_file
from dreamllm.data.document import Document
from dreamllm.data.images import encode_png
from dreamllm.evaluate import model_options
from dreamllm.output_paths import folder_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm draw`."""
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what the image shows")
    image = "file for an <image> in the prompts; once for each"
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE", help=image)
    model_options.add_model(parser)
    parser.add_argument("--out", type=folder_to_write, default=Path("scratch/drawn"), help="folder for the images")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first prompt; each next prompt has the next number"
    )
    model_options.add_picture_sampling(parser)


def main(arguments: argparse.Namespace) -> None:
    """Load the model, generate the images, print their paths."""
    from dreamllm.model import generate
    from dreamllm.model.processor import parse

    parsed = parse(arguments.prompts, model_options.read_images(arguments.image))
    sampling = model_options.picture_sampling(arguments)
    prompts = [
        Document(f"prompt {number}", "text" if len(parts) == 1 else "interleaved", parts)
        for number, parts in enumerate(parsed, 1)
    ]
    model, processor = model_options.load(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(prompts):  # one at a time, so that a long list needs no more memory
        (image,) = generate.draw(model, processor, [prompt], [arguments.seed + number], sampling)
        path = arguments.out / f"{number + 1}.png"
        with new_file(path) as file:
            file.write_bytes(encode_png(image))
        print(path, flush=True)

"""Answer questions, each about the images that are given: `dreamllm ask --image cat.png "What colour is the cat?"`.

Prints one answer a line, in the order of the questions. The images stand before the question, or where it has <image>.
Without --image, questions are about nothing but their words.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from dreamllm.data.document import Document
from dreamllm.evaluate import model_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm ask`."""
    parser.add_argument("questions", nargs="+", metavar="QUESTION", help="what to answer in words")
    image = "file of an image that every question is about; once for each"
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE", help=image)
    model_options.add_model(parser)
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--num-beams", type=int, default=1, help="1 always takes the most probable token")


def question(name: str, text: str, images: list[Image.Image]) -> Document:
    """A turn of a user, to be answered: the images before the words, or where the words have <image>.

    Raises PromptProblem where the numbers of placeholders and images differ.
    """
    from dreamllm.model.processor import parts_of

    return Document(name, "conversation", parts_of(text, images, role="user"))


def main(arguments: argparse.Namespace) -> None:
    """Load the model and print its answers."""
    from dreamllm.model import generate

    for name in ("max_new_tokens", "num_beams"):
        if (value := getattr(arguments, name)) < 1:
            raise model_options.ModelProblem(f"--{name.replace('_', '-')} is {value}, at least 1 is needed")
    images = model_options.read_images(arguments.image)
    documents = [question(f"question {n}", text, images) for n, text in enumerate(arguments.questions, 1)]
    model, processor = model_options.load(arguments)
    for document in documents:
        (answer,) = generate.write(
            model,
            processor,
            [document],
            max_new_tokens=arguments.max_new_tokens,
            num_beams=arguments.num_beams,
        )
        print(answer, flush=True)

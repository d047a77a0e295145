"""Talk to the model at the terminal: `dreamllm chat`. It answers in words and with images, which are saved.

/image FILE    show it an image, before the words that follow
/draw WORDS    have it generate an image of these words, whatever it would do of itself
/reset         begin a new conversation
/quit          end; so does the end of the input
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dreamllm.atomic import new_file
from dreamllm.data.document import Text
from dreamllm.data.images import encode_png
from dreamllm.evaluate import model_options
from dreamllm.output_paths import folder_to_write

if TYPE_CHECKING:
    from dreamllm.model.conversation import Conversation

STOPPED = {
    "tokens": "[stopped at --max-new-tokens]",
    "pictures": "[stopped at --max-pictures]",
    "context": "[the context is full: /reset begins a new conversation]",
}
HELP = "/image FILE, /draw WORDS, /reset, /quit; anything else is said to the model"


class Chat:
    """A conversation at the terminal. Generated images are written as 1.png, 2.png, ... into a folder."""

    def __init__(self, conversation: Conversation, folder: Path) -> None:
        self.conversation, self.folder = conversation, folder
        self.shown: list[Image.Image] = []  # for the next words
        self.num_saved = 0

    def respond(self, line: str) -> list[str]:
        """What to print for a line of the user. A problem with the line is one of the lines printed."""
        command, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if command == "/reset":
            self.conversation.parts, self.shown = (), []
            return ["a new conversation"]
        if command == "/image" and rest:
            self.shown.append(model_options.read_image(Path(rest).expanduser()))
            return [f"{rest}: will be shown with your next words"]
        if command == "/draw" and rest:
            image = self.conversation.draw(rest, self.shown)
            self.shown = []
            return [self._save(image)]
        if command.startswith("/"):
            return [HELP]
        return self._answer(line.strip()) if line.strip() else []

    def _answer(self, words: str) -> list[str]:
        result = self.conversation.answer(words, self.shown)
        self.shown = []
        said = [part.text if isinstance(part, Text) else self._save(part.image) for part in result.parts]
        return said + ([STOPPED[result.stopped]] if result.stopped in STOPPED else [])

    def _save(self, image: Image.Image) -> str:
        self.num_saved += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.num_saved}.png"
        with new_file(path) as file:
            file.write_bytes(encode_png(image))
        return f"[image: {path}]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm chat`."""
    model_options.add_model(parser)
    parser.add_argument(
        "--out", type=folder_to_write, default=Path("scratch/chat"), help="folder for the generated images"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first answer; each next answer has the next number")
    model_options.add_text_sampling(parser)
    parser.add_argument("--max-pictures", type=int, default=4, help="generated in one answer")
    model_options.add_picture_sampling(parser)


def main(arguments: argparse.Namespace) -> None:
    """Load the model and answer line after line."""
    from dreamllm.data.layout import LayoutProblem
    from dreamllm.model.conversation import Conversation
    from dreamllm.model.processor import PromptProblem

    text = model_options.text_sampling(arguments, arguments.max_pictures)
    drawing = model_options.picture_sampling(arguments)
    model, processor = model_options.load(arguments)
    chat = Chat(Conversation(model, processor, text, drawing, arguments.seed), arguments.out)
    print(HELP, flush=True)
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip() == "/quit":
            return
        try:
            answer = chat.respond(line)
        except LayoutProblem as problem:
            answer = [f"{problem}: /reset begins a new conversation"]
        except (PromptProblem, model_options.ModelProblem) as problem:
            answer = [str(problem)]
        for one in answer:
            print(one, flush=True)

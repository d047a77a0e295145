"""A conversation with a model, turn after turn, with images in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.generate import Continuation, TextSampling, draw, interleave
from dreamllm.model.processor import DreamLLMProcessor
from dreamllm.model.sampling import PictureSampling


class Conversation:
    """The turns so far. The first answer has the seed that is given, each next one the next number.

    An error of a turn leaves the conversation as it was before.
    """

    def __init__(
        self,
        model: DreamLLMForConditionalGeneration,
        processor: DreamLLMProcessor,
        text: TextSampling,
        drawing: PictureSampling,
        seed: int,
    ) -> None:
        self.model, self.processor = model, processor
        self.text, self.drawing, self.seed = text, drawing, seed
        self.parts: tuple[Part, ...] = ()

    def answer(self, words: str, images: Sequence[Image.Image] = (), **options: Any) -> Continuation:
        """The model's answer to the user's words after images, in text and images. options: of `interleave`.

        Raises LayoutProblem where the turn does not fit the context, and what else `interleave` raises.
        """
        prompt = self._asked(words, images)
        (result,) = interleave(self.model, self.processor, [prompt], [self.seed], self.text, self.drawing, **options)
        self._keep(result.document.parts)
        return result

    def draw(self, words: str, images: Sequence[Image.Image] = ()) -> Image.Image:
        """One image for the user's words, whatever the model would do of itself. Raises as `answer` does."""
        prompt = self._asked(words, images)
        (image,) = draw(self.model, self.processor, [prompt], [self.seed], self.drawing)
        self._keep((*prompt.parts, Picture(image, "assistant")))
        return image

    def _asked(self, words: str, images: Sequence[Image.Image]) -> Document:
        shown = (Picture(image, "user") for image in images)
        return Document("the conversation", "conversation", (*self.parts, *shown, Text(words, "user")))

    def _keep(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.seed += 1

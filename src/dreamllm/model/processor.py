"""The processor: turns Documents, or strings with `<image>`, into model inputs, by transformers' processor interface.

Pictures to read go through the CLIP image processor on its PIL backend, whose values do not depend on torchvision.
Pictures to draw are resized by their shorter side and cropped. Neither are flipped (the official code flips pictures to
draw only, so that the model draws another picture than it reads).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from dreamllm.data import images
from dreamllm.data.document import Document, Part, Picture, Role, Text
from dreamllm.data.layout import (
    TEMPLATES,
    Mode,
    TokenSequence,
    Vocabulary,
    lay_out,
    lay_out_prompt,
)
from dreamllm.data.packing import Batch, Row, collate
from dreamllm.model.config import DreamLLMConfig

PAD, IM_PATCH, IM_START, IM_END = "[PAD]", "<im_patch>", "<im_start>", "<im_end>"
DREAM_START, DREAM_END, IMAGE, DREAM = "<dream_start>", "<dream_end>", "<image>", "<dream>"
SPECIAL_TOKENS = (PAD, IMAGE, IM_PATCH, IM_START, IM_END, DREAM, DREAM_START, DREAM_END)  # order of the official code

BOUNDARY = "▁"  # the beginning of a word, in SentencePiece


class PromptProblem(ValueError):
    """A prompt that the model cannot continue: says why."""


class DreamLLMProcessor(ProcessorMixin):
    """Documents to inputs of DreamLLM.

    image_processor: CLIP's.  tokenizer: of the language model, with SPECIAL_TOKENS added.
    num_patches, num_dream_queries, draw_size: as in DreamLLMConfig.  context: the language model's context length
    template: name of the conversation template, in `layout.TEMPLATES`
    boundary_tokens: put a lone BOUNDARY before and after each picture of a user's turn, as the authors' tokenizer does
    """

    def __init__(
        self,
        image_processor,
        tokenizer,
        num_patches: int,
        num_dream_queries: int,
        draw_size: int,
        context: int,
        template: str = "vicuna_v1.1",
        boundary_tokens: bool = False,
        chat_template: str | None = None,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        if template not in TEMPLATES:
            raise ValueError(f"unknown conversation template {template!r}, expected one of {', '.join(TEMPLATES)}")
        self.num_patches = num_patches
        self.num_dream_queries = num_dream_queries
        self.draw_size = draw_size
        self.context = context
        self.template = template
        self.boundary_tokens = boundary_tokens

    @classmethod
    def _get_arguments_from_pretrained(cls, folder, processor_dict=None, **kwargs):
        """The parts that `from_pretrained` loads, with CLIP's image processor pinned to PIL."""
        return [AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)]

    @property
    def vocabulary(self) -> Vocabulary:
        """What `layout` needs to know of tokenizer and model."""
        ids = self.tokenizer.convert_tokens_to_ids
        tokenizer = self.tokenizer
        bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return Vocabulary(
            encode=lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids,
            bos=bos,
            eos=tokenizer.eos_token_id,
            pad=ids(PAD),
            im_patch=ids(IM_PATCH),
            im_start=ids(IM_START),
            im_end=ids(IM_END),
            dream_start=ids(DREAM_START),
            dream_end=ids(DREAM_END),
            num_patches=self.num_patches,
            num_queries=self.num_dream_queries,
            template=TEMPLATES[self.template],
            boundary=(ids(BOUNDARY),) if self.boundary_tokens else (),
        )

    def lay_out(self, document: Document, mode: Mode, context: int) -> list[TokenSequence]:
        """`layout.lay_out` with this processor's vocabulary."""
        return lay_out(document, self.vocabulary, mode, context)

    def collate(self, rows: list[Row], align: bool = False) -> Batch:
        """`packing.collate` of training rows with this processor's vocabulary and pictures."""
        return collate(rows, self.vocabulary, self.read_pixels, self.draw_pixels, align)

    def lay_out_prompt(self, document: Document, mode: Mode, *, draw: bool = False) -> TokenSequence:
        """`layout.lay_out_prompt` with this processor's vocabulary and the language model's context."""
        return lay_out_prompt(document, self.vocabulary, mode, self.context, draw=draw)

    def prompts(self, documents: Sequence[Document], mode: Mode = "joint") -> BatchFeature:
        """Inputs of transformers' `generate` for documents to continue, padded on the left.

        mode: of the layout. In "joint", a picture of an interleaved prompt is DREAM IMG, as in I-GPT training; in
        "comprehension" it is IMG. Raises LayoutProblem for a prompt longer than the context.
        """
        sequences = [self.lay_out_prompt(document, mode) for document in documents]
        batch = collate([[sequence] for sequence in sequences], self.vocabulary, self.read_pixels, None)
        length = batch.input_ids.shape[1]
        shifts = torch.tensor([length - len(sequence) for sequence in sequences])  # (B,)
        columns = torch.arange(length) - shifts[:, None]  # (B, T), the right-padded column of each left-padded one
        inputs = {
            "input_ids": batch.input_ids.gather(1, columns % length),
            "attention_mask": (columns >= 0).long(),
        }
        for name in ("read_slots", "draw_slots"):
            if len(slots := getattr(batch, name)):
                inputs[name] = torch.stack([slots[:, 0], slots[:, 1] + shifts[slots[:, 0]]], dim=1)
        if batch.read_pixels is not None:
            inputs["read_pixels"] = batch.read_pixels
        return BatchFeature(inputs)

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Inputs of `generate` for texts to be continued; each `<image>` in them is replaced by the next of `images`.

        A question is not continued but answered, in the words of a conversation: make a Document of kind
        "conversation" and pass it to `prompts`.
        Raises PromptProblem for questions, for images that are not PIL's, and if the numbers of placeholders and
        pictures differ.
        """
        if text is None or return_tensors != "pt":
            raise ValueError("pass text, with <image> where the pictures are; only return_tensors='pt' is supported")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = [images] if isinstance(images, Image.Image) else list([] if images is None else images)
        if others := [type(one).__name__ for one in pictures if not isinstance(one, Image.Image)]:
            raise PromptProblem(f"images: expected PIL images in one list, found {others[0]}")
        self._refuse_questions(texts)
        documents = [
            Document(f"text {index}", "interleaved", parts) for index, parts in enumerate(parse(texts, pictures))
        ]
        return self.prompts(documents, mode="comprehension")

    def _refuse_questions(self, texts: Sequence[str]) -> None:
        """Raises PromptProblem for a text that asks, which the model was trained to answer in conversations alone."""
        roles = (TEMPLATES[self.template].user, TEMPLATES[self.template].assistant)
        for text in texts:
            if text.rstrip().endswith(("?", "\uff1f")) or any(role in text for role in roles):
                raise PromptProblem(
                    f"{text[-60:]!r} is a question or a conversation, and a plain string is continued as a text; pass "
                    'prompts([Document(ID, "conversation", (Picture(image, "user"), Text(question, "user")))])'
                )

    def read_pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Prepare pictures for CLIP: (N, 3, Hc, Wc), normalised."""
        upright = [images.centre(images.upright_rgb(picture)) for picture in pictures]
        return self.image_processor(images=upright, return_tensors="pt")["pixel_values"]

    def draw_pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Prepare pictures for the VAE: (M, 3, draw_size, draw_size) in [-1, 1], resized, then cropped."""
        return torch.stack([_to_pixels(picture, self.draw_size) for picture in pictures])

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args, **kwargs) -> str:
        """The tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)


def parse(texts: Sequence[str], pictures: Sequence[Image.Image], role: Role = "") -> list[tuple[Part, ...]]:
    """Split texts into parts of documents; each `<image>` is replaced by the next of the pictures.

    Raises PromptProblem if the numbers of placeholders and pictures differ.
    """
    wanted = sum(text.count(IMAGE) for text in texts)
    if wanted != len(pictures):
        raise PromptProblem(f"the text has {wanted} {IMAGE} placeholders, but {len(pictures)} pictures were passed")
    rest = iter(pictures)
    documents = []
    for text in texts:
        first, *others = text.split(IMAGE)
        parts: list[Part] = [Text(first, role)] if first or not others else []
        for words in others:
            parts.append(Picture(next(rest), role))
            parts += [Text(words, role)] if words else []
        documents.append(tuple(parts))
    return documents


def _to_pixels(picture: Image.Image, side: int) -> torch.Tensor:
    """One picture as (3, side, side) in [-1, 1]; bilinear, with torchvision's rounding of sizes and offsets."""
    picture = images.centre(images.upright_rgb(picture))
    width, height = picture.size
    shorter = min(width, height)
    width, height = int(side * width / shorter), int(side * height / shorter)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    values = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32)  # (side, side, 3)
    return torch.from_numpy(values).permute(2, 0, 1) / 127.5 - 1


AutoProcessor.register(DreamLLMConfig, DreamLLMProcessor)

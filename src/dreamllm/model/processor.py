"""The processor: turns Documents, or strings with `<image>`, into model inputs, by transformers' processor interface.

Pictures to read go through the eye's image processor on its PIL backend, whose values do not depend on torchvision.
Pictures to draw are resized by their shorter side and cropped. Neither are flipped (the official code flips pictures to
draw only, so that the model draws another picture than it reads).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessorMixin

from dreamllm.data import images
from dreamllm.data.document import Document, Part, Picture, Role, Text
from dreamllm.data.layout import (
    IGNORE,
    TEMPLATES,
    LayoutProblem,
    Mode,
    Slot,
    TokenSequence,
    Vocabulary,
    lay_out,
    lay_out_prompt,
)
from dreamllm.data.packing import Batch, Row, collate
from dreamllm.model.chat_template import TOKENIZER, chat_template_of, layout_template, user_marker, with_pictures
from dreamllm.model.config import DreamLLMConfig

PAD, IM_PATCH, IM_START, IM_END = "[PAD]", "<im_patch>", "<im_start>", "<im_end>"
DREAM_START, DREAM_END, IMAGE, DREAM = "<dream_start>", "<dream_end>", "<image>", "<dream>"
SPECIAL_TOKENS = (PAD, IMAGE, IM_PATCH, IM_START, IM_END, DREAM, DREAM_START, DREAM_END)  # order of the official code

BOUNDARY = "▁"  # the beginning of a word, in SentencePiece


class PromptProblem(ValueError):
    """A prompt that the model cannot continue: says why."""


class DreamLLMProcessor(ProcessorMixin):
    """Documents to inputs of DreamLLM.

    image_processor: the eye's.  tokenizer: of the language model, with SPECIAL_TOKENS added.
    num_patches, num_dream_queries, draw_size: as in DreamLLMConfig.  context: the language model's context length
    template: name of the conversation template, in `layout.TEMPLATES`, or "tokenizer" for the tokenizer's chat template
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
        if template not in (*TEMPLATES, TOKENIZER):
            known = ", ".join((*TEMPLATES, TOKENIZER))
            raise ValueError(f"unknown conversation template {template!r}, expected one of {known}")
        if template == TOKENIZER and boundary_tokens:
            raise ValueError("boundary_tokens are of the authors' template; the tokenizer's own has none")
        tokenizer.padding_side = "left"  # what is continued ends at the right
        default = with_pictures if template == TOKENIZER else chat_template_of
        chat_template = chat_template or default(tokenizer if template == TOKENIZER else template)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.num_patches = num_patches
        self.num_dream_queries = num_dream_queries
        self.draw_size = draw_size
        self.context = context
        self.template = template
        self.boundary_tokens = boundary_tokens

    @classmethod
    def _get_arguments_from_pretrained(cls, folder, processor_dict=None, **kwargs):
        """The parts that `from_pretrained` loads, with the image processor pinned to PIL."""
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
            template=TEMPLATES.get(self.template, TEMPLATES["plain"]),
            chat=layout_template(tokenizer, self.chat_template) if self.template == TOKENIZER else None,
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

    def prompts(self, documents: Sequence[Document], mode: Mode = "joint", **padding: Any) -> BatchFeature:
        """Inputs of transformers' `generate` for documents to continue, padded on the left.

        mode: of the layout. In "joint", a picture of an interleaved prompt is DREAM IMG, as in I-GPT training; in
        "comprehension" it is IMG.  padding: options of the tokenizer's `pad`, by default to the longest prompt
        Raises LayoutProblem for a prompt longer than the context.
        """
        return self._inputs([self.lay_out_prompt(document, mode) for document in documents], padding)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str = "pt",
        add_special_tokens: bool = True,  # in any case; transformers passes it
        videos: None = None,
        audio: None = None,
        **options: Any,
    ) -> BatchFeature:
        """Inputs of the model for texts to be continued: input_ids, attention_mask (B, T), pixel_values (N, 3, Hc, Wc).

        images: pictures of PIL, paths or addresses; each `<image>` in the texts is replaced by the next one. Either one
        list, or a list for each text. Images alone give pixel_values alone.
        text: words to be continued, or what `apply_chat_template` rendered. A question is not continued but answered;
        so a question without a template is refused.
        padding, max_length, options: of the tokenizer's `pad`: "longest" or "max_length", padding_side, ...
        truncation: nothing is ever truncated; with it, a text longer than max_length is refused.

        Raises PromptProblem for questions, for images that are no pictures, and if the numbers of placeholders and
        pictures differ; ValueError for what is not supported.
        """
        if videos is not None or audio is not None:
            raise ValueError("the model knows text and images, neither videos nor audio")
        if return_tensors != "pt" or (text is None and images is None):
            raise ValueError("pass text, images or both; only return_tensors='pt' is supported")
        texts = [text] if isinstance(text, str) else list(text or ())
        pictures, counts = _flat(images)
        if text is None:
            return BatchFeature({"pixel_values": self.read_pixels(pictures)})
        if counts and counts != (wanted := [words.count(IMAGE) for words in texts]):
            raise PromptProblem(f"the texts have {wanted} {IMAGE} placeholders, but the lists of images have {counts}")
        check_count(texts, pictures)
        rest, sequences = iter(pictures), []
        for number, words in enumerate(texts):
            if self.template == TOKENIZER and user_marker(self.tokenizer, self.chat_template) in words:
                sequences.append(self._chat(words, rest))
                continue
            if (rendered := self._rendered(words)) is not None:
                sequences.append(self._conversation(rendered, rest))
                continue
            self._refuse_questions([words])
            (parts,) = parse([words], list(islice(rest, words.count(IMAGE))))
            document = Document(f"text {number}", "interleaved", parts)
            sequences.append(self.lay_out_prompt(document, "comprehension"))
        if truncation and max_length and (longest := max(map(len, sequences))) > max_length:
            raise PromptProblem(f"a text has {longest} tokens, more than max_length {max_length}; none is truncated")
        return self._inputs(sequences, {"padding": padding, "max_length": max_length, **options})

    def _inputs(self, sequences: Sequence[TokenSequence], padding: dict[str, Any]) -> BatchFeature:
        """The model's inputs for token sequences."""
        ids = {"input_ids": [list(sequence.input_ids) for sequence in sequences]}
        inputs = self.tokenizer.pad(ids, **{"padding": True, "return_tensors": "pt", **padding})
        pictures = [sequence.document.pictures[slot.picture] for sequence in sequences for slot in sequence.read_slots]
        if pictures:
            inputs["pixel_values"] = self.read_pixels(pictures)
        return BatchFeature(dict(inputs))

    def _conversation(self, text: str, pictures: Iterator[Image.Image]) -> TokenSequence:
        """What the chat template rendered, without its first token, as the tokens of the same conversation in training.

        The pieces of a turn are tokenized one by one, as in training, which whole strings would not be.
        """
        template, eos = TEMPLATES[self.template], self.tokenizer.eos_token
        system, _, rest = text.partition(template.user)
        parts: list[Part] = []
        for turn in rest.removesuffix(eos).split(eos):
            asked, _, answer = turn.removeprefix(template.user).partition(f" {template.assistant}")
            parts += _parts(asked, "user", pictures)
            parts += _parts(answer, "assistant", pictures) if answer else []
        vocabulary = replace(self.vocabulary, template=replace(template, system=system.strip()))
        document = Document("the conversation", "conversation", tuple(parts))
        sequence = lay_out_prompt(document, vocabulary, "joint", self.context)
        ends = (vocabulary.eos,) if rest.endswith(eos) else ()
        return replace(sequence, input_ids=(*sequence.input_ids, *ends), labels=(*sequence.labels, *ends))

    def _chat(self, text: str, pictures: Iterator[Image.Image]) -> TokenSequence:
        """Tokens of what the tokenizer's chat template rendered, with patches for <image> and queries for <dream>."""
        vocabulary, ids = self.vocabulary, self.tokenizer.convert_tokens_to_ids
        image = [vocabulary.im_start, *[vocabulary.im_patch] * vocabulary.num_patches, vocabulary.im_end]
        dream = [vocabulary.dream_start, *[vocabulary.im_patch] * vocabulary.num_queries, vocabulary.dream_end]
        tokens: list[int] = []
        slots: list[Slot] = []
        for token in self.tokenizer(text, add_special_tokens=False).input_ids:
            slots += [Slot(len(tokens) + 1, len(slots))] if token == ids(IMAGE) else []
            tokens += image if token == ids(IMAGE) else dream if token == ids(DREAM) else [token]
        if len(tokens) > self.context:
            raise LayoutProblem(f"a conversation has {len(tokens)} tokens, the context holds {self.context}")
        document = Document("the conversation", "interleaved", (Text(""), *(Picture(next(pictures)) for _ in slots)))
        return TokenSequence(document, tuple(tokens), (IGNORE,) * len(tokens), tuple(slots))

    def apply_chat_template(self, conversation: Any, *args: Any, **options: Any) -> Any:
        """As in transformers. Raises PromptProblem for words that the tokenizer would take for special tokens."""
        if self.template == TOKENIZER:
            special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
            for text in _strings(conversation):
                if found := sorted(token for token in special - {IMAGE} if token in text):
                    raise PromptProblem(
                        f"a message holds the special token {found[0]!r}; remove it, or use `prompts`, where it is text"
                    )
        return super().apply_chat_template(conversation, *args, **options)

    def _rendered(self, text: str) -> str | None:
        """What follows the first token of a conversation that the chat template rendered; None for other texts."""
        if self.template == TOKENIZER:
            return None
        bos = self.tokenizer.bos_token or self.tokenizer.eos_token
        is_rendered = text.startswith(bos) and TEMPLATES[self.template].user in text
        return text.removeprefix(bos) if is_rendered else None

    def _refuse_questions(self, texts: Sequence[str]) -> None:
        """Raises PromptProblem for a text that asks, which the model was trained to answer in conversations alone."""
        template = TEMPLATES.get(self.template)
        roles = (template.user, template.assistant) if template else ()
        for text in texts:
            if text.rstrip().endswith(("?", "\uff1f")) or any(role in text for role in roles):
                raise PromptProblem(
                    f"{text[-60:]!r} is a question or a conversation, and a plain string is continued as a text; use "
                    "apply_chat_template([{'role': 'user', 'content': [{'type': 'image', 'image': IMAGE}, {'type': "
                    "'text', 'text': QUESTION}]}], add_generation_prompt=True, tokenize=True, return_dict=True)"
                )

    def read_pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Prepare pictures for the eye: (N, 3, Hc, Wc), normalised."""
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
    check_count(texts, pictures)
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


def parts_of(text: str, pictures: Sequence[Image.Image], role: Role = "") -> tuple[Part, ...]:
    """A text with its pictures: each where the text has `<image>`, or all before the text if it has none.

    Raises PromptProblem if the numbers of placeholders and pictures differ.
    """
    if IMAGE not in text:
        return (*(Picture(picture, role) for picture in pictures), Text(text, role))
    (parts,) = parse([text], pictures, role)
    return parts


def check_count(texts: Sequence[str], pictures: Sequence[Image.Image]) -> None:
    """Raises PromptProblem if the number of `<image>` in all texts is not the number of pictures."""
    wanted = sum(text.count(IMAGE) for text in texts)
    if wanted != len(pictures):
        raise PromptProblem(f"the text has {wanted} {IMAGE} placeholders, but {len(pictures)} pictures were passed")


def _strings(value: Any) -> Iterator[str]:
    """The strings in nested messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def _parts(text: str, role: Role, pictures: Iterator[Image.Image]) -> list[Part]:
    """Split a rendered turn, " words <image> words", into its parts, without the spaces that joined them."""
    first, *others = re.split(f" ?{IMAGE} ?", text.removeprefix(" "))
    parts: list[Part] = [Text(first, role)]
    for words in others:
        parts += [Picture(next(pictures), role), Text(words, role)]
    return [part for part in parts if not isinstance(part, Text) or part.text] or [Text("", role)]


def _flat(images: Any) -> tuple[list[Image.Image], list[int]]:
    """All pictures in one list and, of nested lists, the number in each. Raises PromptProblem for anything else."""
    images = [images] if isinstance(images, Image.Image | str) else list([] if images is None else images)
    counts = [len(one) for one in images if isinstance(one, list | tuple)]
    if counts and len(counts) < len(images):
        raise PromptProblem("images: either all are in lists, one for each text, or none is")
    flat = [picture for one in images for picture in one] if counts else images
    for number, picture in enumerate(flat):
        if isinstance(picture, str):
            try:
                flat[number] = load_image(picture)
            except (OSError, ValueError) as error:
                raise PromptProblem(f"images: cannot read {picture[:200]!r}: {error}") from None
        elif not isinstance(picture, Image.Image):
            raise PromptProblem(f"images: expected pictures of PIL, found {type(picture).__name__}")
    return flat, counts


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

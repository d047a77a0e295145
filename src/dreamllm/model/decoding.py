"""Batched decoding of interleaved documents: the loop of `generate.interleave`, called by transformers' `generate`.

All rows of a batch write until each has ended or is at an image. Then the images are generated as one batch, read back
as one batch, and the rows with an image continue. A row that waits for others has masked positions in the cache; they
are removed before the images, so that each row is again its own tokens after padding on the left, as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from dreamllm.data.document import Document, Part, Picture, Role, Text
from dreamllm.data.layout import Vocabulary
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.finite import check_finite
from dreamllm.model.packed import find_slots
from dreamllm.model.processor import DreamLLMProcessor

Stopped = Literal["end", "tokens", "pictures", "context", "criteria"]


@dataclass
class Row:
    """A document that is being continued.

    generator: draws its tokens.  at_image: an image is due.  stopped: None while it goes on
    """

    prompt: Document
    seed: int
    generator: torch.Generator
    parts: list[Part] = field(default_factory=list)
    text_ids: list[int] = field(default_factory=list)  # written since the last image
    num_tokens: int = 0
    num_pictures: int = 0
    at_image: bool = False
    stopped: Stopped | None = None

    @property
    def role(self) -> Role:
        """Of the parts that are added."""
        return "assistant" if self.prompt.kind == "conversation" else ""

    def take(
        self, token: int, room: int, vocabulary: Vocabulary, block: int, max_tokens: int, max_pictures: int
    ) -> None:
        """Note the next token: it is written, or an image is due, or the row stops.

        room: number of tokens that fit the context.  block: number of tokens of an image
        """
        if token in vocabulary.ends:
            self.stopped = "end"
        elif token == vocabulary.dream_start:
            if self.num_pictures == max_pictures:
                self.stopped = "pictures"
            elif room < block:
                self.stopped = "context"
            else:
                self.at_image = True
        elif self.num_tokens == max_tokens:
            self.stopped = "tokens"
        elif room < 1:
            self.stopped = "context"
        else:
            self.text_ids.append(token)
            self.num_tokens += 1

    def end_text(self, processor: DreamLLMProcessor) -> None:
        """Turn the tokens written since the last image into a part, unless they are blank."""
        text = processor.decode(self.text_ids, skip_special_tokens=True).strip()
        self.parts += [Text(text, self.role)] if text else []
        self.text_ids = []


@dataclass
class Sequences:
    """The token ids (B, T) of B rows, which of them count (the others are gaps), and their states in the cache."""

    model: DreamLLMForConditionalGeneration
    ids: torch.Tensor
    mask: torch.Tensor
    cache: DynamicCache = field(default_factory=DynamicCache)

    def advance(self, ids: torch.Tensor, mask: torch.Tensor, **pictures: torch.Tensor | None) -> torch.Tensor:
        """Append ids (B, L) that count where `mask` (B, L) is 1; returns their last hidden states (B, L, D).

        pictures: arguments of `embed`, with slots in these ids
        """
        self.ids, self.mask = torch.cat([self.ids, ids], dim=1), torch.cat([self.mask, mask], dim=1)
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        outputs = self.model.language_model.base_model(
            inputs_embeds=self.model.embed(ids, **pictures),
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state

    def append_block(self, ids: Sequence[int], slots: str, **pictures: torch.Tensor) -> torch.Tensor:
        """Append the same ids (L) to every row, with a picture's slot at the second of them; returns (B, L, D)."""
        block = torch.tensor([ids], device=self.ids.device).repeat(len(self.ids), 1)
        starts = torch.tensor([[row, 1] for row in range(len(block))], device=block.device)
        return self.advance(block, torch.ones_like(block), **{slots: starts}, **pictures)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and all gaps but the padding on the left of the shorter rows."""
        kept = torch.tensor(rows, device=self.ids.device)
        mask = self.mask[kept]
        columns = mask.argsort(dim=1, stable=True)[:, -int(mask.sum(dim=1).max()) :]  # (B', T'), gaps first
        self.ids, self.mask = self.ids[kept].gather(1, columns), mask.gather(1, columns)
        for layer in self.cache.layers:
            layer.keys, layer.values = (_at(states[kept], columns) for states in (layer.keys, layer.values))


def _at(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Keys or values (B, H, T, D) at the positions `columns` (B, T')."""
    return states.gather(2, columns[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


def decode(
    model: DreamLLMForConditionalGeneration,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    processor: DreamLLMProcessor,
    rows: Sequence[Row],
    draw: Callable[[Sequence[Row], torch.Tensor], list[Image.Image]],
    reads_back: bool,
    max_tokens: int,
    max_pictures: int,
    follower: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> None:
    """Continue the rows in place. The `custom_generate` of transformers' `generate`, which makes the first arguments.

    draw: makes the images of some rows from their query states (M, Q, D).  reads_back: whether generated images are
    read.  max_tokens, max_pictures: of each row.  follower: a streamer, for a single row.  model_kwargs: what
    transformers prepares; mask and pixels are used of it, but not positions and cache
    """
    vocabulary = processor.vocabulary
    dream = [vocabulary.dream_start, *[vocabulary.im_patch] * vocabulary.num_queries, vocabulary.dream_end]
    image = [vocabulary.im_start, *[vocabulary.im_patch] * vocabulary.num_patches, vocabulary.im_end]
    block = len(dream) + (len(image) if reads_back else 0)
    mask = model_kwargs.get("attention_mask")  # None without padding
    mask = torch.ones_like(input_ids) if mask is None else mask
    sequences = Sequences(model, input_ids[:, :0], mask[:, :0])
    hidden = sequences.advance(
        input_ids,
        mask,
        read_pixels=model_kwargs.get("read_pixels"),
        read_slots=find_slots(input_ids, vocabulary.im_start, vocabulary.im_patch),
        draw_slots=find_slots(input_ids, vocabulary.dream_start, vocabulary.im_patch),
    )
    rows = list(rows)
    while True:
        writing = list(range(len(rows)))
        at_image: list[int] = []
        while writing:
            logits = model.logits(hidden[:, -1]).float()  # (B, V)
            check_finite(logits[writing].clamp(min=-1), [rows[n].prompt.id for n in writing], "the logits")
            scores = logits_processor(sequences.ids, logits)
            tokens = choose(scores, rows, writing, generation_config.do_sample)
            if follower is not None:
                follower.put(torch.tensor(tokens))
            lengths = sequences.mask.sum(dim=1).tolist()
            for n in writing:
                rows[n].take(tokens[n], processor.context - lengths[n], vocabulary, block, max_tokens, max_pictures)
            at_image += [n for n in writing if rows[n].at_image]
            writing = [n for n in writing if rows[n].stopped is None and not rows[n].at_image]
            if not writing:
                break
            counts = torch.zeros((len(rows), 1), dtype=mask.dtype, device=mask.device)
            counts[writing] = 1
            new_ids = torch.tensor(tokens, device=mask.device)[:, None].where(counts == 1, vocabulary.pad)
            done = stopping_criteria(torch.cat([sequences.ids, new_ids], dim=1), scores).tolist()
            for n in writing:
                rows[n].stopped = "criteria" if done[n] else None
            writing = [n for n in writing if not done[n]]
            if writing:
                hidden = sequences.advance(new_ids, counts)
        for row in rows:
            row.end_text(processor)
        if not at_image:
            break
        at_image.sort()
        rows = [rows[n] for n in at_image]
        sequences.keep(at_image)
        hidden = sequences.append_block(dream, "draw_slots")
        pictures = draw(rows, hidden[:, 1:-1])
        for row, picture in zip(rows, pictures, strict=True):
            row.parts.append(Picture(picture, row.role))
            row.num_pictures, row.at_image = row.num_pictures + 1, False
        if reads_back:
            pixels = processor.read_pixels(pictures).to(mask.device)
            hidden = sequences.append_block(image, "read_slots", read_pixels=pixels)
    if follower is not None:
        follower.end()


def choose(scores: torch.Tensor, rows: Sequence[Row], writing: Sequence[int], do_sample: bool) -> list[int]:
    """The next token of each row from processed scores (B, V): the most probable one, or sampled in the rows `writing`.

    Each row samples with its own generator, so that its text does not depend on the other rows.
    """
    tokens = scores.argmax(dim=-1).tolist()
    if do_sample:
        probabilities = scores.softmax(dim=-1).cpu()  # (B, V)
        for n in writing:
            tokens[n] = int(torch.multinomial(probabilities[n], 1, generator=rows[n].generator))
    return tokens

"""Several sequences in one row, and rows as a batch of tensors with the pictures tied to their places.

Documents in a row see nothing of each other: `position_ids` restart with each of them, and transformers builds the
attention mask of packed documents from these restarts (masking_utils.py), so that any causal language model of the
library fits. Padding is a run of its own at the end of a row.

This module draws no random numbers and decides nothing about the order of documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from PIL import Image

from dreamllm.data.layout import IGNORE, TokenSequence, Vocabulary

Row = list[TokenSequence]


@dataclass(frozen=True)
class Batch:
    """A packed batch of B rows with N pictures to read and M pictures to draw, listed row by row, left to right.

    A slot is (row, first position) of P patches or Q queries. Without pictures, the pixels are None; so they are where
    pictures come as what the frozen encoders make of them (`train/feature_cache.py`).
    """

    input_ids: torch.Tensor  # (B, T)
    labels: torch.Tensor  # (B, T), -100 where there is no target
    position_ids: torch.Tensor  # (B, T), restarting with each document
    read_slots: torch.Tensor  # (N, 2)
    draw_slots: torch.Tensor  # (M, 2)
    read_pixels: torch.Tensor | None  # (N, 3, Hc, Wc), normalised for CLIP
    draw_pixels: torch.Tensor | None  # (M, 3, Hd, Wd) in [-1, 1]
    document_ids: list[list[str]]  # per row, in order
    read_features: torch.Tensor | None = None  # (N, P, Dv), of CLIP
    draw_moments: torch.Tensor | None = None  # (M, 2C, h, w), of the VAE
    target_pixels: torch.Tensor | None = None  # (M, 3, Hc, Wc), pictures to draw for CLIP: for the alignment loss
    target_features: torch.Tensor | None = None  # (M, P, Dv), of CLIP

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)

    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of `DreamLLMForConditionalGeneration.forward`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "document_ids"}


def pack(sequences: list[TokenSequence], context: int) -> list[Row]:
    """Put each sequence into the first row that has room for it (first fit), opening rows as needed.

    Deterministic; keeps the order inside a row. Raises ValueError for a sequence longer than `context`.
    """
    rows: list[Row] = []
    room: list[int] = []
    for sequence in sequences:
        if len(sequence) > context:
            raise ValueError(
                f"document {sequence.document.id!r}: a sequence of {len(sequence)} tokens does not fit the context of "
                f"{context}; lay it out with this context"
            )
        index = next((index for index, left in enumerate(room) if left >= len(sequence)), len(rows))
        if index == len(rows):
            rows.append([])
            room.append(context)
        rows[index].append(sequence)
        room[index] -= len(sequence)
    return rows


def collate(
    rows: list[Row],
    vocabulary: Vocabulary,
    read_pixels: Callable[[list[Image.Image]], torch.Tensor],
    draw_pixels: Callable[[list[Image.Image]], torch.Tensor] | None,
    align: bool = False,
) -> Batch:
    """Tensors of some packed rows, padded to the longest of them.

    `read_pixels` and `draw_pixels` prepare pictures for CLIP and for the VAE (`DreamLLMProcessor` has both). For
    prompts, whose last picture does not exist yet, pass None for `draw_pixels`: the queries are placed all the same.
    align: prepare pictures that are drawn for CLIP, too.
    """
    length = max(sum(map(len, row)) for row in rows)
    input_ids = torch.full((len(rows), length), vocabulary.pad)
    labels = torch.full((len(rows), length), IGNORE)
    position_ids = torch.zeros((len(rows), length), dtype=torch.long)
    reads: list[tuple[int, int, TokenSequence, int]] = []
    draws: list[tuple[int, int, TokenSequence, int]] = []
    for index, row in enumerate(rows):
        start = 0
        for sequence in row:
            end = start + len(sequence)
            input_ids[index, start:end] = torch.tensor(sequence.input_ids)
            labels[index, start:end] = torch.tensor(sequence.labels)
            position_ids[index, start:end] = torch.arange(len(sequence))
            reads += [(index, start + slot.start, sequence, slot.picture) for slot in sequence.read_slots]
            draws += [(index, start + slot.start, sequence, slot.picture) for slot in sequence.draw_slots]
            start = end
        position_ids[index, start:] = torch.arange(length - start)
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        read_slots=torch.tensor([slot[:2] for slot in reads], dtype=torch.long).reshape(-1, 2),
        draw_slots=torch.tensor([slot[:2] for slot in draws], dtype=torch.long).reshape(-1, 2),
        read_pixels=read_pixels(_pictures(reads)) if reads else None,
        draw_pixels=draw_pixels(_pictures(draws)) if draws and draw_pixels else None,
        document_ids=[[sequence.document.id for sequence in row] for row in rows],
        target_pixels=read_pixels(_pictures(draws)) if draws and align else None,
    )


def _pictures(places: list[tuple[int, int, TokenSequence, int]]) -> list[Image.Image]:
    return [sequence.document.pictures[index] for _, _, sequence, index in places]

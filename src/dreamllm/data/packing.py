"""Pack several sequences into one row, and collate rows into a batch of tensors.

Documents in a row do not attend to each other: `position_ids` restart with each document, and transformers builds the
attention mask from these restarts (masking_utils.py), which works with any of its causal language models. Padding at
the end of a row has position_ids of its own, like a document.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from dreamllm.data.layout import IGNORE, TokenSequence, Vocabulary

Row = list[TokenSequence]


@dataclass(frozen=True)
class Batch:
    """A packed batch of B rows with N pictures to read and M pictures to draw, listed row by row, left to right.

    A slot is (row, first position) of P patches or Q queries. Pixels are None without pictures, and where the batch has
    cached encoder outputs in place of pixels (`train/feature_cache.py`).
    """

    input_ids: torch.Tensor  # (B, T)
    labels: torch.Tensor  # (B, T), -100 where there is no target
    position_ids: torch.Tensor  # (B, T), restarting with each document
    read_slots: torch.Tensor  # (N, 2)
    draw_slots: torch.Tensor  # (M, 2)
    read_pixels: torch.Tensor | None  # (N, 3, Hc, Wc), normalised for CLIP
    draw_pixels: torch.Tensor | None  # (M, 3, Hd, Wd) in [-1, 1]
    document_ids: list[list[str]]  # per row, in order
    cu_seq_lens: torch.Tensor | None = None  # (number of documents + 1,), `document_boundaries`
    target_positions: torch.Tensor | None = None  # (number of targets,), `positions_of_targets`
    read_features: torch.Tensor | None = None  # (N, P, Dv), of CLIP
    draw_moments: torch.Tensor | None = None  # (M, 2C, h, w), of the VAE
    target_pixels: torch.Tensor | None = None  # (M, 3, Hc, Wc), pictures to draw for CLIP: for the alignment loss
    target_features: torch.Tensor | None = None  # (M, P, Dv), of CLIP

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`. A GPU copies pinned memory while the step before it runs."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch with its tensors in pinned memory."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **changed)

    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of `DreamLLMForConditionalGeneration.forward`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "document_ids"}


def document_boundaries(position_ids: torch.Tensor) -> torch.Tensor:
    """Where documents begin in the concatenated rows of position_ids (B, T), and where the last ends, in int32.

    Padding counts as a document. On a GPU this waits for the device, so `collate` does it.
    """
    flat = position_ids.flatten()
    starts = (flat == 0).nonzero().flatten().to(torch.int32)
    return F.pad(starts, (0, 1), value=len(flat))  # (number of documents + 1,)


def positions_of_targets(labels: torch.Tensor) -> torch.Tensor:
    """Positions in the concatenated rows of labels (B, T) whose next label is a target, in order."""
    is_target = F.pad(labels[:, 1:] != IGNORE, (0, 1))  # (B, T)
    return is_target.flatten().nonzero().flatten()


def pack(sequences: list[TokenSequence], context: int) -> list[Row]:
    """Put each sequence into the first row with enough room (`first_fit`), adding rows as needed.

    Deterministic; keeps the order inside a row. Raises ValueError for a sequence longer than `context`.
    """
    for sequence in sequences:
        check_fits(sequence, context)
    rows = first_fit([len(sequence) for sequence in sequences], context)
    return [[sequences[index] for index in row] for row in rows]


def check_fits(sequence: TokenSequence, context: int) -> None:
    """Raises ValueError for a sequence longer than `context` tokens."""
    if len(sequence) > context:
        raise ValueError(
            f"document {sequence.document.id!r}: a sequence of {len(sequence)} tokens does not fit the context of "
            f"{context}; lay it out with this context"
        )


def first_fit(lengths: Sequence[int], context: int) -> list[list[int]]:
    """First-fit bin packing: put each length into the first row of size `context` that has room for it.

    lengths: each at most `context`. Returns the rows as indices of `lengths`. A binary tree whose nodes hold the most
    room below them finds a row in logarithmic time.
    """
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    room = [context] * (2 * leaves)  # of node n the children are 2n and 2n + 1; leaf n is row n - leaves
    rows: list[list[int]] = []
    for index, length in enumerate(lengths):
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < length:
                node += 1
        if node - leaves == len(rows):
            rows.append([])
        rows[node - leaves].append(index)
        left = room[node] - length
        while node and room[node] != left:
            room[node] = left
            node, sibling = node // 2, room[node ^ 1]
            left = max(left, sibling)
    return rows


def collate(
    rows: list[Row],
    vocabulary: Vocabulary,
    read_pixels: Callable[[list[Image.Image]], torch.Tensor],
    draw_pixels: Callable[[list[Image.Image]], torch.Tensor] | None,
    align: bool = False,
) -> Batch:
    """Tensors of some packed rows, padded to the longest of them.

    read_pixels, draw_pixels: prepare pictures for CLIP and for the VAE, as those of `DreamLLMProcessor`. Pass None for
    `draw_pixels` with prompts, whose last picture does not exist yet.  align: prepare pictures to draw for CLIP too.
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
        cu_seq_lens=document_boundaries(position_ids),
        target_positions=positions_of_targets(labels),
        target_pixels=read_pixels(_pictures(draws)) if draws and align else None,
    )


def _pictures(places: list[tuple[int, int, TokenSequence, int]]) -> list[Image.Image]:
    return [sequence.document.pictures[index] for _, _, sequence, index in places]

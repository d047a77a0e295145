"""Pure functions on packed batches: what keeps documents of a row apart, and the slots of pictures in their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask


def packed_attention_mask(
    config: PreTrainedConfig, inputs_embeds: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor | None:
    """The mask (B, 1, T, T) that keeps packed documents apart, by transformers, which finds them by their position_ids.

    None where it needs no mask, or makes its own: for flash attention, and for sliding windows, which this mask would
    undo. It is made here because older models of the library do not hand their position_ids on to the mask.
    """
    if getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return None
    return create_causal_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=None,
        past_key_values=None,
        position_ids=position_ids,
    )


def packed_lengths(position_ids: torch.Tensor) -> dict[str, Any]:
    """Where the documents of position_ids (B, T) begin and end, as flash attention wants it: rows one after another.

    Without these transformers finds packed documents by itself only in a batch of one row.
    """
    flat = position_ids.flatten()
    starts = (flat == 0).nonzero().flatten().to(torch.int32)
    ends = F.pad(starts, (0, 1), value=len(flat))  # (number of documents + 1,)
    longest = position_ids.shape[1]  # an upper bound will do, and the true one would have to be waited for
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def in_chunks(
    function: Callable[..., torch.Tensor], size: int | None, *tensors: torch.Tensor, recompute: bool = False
) -> torch.Tensor:
    """function(*tensors) for at most `size` entries at a time (None: all at once), joined again.

    recompute: keep no activations of a part; the backward pass computes the part once more.
    """
    if size is None or len(tensors[0]) <= size:
        return function(*tensors)
    parts = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    if recompute:
        return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])
    return torch.cat([function(*part) for part in parts])


def fill_slots(embeds: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Put values (N, L, D) at the L positions from each slot (N, 2), (row, first position), of embeds (B, T, D)."""
    return embeds.index_put(_positions(slots, values.shape[1]), values.to(embeds.dtype))


def gather_slots(hidden: torch.Tensor, slots: torch.Tensor, length: int) -> torch.Tensor:
    """The hidden states (N, length, D) at the positions from each slot (N, 2) of hidden (B, T, D)."""
    return hidden[_positions(slots, length)]


def _positions(slots: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column indices of the slots, broadcasting to (N, length)."""
    return slots[:, :1], slots[:, 1:] + torch.arange(length, device=slots.device)

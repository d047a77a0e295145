"""Pure functions on packed batches: attention masks that separate documents, and the slots of pictures in rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from dreamllm.data.packing import document_boundaries
from dreamllm.model.varlen import VARLEN


def packed_attention_mask(
    config: PreTrainedConfig, inputs_embeds: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor | None:
    """The mask (B, 1, T, T) that separates packed documents, made by transformers from their position_ids (B, T).

    Made here because older models of transformers do not pass position_ids to their mask. None where the model makes
    its own: with flash attention (see `packed_lengths`), and with sliding windows, which this mask would override.
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


def head_logits(language_model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of the next token from last hidden states (..., D), with Gemma's soft cap where it has one."""
    logits = language_model.get_output_embeddings()(hidden)
    cap = getattr(language_model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def packed_lengths(
    config: PreTrainedConfig, position_ids: torch.Tensor, cu_seq_lens: torch.Tensor | None = None
) -> dict[str, Any]:
    """Boundaries of the documents of position_ids (B, T) as arguments of an attention that takes them, else nothing.

    cu_seq_lens: `document_boundaries` of position_ids, if they are known. Without them, transformers' flash attention
    separates packed documents in batches of one row only.
    """
    if not (is_flash_attention_requested(config) or config._attn_implementation == VARLEN):
        return {}
    ends = document_boundaries(position_ids) if cu_seq_lens is None else cu_seq_lens
    longest = position_ids.shape[1]  # an upper bound; the exact length would have to be fetched from the GPU
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def in_chunks(
    function: Callable[..., torch.Tensor], size: int | None, *tensors: torch.Tensor, recompute: bool = False
) -> torch.Tensor:
    """Apply a function to chunks of at most `size` entries of the tensors (None: all at once), and concatenate.

    recompute: store no activations of a chunk; the backward pass computes them again.
    """
    if size is None or len(tensors[0]) <= size:
        return function(*tensors)
    parts = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    if recompute:
        return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])
    return torch.cat([function(*part) for part in parts])


def with_gradient(
    function: Callable[..., torch.Tensor], size: int | None, inputs: torch.Tensor, *others: torch.Tensor
) -> torch.Tensor:
    """Apply a function in parts of at most `size` entries, and compute its gradient by `inputs` in the same pass.

    function: one number (M,) for each entry of its tensors, which depends on that entry alone, and on no trained
    parameters.  inputs (M, ...); others (M, ...) take no gradient.
    Unlike checkpointing, it runs the function once: the backward pass scales the stored gradient. Activations of one
    part are in memory at a time. Without a size, or without gradients of `inputs`, it is `in_chunks`.
    """
    if size is not None and torch.is_grad_enabled() and inputs.requires_grad:
        return _WithGradient.apply(function, size, inputs, *others)
    return in_chunks(function, size, inputs, *others)


class _WithGradient(torch.autograd.Function):
    """See `with_gradient`."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., torch.Tensor], size: int, *tensors: torch.Tensor) -> torch.Tensor:
        values, gradients = [], []
        for inputs, *others in zip(*(tensor.split(size) for tensor in tensors), strict=True):
            leaf = inputs.detach().requires_grad_()
            with torch.enable_grad():
                value = function(leaf, *others)
            with torch.autocast(inputs.device.type, enabled=False):  # as in a backward pass
                gradients += torch.autograd.grad(value, leaf, torch.ones_like(value))
            values.append(value.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = outer.reshape(-1, *[1] * (gradient.ndim - 1)) * gradient
        return (None, None, scaled.to(gradient.dtype), *[None] * (len(ctx.needs_input_grad) - 3))


def find_slots(input_ids: torch.Tensor, start: int | None, patch: int | None) -> torch.Tensor | None:
    """Slots (N, 2), (row, first position), of the blocks `start patch patch ...` in input_ids (B, T), in their order.

    None for a step of generation, which has one token per row.
    """
    if input_ids.shape[1] == 1 or start is None or patch is None:
        return None
    rows, columns = ((input_ids[:, :-1] == start) & (input_ids[:, 1:] == patch)).nonzero(as_tuple=True)
    return torch.stack([rows, columns + 1], dim=1)


def fill_slots(embeds: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Put values (N, L, D) at the L positions from each slot (N, 2), (row, first position), of embeds (B, T, D).

    Raises ValueError for another number of slots than of values.
    """
    if len(slots) != len(values):
        raise ValueError(f"input_ids have places for {len(slots)} pictures, but {len(values)} were passed")
    return embeds.index_put(_positions(slots, values.shape[1]), values.to(embeds))


def gather_slots(hidden: torch.Tensor, slots: torch.Tensor, length: int) -> torch.Tensor:
    """The hidden states (N, length, D) at the positions from each slot (N, 2) of hidden (B, T, D)."""
    return hidden[_positions(slots, length)]


def _positions(slots: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column indices of the slots, broadcasting to (N, length)."""
    return slots[:, :1], slots[:, 1:] + torch.arange(length, device=slots.device)

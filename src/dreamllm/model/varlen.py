"""Attention over packed rows by the lengths of their documents: `varlen`, registered in transformers.

A dense mask keeps documents apart as well, but SDPA then has no flash kernel. On a GPU this is torch's own
`varlen_attn`, on a CPU SDPA's causal kernel, document by document.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.utils import is_flash_attn_2_available

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

VARLEN = "varlen"
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")  # of attention in some language models


def implementation(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest attention by the lengths of documents that is here, by its name in transformers.

    dtype: of queries, keys and values. Flash kernels need bfloat16 or float16; FlexAttention has no backward pass on a
    CPU.
    """
    if device.type != "cuda":
        return VARLEN
    if dtype != torch.float32:
        if flash_works(device, dtype):
            return VARLEN
        if is_flash_attn_2_available():
            return "flash_attention_2"
    return "flex_attention"


def flash_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's kernel is there, runs on this device, and agrees with SDPA on two documents, with gradients."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(48, heads, 64, generator=generator).to(device, dtype) for heads in (4, 2, 2)]
    ends = torch.tensor([0, 17, 48], dtype=torch.int32, device=device)
    results = []
    for attend in (flash, one_by_one):
        query, key, value = leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        try:
            output = attend(query, key, value, ends, 48, None)
            results.append([output, *torch.autograd.grad(output.float().square().sum(), leaves)])
        except (TypeError, RuntimeError):  # other arguments in an older torch; no kernel for this device
            return False
    return all(torch.allclose(ours, sdpas, rtol=0.05, atol=0.05) for ours, sdpas in zip(*results, strict=True))


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document, for transformers' AttentionInterface.

    query (B, H, T, D); key, value (B, Hkv, T, D); cu_seq_lens_q (number of documents + 1,): boundaries of the documents
    in the concatenated rows; max_length_q: an upper bound of their lengths. Returns (B, T, H, D).

    Raises ValueError for a mask, for dropout, for missing boundaries, and for attention that is not plain.
    """
    asked = [name for name in UNSUPPORTED if options.get(name) is not None]
    asked += ["a mask"] if attention_mask is not None else []
    asked += ["dropout"] if dropout else []
    if asked or cu_seq_lens_q is None or max_length_q is None:
        what = (
            f"has no {', '.join(asked)}" if asked else "needs cu_seq_lens_q, which this language model does not pass on"
        )
        raise ValueError(f"attention {VARLEN!r} {what} ({type(module).__name__}); set machine.attention to sdpa")
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):  # norms of queries and keys leave fp32
        dtype = torch.get_autocast_dtype(query.device.type)
    attend = flash if query.is_cuda else one_by_one
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1).to(dtype) for tensor in (query, key, value))  # (B T, heads, D)
    return attend(q, k, v, cu_seq_lens_q, max_length_q, scaling).unflatten(0, (len(query), -1)), None


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    """torch's `varlen_attn` with a causal mask: query (T, H, D), key and value (T, Hkv, D) -> (T, H, D)."""
    grouped = query.shape[1] != key.shape[1]
    output = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=grouped
    )
    assert isinstance(output, torch.Tensor)  # it returns more only when asked
    return output


def one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    """The same by SDPA, one document after the other."""
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for document in (slice(*pair) for pair in itertools.pairwise(ends.tolist())):
        q, k, v = (tensor[document].transpose(0, 1)[None] for tensor in (query, key, value))  # (1, heads, length, D)
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        parts.append(output[0].transpose(0, 1))
    return torch.cat(parts)


AttentionInterface.register(VARLEN, attention_forward)

"""Further optimisations of the training step that were tried: time relative to our step, and change of the loss.

    python benchmarks/alternatives.py [--sizes tiny small] [--workloads joint mixed] [--repeats 5] [--compile]

The package uses none of them; docs/speed.md gives the reasons. Times are measured as in speed.py. Products in bfloat16
are tried only on a CPU that has them (AVX-512 BF16 or AMX). `--compile` adds torch.compile, which takes minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import miniature
import speed
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dreamllm.data.layout import IGNORE
from dreamllm.data.packing import Batch
from dreamllm.model.diffusion import DiffusionNoise
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration, packed_attention_mask

Model = DreamLLMForConditionalGeneration
BLOCK = 32  # queries per block; 64 and 128 are slower


# ---- blockwise causal attention --------------------------------------------------------------------------------------


class BlockwiseCausalAttention(torch.autograd.Function):
    """Causal attention that multiplies each block of queries with the keys up to the end of that block only."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        """Attention (B, H, T, D) of query, key and value of that shape; mask (B, 1, T, T) of what is seen, or None."""
        rows, heads, length, width = query.shape
        query, key, value = (x.reshape(rows * heads, length, width) for x in (query * scaling, key, value))
        out, weights = torch.empty_like(value), []
        for begin in range(0, length, BLOCK):
            end = min(begin + BLOCK, length)
            scores = torch.bmm(query[:, begin:end], key[:, :end].transpose(1, 2))  # (B * H, block, end)
            if mask is None:
                hidden = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
                scores[:, :, begin:].masked_fill_(hidden, -torch.inf)
            else:
                scores.view(rows, heads, -1, end).masked_fill_(~mask[:, :, begin:end, :end], -torch.inf)
            weights.append(scores.softmax(-1))
            out[:, begin:end] = torch.bmm(weights[-1], value[:, :end])
        ctx.save_for_backward(query, key, value, *weights)
        ctx.scaling, ctx.shape = scaling, (rows, heads, length, width)
        return out.view(ctx.shape)

    @staticmethod
    def backward(ctx, gradient):
        """Gradients of query, key and value."""
        query, key, value, *weights = ctx.saved_tensors
        gradient = gradient.reshape(value.shape)
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for index, part in enumerate(weights):
            begin, end = index * BLOCK, part.shape[2]
            incoming = gradient[:, begin:end]
            of_value[:, :end].baddbmm_(part.transpose(1, 2), incoming)
            of_weights = torch.bmm(incoming, value[:, :end].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_weights, part, -1, part.dtype)
            of_query[:, begin:end] = torch.bmm(of_scores, key[:, :end]).mul_(ctx.scaling)
            of_key[:, :end].baddbmm_(of_scores.transpose(1, 2), query[:, begin:end])
        return *(x.view(ctx.shape) for x in (of_query, of_key, of_value)), None, None


def blockwise_causal(module, query, key, value, attention_mask, scaling, **_: object) -> tuple[torch.Tensor, None]:
    """`BlockwiseCausalAttention` with the arguments of an attention of transformers; no grouped keys, no dropout."""
    return BlockwiseCausalAttention.apply(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register("blockwise_causal", blockwise_causal)
AttentionMaskInterface.register("blockwise_causal", sdpa_mask)


@contextmanager
def use_blockwise_causal(model: Model) -> Iterator[None]:
    """Context in which the language model uses blockwise causal attention."""
    model.language_model.set_attn_implementation("blockwise_causal")
    try:
        yield
    finally:
        model.language_model.set_attn_implementation("sdpa")


# ---- last layer at the needed positions only -------------------------------------------------------------------------


def loss_with_partial_last_layer(model: Model, batch: Batch, noise: DiffusionNoise) -> torch.Tensor:
    """The model's loss, with the output of the last layer computed at targets and dream queries only. For LLaMA."""
    llm, config = model.language_model.base_model, model.config
    inputs = batch.inputs()
    names = ("input_ids", "read_pixels", "read_slots", "draw_slots", "read_features")
    hidden = model.embed(**{name: inputs.get(name) for name in names})
    positions = llm.rotary_emb(hidden, position_ids=batch.position_ids)
    options = {
        "attention_mask": packed_attention_mask(llm.config, hidden, batch.position_ids),
        "position_embeddings": positions,
    }
    *layers, last = llm.layers
    for layer in layers:
        hidden = layer(hidden, **options)
    attended, _ = last.self_attn(hidden_states=last.input_layernorm(hidden), **options)

    is_target = F.pad(batch.labels[:, 1:] != IGNORE, (0, 1))  # (B, T): the positions before the targets
    if not config.language_loss_weight:
        is_target = torch.zeros_like(is_target)
    needed = is_target.clone()
    draws = inputs.get("draw_slots") is not None and len(batch.draw_slots) > 0
    if draws:
        columns = batch.draw_slots[:, 1:] + torch.arange(config.num_dream_queries)
        slots = batch.draw_slots[:, :1], columns
        needed[slots] = True
    hidden = (hidden + attended)[needed]  # (number of needed positions, D)
    hidden = llm.norm(hidden + last.mlp(last.post_attention_layernorm(hidden)))

    order = needed.flatten().cumsum(0).view_as(needed) - 1  # index of a position among the needed ones
    loss = hidden.new_zeros(())
    if config.language_loss_weight:
        logits = model.get_output_embeddings()(hidden[order[is_target]])
        language = F.cross_entropy(logits.float(), F.pad(batch.labels[:, 1:], (0, 1))[is_target])
        loss = loss + config.language_loss_weight * language
    if draws:
        states = hidden[order[slots]]
        pixels, moments = inputs.get("draw_pixels"), inputs.get("draw_moments")
        loss = loss + config.diffusion_loss_weight * model.diffusion_loss(states, pixels, noise, moments=moments)
    return loss


# ---- other formats and kernels ---------------------------------------------------------------------------------------


@contextmanager
def fused_norms(model: Model) -> Iterator[None]:
    """Context in which the language model's RMSNorm is torch's fused one."""
    original = LlamaRMSNorm.forward
    LlamaRMSNorm.forward = lambda self, x: F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)
    try:
        yield
    finally:
        LlamaRMSNorm.forward = original


@contextmanager
def channels_last(model: Model) -> Iterator[None]:
    """Context in which the weights of UNet and VAE are in channels-last format."""
    speed.set_memory_format(model, torch.channels_last)
    try:
        yield
    finally:
        speed.set_memory_format(model, torch.contiguous_format)


@contextmanager
def eager_unet(model: Model) -> Iterator[None]:
    """Context in which UNet and VAE compute attention by single operations instead of SDPA."""
    for part in (model.unet, model.vae):
        part.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        for part in (model.unet, model.vae):
            part.set_attn_processor(AttnProcessor2_0())


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Context in which oneDNN may round the factors of fp32 products to bfloat16."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@contextmanager
def bfloat16_products_and_eager_attention(model: Model) -> Iterator[None]:
    """The same with eager attention, whose products are then in bfloat16 too."""
    with bfloat16_products(), speed.attention_set_to(model, "eager"):
        yield


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


# ---- measuring -------------------------------------------------------------------------------------------------------


def alternatives(size: str, workload: str, repeats: int, compiled: bool = False) -> str:
    """Table: our step with one change at a time: its time relative to our step, and the change of the loss."""
    model = miniature.build(size)
    packed, _, noise = speed.prepare(model, workload)
    packed = speed.precomputed(model, packed) if workload == "mixed" else packed  # as in the table of speed.ablation

    def loss() -> torch.Tensor:
        return model(**packed.inputs(), noise=noise).loss

    def short() -> torch.Tensor:
        return loss_with_partial_last_layer(model, packed, noise)

    variants: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], AbstractContextManager]]] = {
        "ours": (loss, nullcontext),
        "last layer at targets and queries only": (short, nullcontext),
        "blockwise causal attention": (loss, lambda: use_blockwise_causal(model)),
        "torch's RMSNorm": (loss, lambda: fused_norms(model)),
        "UNet and VAE channels last": (loss, lambda: channels_last(model)),
        "UNet and VAE with eager attention": (loss, lambda: eager_unet(model)),
    }
    if has_bfloat16():
        variants["products in bfloat16"] = (loss, bfloat16_products)
        variants["products in bfloat16, eager attention"] = (loss, lambda: bfloat16_products_and_eager_attention(model))
    if compiled:
        other = miniature.build(size)
        speed.prepare(other, workload)
        for layer in other.language_model.base_model.layers:
            layer.compile()
        variants["layers by torch.compile"] = (lambda: other(**packed.inputs(), noise=noise).loss, nullcontext)

    found = {}
    with torch.no_grad():
        for name, (function, inside) in variants.items():
            with inside():
                found[name] = function().item()

    def run(name: str) -> Callable[[], None]:
        function, inside = variants[name]
        trains = other if name == "layers by torch.compile" else model
        step = speed.step(trains, function, speed.fused_adamw(trains))

        def inside_step() -> None:
            with inside():
                step()

        return inside_step

    times = speed.median_ms({name: run(name) for name in variants}, repeats)
    rows = [
        [
            f"{size}, {workload}: {name}",
            f"{value:.0f}",
            f"{value / times['ours']:.2f}",
            f"{abs(found[name] / found['ours'] - 1):.0e}",
        ]
        for name, value in times.items()
    ]
    return speed.table(["variant", "ms", "relative to ours", "loss differs by"], rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=miniature.SIZES, default=list(miniature.SIZES))
    parser.add_argument("--workloads", nargs="+", default=["joint"], choices=["joint", "creation", "text", "mixed"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="try torch.compile too: takes minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in arguments.sizes:
        for workload in arguments.workloads:
            print(alternatives(size, workload, arguments.repeats, arguments.compile), flush=True)


if __name__ == "__main__":
    main()

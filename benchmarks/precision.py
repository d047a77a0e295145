"""Time a training step, also against the naive code, and the sampling of a picture in fp32 and in bf16, in one run.

    python benchmarks/precision.py [--sizes tiny small] [--repeats 5]

Prints CPU time of one thread, measured as in speed.py. A CPU without instructions for bfloat16 (AVX512-BF16, AMX)
emulates it; there `precision: auto` is fp32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import miniature
import speed
import torch

from dreamllm.data.packing import Batch
from dreamllm.model import precision
from dreamllm.model.diffusion import DiffusionNoise
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.sampling import PictureSampling, draw_from_states

PICTURES = 32  # sampled at once, as in the default run


def training_step(
    model: DreamLLMForConditionalGeneration, batch: Batch, noise: DiffusionNoise, name: str
) -> tuple[Callable[[], torch.Tensor], Callable[[], None]]:
    """The loss of a model on a batch in the precision `name`, and the step that trains by it."""
    precision.for_training(model, precision.DTYPES[name])
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16")
    loss = autocast(lambda: model(**batch.inputs(), noise=noise).loss)
    return loss, speed.step(model, loss, speed.fused_adamw(model))


def precisions(size: str, repeats: int) -> str:
    """Table: a training step on the workload "mixed", and the sampling of a picture, in fp32 and in bf16."""
    candidates: dict[tuple[str, str], Callable[[], object]] = {}
    losses = {}
    for name, dtype in precision.DTYPES.items():
        model = miniature.build(size)
        packed, _, noise = speed.prepare(model, "mixed")
        loss, candidates["training step", name] = training_step(model, packed, noise, name)
        with torch.no_grad():
            losses[name] = loss().item()
        artist = miniature.build(size)
        precision.for_inference(artist, "cpu", dtype)
        candidates["picture", name] = lambda artist=artist: sample(artist)
    times = speed.median_ms(candidates, repeats)
    rows = []
    for what, pictures in (("training step", 1), ("picture", PICTURES)):
        fp32, bf16 = (times[what, name] / pictures for name in ("fp32", "bf16"))
        rows.append([f"{size}, {what}", f"{fp32:.1f}", f"{bf16:.1f}", f"{bf16 / fp32:.2f}"])
    rows[0].append(f"{abs(losses['bf16'] / losses['fp32'] - 1):.0e}")
    rows[1].append("")
    return speed.table(["ms", "fp32", "bf16", "bf16 / fp32", "loss differs by"], rows)


def against_naive(size: str, repeats: int) -> str:
    """Table: a training step on the workload "joint" by the naive code in fp32, and by this repository."""
    model = miniature.build(size)
    packed, padded, noise = speed.prepare(model, "joint")
    candidates = {"naive": speed.naive_step(model, padded, noise)}
    for name in precision.DTYPES:
        for what, precompute in ((name, False), (f"{name}, precompute", True)):
            ours = miniature.build(size)
            batch = speed.precomputed(ours, packed) if precompute else packed
            _, candidates[what] = training_step(ours, batch, noise, name)
    times = speed.median_ms(candidates, repeats)
    rows = [[f"{size}, joint, ms", *(f"{times[name]:.0f}" for name in candidates)]]
    rows.append(["to naive", *(f"{times[name] / times['naive']:.2f}" for name in candidates)])
    return speed.table(["", *candidates], rows)


@torch.no_grad()
def sample(model: DreamLLMForConditionalGeneration) -> None:
    """Sample a batch of pictures as the default run does: 8 steps with guidance."""
    shape = (PICTURES, model.config.num_dream_queries, model.config.text_config.hidden_size)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    draw_from_states(model, states, model.null_states(), range(PICTURES), PictureSampling(steps=8, guidance=2.0))


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=miniature.SIZES, default=list(miniature.SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in arguments.sizes:
        print(precisions(size, arguments.repeats), against_naive(size, arguments.repeats), sep="\n\n", flush=True)


if __name__ == "__main__":
    main()

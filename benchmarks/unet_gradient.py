"""The UNet's part of a training step with checkpointing, in CPU time and in runs of the UNet: `pictures_at_a_time`.

    python benchmarks/unet_gradient.py [--sizes tiny small] [--pictures 2] [--repeats 7]

Compares the diffusion loss of the workload "joint" and its gradient by the conditions: with the UNet's activations
stored, recomputed part by part in the backward pass (a trained UNet's; formerly any), and with the
gradient computed in the forward pass (a frozen UNet's). One thread, fp32; the candidates are run in turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import miniature
import speed
import torch

from dreamllm.model import dreamllm
from dreamllm.model.packed import in_chunks

STORED, RECOMPUTED, IN_FORWARD = "stored", "recomputed in the backward pass", "gradient in the forward pass"
TOLERANCE = 1e-5  # relative, of losses and gradients; other sizes of parts alone differ by 1e-6


@contextmanager
def recomputation() -> Iterator[None]:
    """Context in which the parts of a frozen UNet's pictures run again in the backward pass, as a trained one's do."""
    ours = dreamllm.with_gradient
    dreamllm.with_gradient = partial(in_chunks, recompute=True)
    try:
        yield
    finally:
        dreamllm.with_gradient = ours


def candidates(model: speed.Model, pictures: int) -> dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    """Functions that compute the diffusion loss and its gradient by the query states, each in its own way."""
    batch, _, noise = speed.prepare(model, "joint")
    moments = model.latent_moments(batch.draw_pixels)
    shape = (len(moments), model.config.num_dream_queries, model.config.text_config.hidden_size)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def run(size: int | None, recompute_blocks: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model.pictures_at_a_time = size
        (model.unet.enable_gradient_checkpointing if recompute_blocks else model.unet.disable_gradient_checkpointing)()
        loss = model.diffusion_loss(states, None, noise, moments=moments)
        return loss.detach(), torch.autograd.grad(loss, states)[0]

    def recomputed() -> tuple[torch.Tensor, torch.Tensor]:
        with recomputation():
            return run(pictures, True)

    return {STORED: lambda: run(None, False), RECOMPUTED: recomputed, IN_FORWARD: lambda: run(pictures, False)}


def runs(model: speed.Model, function: Callable[[], object]) -> float:
    """How often a call of the function runs the first block of the UNet's second half, by the pictures of the batch."""
    counted: list[int] = []
    norm = model.unet.up_blocks[0].resnets[0].norm1
    hook = norm.register_forward_hook(lambda _, inputs, output: counted.append(len(inputs[0])))
    function()
    hook.remove()
    return sum(counted) / len(speed.prepare(model, "joint")[0].draw_slots)


def measure(size: str, pictures: int, repeats: int) -> str:
    """Table of the candidates for one size of model. Raises AssertionError where they differ in loss or gradient."""
    model = miniature.build(size)
    ways = candidates(model, pictures)
    loss, gradient = ways[RECOMPUTED]()
    differences = {}
    for name, way in ways.items():
        other, other_gradient = way()
        differences[name] = max(
            ((other - loss).abs() / loss).item(), ((other_gradient - gradient).norm() / gradient.norm()).item()
        )
        assert differences[name] <= TOLERANCE, f"{name}: loss or gradient differs by {differences[name]:.1e}"
    times = speed.median_ms(ways, repeats)
    rows = [
        [f"{size}: {name}", f"{runs(model, way):g}", f"{times[name]:.0f}"]
        + [f"{times[name] / times[RECOMPUTED]:.2f}", f"{differences[name]:.0e}"]
        for name, way in ways.items()
    ]
    return speed.table(["the UNet's activations", "runs", "CPU ms", "ratio", "difference"], rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=miniature.SIZES, default=list(miniature.SIZES))
    parser.add_argument("--pictures", type=int, default=2, help="pictures at a time")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in arguments.sizes:
        print(measure(size, arguments.pictures, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()

"""Time a training step and decoding against a naive implementation and the authors' code: `make bench`.

    python benchmarks/speed.py [--sizes tiny small] [--repeats 7] [--tables steps ablation breakdown decoding]

Prints CPU time of one thread in fp32, the median over the repeats. The candidates of a table are run in turn, so that
other load on the machine slows all of them alike. Before anything is timed, the losses are compared with those of the
naive code. docs/speed.md shows and explains the tables.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import miniature
import naive
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dreamllm.data.layout import IGNORE
from dreamllm.data.packing import Batch, pack
from dreamllm.model.decoding import Sequences
from dreamllm.model.diffusion import DiffusionNoise
from dreamllm.model.dreamllm import UNFROZEN, DreamLLMForConditionalGeneration

Model = DreamLLMForConditionalGeneration

AUTHORS = {  # milliseconds of CPU time of the authors' released code on one thread; decoding: per token
    "tiny": {"joint": 196, "creation": 169, "text": 153, "decoding": 2.43},
    "small": {"joint": 1155, "creation": 973, "text": 812, "decoding": 7.97},
}
TRAINED = {"creation": ("dream_queries", "condition_projector")}  # by workload; all others train UNFROZEN
TOLERANCE = 1e-5  # relative, of losses


def median_ms(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU time of each candidate in ms. The candidates are run in turn; the first turn is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, run in candidates.items():
            begin = time.process_time()
            run()
            if turn:
                times[name].append(time.process_time() - begin)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


# ---- a training step -------------------------------------------------------------------------------------------------


def prepare(model: Model, workload: str) -> tuple[Batch, Batch, DiffusionNoise]:
    """A workload as a packed batch, as a padded batch with one document per row, and the noise of its pictures.

    Also sets which parts of the model the workload trains, and its language loss weight. Packing keeps the order of the
    documents, so that the n-th picture and its noise are the same in both batches.
    """
    model.train_only(TRAINED.get(workload, UNFROZEN))
    model.config.language_loss_weight = 0.0 if workload == "creation" else 1.0
    sequences = miniature.sequences(model, workload)
    packed = miniature.batch(model, pack(sequences, miniature.CONTEXT))
    padded = miniature.batch(model, [[sequence] for sequence in sequences])
    return packed, padded, model.draw_noise(len(packed.draw_slots), torch.Generator().manual_seed(0))


def step(model: Model, loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A training step as a function to time: forward, backward, gradient clipping and update as in train/trainer.py."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def run() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def trainable_parameters(model: Model) -> list[torch.nn.Parameter]:
    """The parameters that require gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def fused_adamw(model: Model) -> torch.optim.Optimizer:
    """The optimiser of train/trainer.py."""
    return torch.optim.AdamW(trainable_parameters(model), lr=1e-5, weight_decay=0.0, fused=True)


def our_step(model: Model, batch: Batch, noise: DiffusionNoise) -> Callable[[], None]:
    """The training step of this repository."""
    return step(model, lambda: model(**batch.inputs(), noise=noise).loss, fused_adamw(model))


def naive_step(model: Model, batch: Batch, noise: DiffusionNoise) -> Callable[[], None]:
    """The training step of the naive code."""
    run = step(model, lambda: naive.loss(model, batch, noise)[0], naive.adamw(trainable_parameters(model)))
    return run_with_attention(model, "eager", run)


def precomputed(model: Model, batch: Batch) -> Batch:
    """The batch with CLIP's features and the VAE's moments instead of pixels, as in a stage with `precompute: true`."""
    return replace(
        batch,
        read_pixels=None,
        draw_pixels=None,
        read_features=None if batch.read_pixels is None else model.patch_features(batch.read_pixels),
        draw_moments=None if batch.draw_pixels is None else model.latent_moments(batch.draw_pixels),
    )


def run_with_attention(model: Model, name: str, run: Callable[[], None]) -> Callable[[], None]:
    """`run` with this attention implementation of transformers in the language model and CLIP."""

    def run_inside() -> None:
        with attention_set_to(model, name):
            run()

    return run_inside


@contextmanager
def attention_set_to(model: Model, name: str) -> Iterator[None]:
    """Context in which the language model and CLIP use this attention implementation of transformers."""
    for part in (model.language_model, model.vision_model):
        part.set_attn_implementation(name)
    try:
        yield
    finally:
        for part in (model.language_model, model.vision_model):
            part.set_attn_implementation("sdpa")


def check_losses(model: Model, packed: Batch, padded: Batch, noise: DiffusionNoise) -> tuple[float, float]:
    """Losses of the model and of the naive code on the same documents. Raises AssertionError where they differ."""
    with torch.no_grad(), attention_set_to(model, "eager"):
        expected = naive.loss(model, padded, noise)[0].item()
    with torch.no_grad():
        loss = model(**packed.inputs(), noise=noise).loss.item()
    assert abs(loss - expected) <= TOLERANCE * abs(expected), f"the losses differ: ours {loss}, naive {expected}"
    return loss, expected


def steps(size: str, repeats: int) -> str:
    """Table: a training step of each workload by the authors' code (recorded), the naive code and this repository."""
    rows = []
    for workload in ("joint", "creation", "text", "mixed"):
        model = miniature.build(size)
        packed, padded, noise = prepare(model, workload)
        loss, _ = check_losses(model, packed, padded, noise)
        times = median_ms(
            {
                "naive": naive_step(model, padded, noise),
                "ours": our_step(model, packed, noise),
                "precompute": our_step(model, precomputed(model, packed), noise),
            },
            repeats,
        )
        recorded = AUTHORS[size].get(workload)
        rows.append(
            [
                f"{size}, {workload}",
                "" if recorded is None else f"{recorded}",
                *(f"{times[name]:.0f}" for name in ("naive", "ours", "precompute")),
                f"{times['ours'] / times['naive']:.2f}",
                f"{times['precompute'] / times['naive']:.2f}",
                f"{loss:.5f}",
            ]
        )
    head = ["step", "authors", "naive", "ours", "precompute", "ours / naive", "precompute / naive", "loss"]
    return table(head, rows)


# ---- what each optimisation gains ------------------------------------------------------------------------------------


def all_logits(model: Model, batch: Batch, noise: DiffusionNoise) -> Callable[[], torch.Tensor]:
    """The loss with logits computed at all positions instead of at the targets."""

    def loss() -> torch.Tensor:
        hidden = model(**batch.inputs() | {"labels": None}, noise=noise)
        logits = model.get_output_embeddings()(hidden.last_hidden_state).float()[:, :-1].contiguous()
        language = F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE)
        return language if hidden.loss is None else language + hidden.loss

    return loss


def ablation(size: str, repeats: int) -> str:
    """Table: our step on the workload "mixed" (where packing matters) with one optimisation switched off at a time."""
    model = miniature.build(size)
    packed, padded, noise = prepare(model, "mixed")
    check_losses(model, packed, padded, noise)
    stored = precomputed(model, packed)

    def loss() -> torch.Tensor:
        return model(**stored.inputs(), noise=noise).loss

    all_on = step(model, loss, fused_adamw(model))
    candidates = {
        "all on": all_on,
        "packing: one document per row instead": our_step(model, precomputed(model, padded), noise),
        "logits on targets: on all positions instead": step(
            model, all_logits(model, stored, noise), fused_adamw(model)
        ),
        "encoded pictures: CLIP and VAE at every step instead": our_step(model, packed, noise),
        "attention: eager instead of SDPA": run_with_attention(model, "eager", all_on),
        "optimiser: one parameter after the other instead of fused": step(
            model, loss, naive.adamw(trainable_parameters(model))
        ),
        "all off (naive)": naive_step(model, padded, noise),
    }
    times = median_ms(candidates, repeats)
    base = times["all on"]
    rows = [[f"{size}: {name}", f"{value:.0f}", f"{value - base:+.0f}"] for name, value in times.items()]
    return table(["switched off", "ms", "difference"], rows)


# ---- time by part, and the lower bound -------------------------------------------------------------------------------


def breakdown(size: str, repeats: int) -> str:
    """Table: our step on the workload "joint" by part, and the time that its products alone would take (the floor)."""
    model = miniature.build(size)
    packed, _, noise = prepare(model, "joint")
    whole = median_ms({"step": our_step(model, packed, noise)}, repeats)["step"]
    parts = {
        "language model, forward": model.language_model.base_model,
        "CLIP": model.vision_model.encoder.layers[: model.config.vision_config.num_hidden_layers - 1],
        "VAE": model.vae.encoder,
        "UNet, forward": model.unet,
    }
    times: dict[str, list[float]] = {name: [] for name in [*parts, "forward", "backward", "optimiser"]}
    optimizer = fused_adamw(model)
    for _ in range(repeats):
        marks: dict[str, float] = dict.fromkeys(parts, 0.0)
        with timed_forward_passes(parts, marks):
            begin = time.process_time()
            loss = model(**packed.inputs(), noise=noise).loss
            forward = time.process_time()
        loss.backward()
        backward = time.process_time()
        torch.nn.utils.clip_grad_norm_(trainable_parameters(model), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in marks.items():
            times[name].append(value)
        times["forward"].append(forward - begin)
        times["backward"].append(backward - forward)
        times["optimiser"].append(time.process_time() - backward)
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    rest = medians.pop("forward") - sum(medians[name] for name in parts)
    with FlopCounterMode(display=False) as counter:
        model(**packed.inputs(), noise=noise).loss.backward()
    operations, speed = counter.get_total_flops() + miniature.attention_flops(model, packed), matmul_speed()
    rows = [[f"{size}: {name}", f"{value:.0f}"] for name, value in medians.items()]
    rows.insert(len(parts), [f"{size}: losses, embeddings, projectors, mask", f"{rest:.0f}"])
    rows += [
        [f"{size}: **whole step**", f"{whole:.0f}"],
        [
            f"{size}: **floor**: {operations / 1e9:.1f} GFLOP of products and attention at {speed / 1e9:.0f} GFLOP/s",
            f"{1000 * operations / speed:.0f}",
        ],
    ]
    return table(["part", "ms"], rows)


@contextmanager
def timed_forward_passes(parts: Mapping[str, object], marks: dict[str, float]) -> Iterator[None]:
    """Context in which the seconds of each part's forward passes are added to its entry of `marks`."""
    handles = []
    for name, part in parts.items():
        for module in part if isinstance(part, torch.nn.ModuleList) else [part]:

            def before(*_: object, name: str = name) -> None:
                marks[name] -= time.process_time()

            def after(*_: object, name: str = name) -> None:
                marks[name] += time.process_time()

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def set_memory_format(model: Model, memory_format: torch.memory_format) -> None:
    """Keep the weights of UNet and VAE in this memory format."""
    for network in (model.unet, model.vae):
        network.to(memory_format=memory_format)


def matmul_speed(side: int = 512, turns: int = 20) -> float:
    """FLOP/s of fp32 matrix products on this machine, the best of `turns`."""
    one, other = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(turns):
        begin = time.process_time()
        for _ in range(10):
            one @ other
        best = min(best, time.process_time() - begin)
    return 10 * 2 * side**3 / best


# ---- decoding --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy_interleave(model: Model, prompt: torch.Tensor, tokens: int) -> list[int]:
    """Token ids of greedy decoding after one prompt (1, T), by the steps of `generate.interleave`."""
    sequences, ids, written = Sequences(model, prompt[:, :0], prompt[:, :0]), prompt, []
    for _ in range(tokens):
        hidden = sequences.advance(ids, torch.ones_like(ids))
        ids = model.get_output_embeddings()(hidden[:, -1:]).argmax(-1)
        written.append(int(ids))
    return written


def greedy_generate(model: Model, prompt: torch.Tensor, tokens: int) -> list[int]:
    """The same by transformers' `generate`, as in this repository's `generate.write`."""
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    return output[0, prompt.shape[1] :].tolist()


def decoding(size: str, repeats: int, tokens: int = 16) -> str:
    """Table: milliseconds per generated token, without the time that the prompt takes."""
    model = miniature.build(size).eval()
    prompt = 3 + torch.arange(64)[None] * 37 % 500

    def naively(count: int) -> Callable[[], object]:
        def run() -> None:
            with attention_set_to(model, "eager"), naive.clip_at_every_token(model):
                greedy_generate(model, prompt, count)

        return run

    candidates = {}
    for count in (1, 1 + tokens):
        candidates |= {
            ("naive", count): naively(count),
            ("generate", count): lambda count=count: greedy_generate(model, prompt, count),
            ("interleave", count): lambda count=count: greedy_interleave(model, prompt, count),
        }
    times = median_ms(candidates, repeats)
    per_token = {
        name: (times[name, 1 + tokens] - times[name, 1]) / tokens for name in ("naive", "generate", "interleave")
    }
    row = [size, f"{AUTHORS[size]['decoding']}", *(f"{value:.2f}" for value in per_token.values())]
    row += [f"{per_token[name] / per_token['naive']:.2f}" for name in ("generate", "interleave")]
    head = ["ms per token", "authors", "naive", "generate", "interleave", "generate / naive", "interleave / naive"]
    return table(head, [row])


# ---- output ----------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


TABLES = {"steps": steps, "ablation": ablation, "breakdown": breakdown, "decoding": decoding}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=miniature.SIZES, default=list(miniature.SIZES))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.tables:
        for size in arguments.sizes:
            print(TABLES[name](size, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()

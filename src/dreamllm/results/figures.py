"""Figures of the results: `dreamllm figures`.

    learning_curves   losses of every training stage
    drawings          the real picture and what each model draws, prompt by prompt
    stories           freely interleaved stories, the given first sentence in bold

Each as PNG and PDF, made for a printed page. Equal data give equal bytes: no dates, fixed metadata, embedded fonts.
"""

from __future__ import annotations

import argparse
import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dreamllm.atomic import new_folder
from dreamllm.evaluate import benchmarks
from dreamllm.evaluate.files import BenchmarkProblem, read_text
from dreamllm.evaluate.predictions import Predictions, check_complete, read

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # embedded as outlines that stay text
    "savefig.dpi": 200,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito
NAMES = {
    "sd": "Stable Diffusion",
    "sd_finetuned": "SD fine-tuned",
    "alignment": "after alignment",
    "igpt": "after I-GPT",
    "sft": "DreamLLM, final",
    "creation_only": "creation-only",
    "joint_aligned": "with alignment loss",
    "clip_space": "CLIP regressed",
}
LOSSES = {  # columns of losses.csv
    "language_loss": "language loss",
    "diffusion_loss": "diffusion loss",
    "alignment_loss": "alignment loss",
}
PAGE = 6.9  # inches between the margins
DRAWN_SEEN, DRAWN_HELD_OUT = 2, 1  # prompts shown of each kind of scene
TOLD, PICTURES_TOLD = 5, 4  # stories shown, and pictures of each at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm figures`."""
    parser.add_argument("--losses", nargs="*", default=[], metavar="STAGE=CSV", help="losses.csv of the stages")
    parser.add_argument("--drawings", nargs="*", default=[], type=Path, help="predictions on the benchmark draw")
    parser.add_argument("--stories", nargs="?", type=Path, help="predictions of one model on the benchmark stories")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; an old one is replaced")


def main(args: argparse.Namespace) -> None:
    """Draw the figures that there is data for into a folder, whole or not at all."""
    with new_folder(args.out) as folder, plt.rc_context(STYLE):
        if args.losses:
            curves = dict(named.split("=", 1) for named in args.losses)
            losses = {name: read_losses(Path(path)) for name, path in curves.items()}
            save(learning_curves(losses), folder / "learning_curves")
        if args.drawings:
            save(drawings([read(path) for path in args.drawings], args.benchmarks), folder / "drawings")
        if args.stories:
            save(stories(read(args.stories)), folder / "stories")


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as PNG and PDF without anything that changes from run to run, and close it."""
    figure.savefig(stem.with_suffix(".png"), metadata={"Software": None})
    figure.savefig(stem.with_suffix(".pdf"), metadata={"Creator": None, "Producer": None, "CreationDate": None})
    plt.close(figure)


# ---- learning curves -----------------------------------------------------------------------------------------------


def read_losses(path: Path) -> dict[str, np.ndarray]:
    """losses.csv as columns, NaN where a step has no such loss. Raises BenchmarkProblem when malformed."""
    rows = list(csv.DictReader(io.StringIO(read_text(path))))
    if not rows or "step" not in rows[0] or not rows[0].keys() & LOSSES.keys():
        wanted = " or ".join(LOSSES)
        raise BenchmarkProblem(path, "line 1", f"should have the columns step and {wanted}, and a line per step")
    try:
        return {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in ("step", *LOSSES)}
    except ValueError as error:
        raise BenchmarkProblem(path, "", str(error)) from None


def learning_curves(losses: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """The losses of every stage over its steps, that of alignment if any has it: thin as measured, thick smoothed."""
    aligned = any(not np.isnan(columns["alignment_loss"]).all() for columns in losses.values())
    shown = [name for name in LOSSES if aligned or name != "alignment_loss"]
    figure, axes = plt.subplots(1, len(shown), figsize=(PAGE, 2.8), layout="constrained")
    for axis, name in zip(axes, shown, strict=True):
        smoothed: list[np.ndarray] = []
        for number, (stage, columns) in enumerate(losses.items()):
            has_loss = ~np.isnan(columns[name]) & (columns[name] > 0)
            if has_loss.any():
                colour = COLOURS[number % len(COLOURS)]
                line = "-" if number < len(COLOURS) else "--"
                steps, values = columns["step"][has_loss], columns[name][has_loss]
                axis.plot(steps, values, color=colour, linewidth=0.4, alpha=0.25)
                smoothed.append(smooth(values))
                axis.plot(steps, smoothed[-1], line, color=colour, linewidth=1.4, label=stage.replace("_", " "))
        axis.set(title=LOSSES[name], xlabel="step", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axis.grid(axis="y", which="both", linewidth=0.3, alpha=0.5)
        if smoothed:  # a single step may lie far out
            every = np.concatenate(smoothed)
            axis.set_ylim(every.min() / 1.5, every.max() * 1.5)
            axis.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a fifteenth of the curve, shorter at its ends."""
    reach = max(1, len(values) // 30)
    sums = np.concatenate([[0.0], values.cumsum()])
    indices = np.arange(len(values))
    low, high = np.maximum(indices - reach, 0), np.minimum(indices + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


# ---- pictures ------------------------------------------------------------------------------------------------------


def drawings(models: Sequence[Predictions], folder: Path) -> Figure:
    """A column per prompt: its words, the real picture, and what each model drew. The first prompts of each kind."""
    header = models[0].header
    items = benchmarks.load("draw", folder, header["split"], header.get("limit"))
    for model in models:
        check_complete(model, [item.id for item in items])
    chosen = choose(items)
    real = benchmarks.pictures(folder, header["split"])
    side = PAGE / (len(chosen) + 1.1)
    figure, axes = plt.subplots(
        1 + len(models),
        1 + len(chosen),
        figsize=(PAGE, 0.75 + (1 + len(models)) * side),
        squeeze=False,
        width_ratios=[1.1, *[1] * len(chosen)],
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0.0, hspace=0.0)
    for axis in axes.flat:
        axis.axis("off")
    for row, name in enumerate(["real", *(model.header["model"] for model in models)]):
        words = textwrap.fill(NAMES.get(name, name), 12)
        axes[row, 0].text(1.0, 0.5, words, transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=7)
    for column, item in enumerate(chosen, 1):
        held_out = "\n(held out)" if item.scene and item.scene.held_out else ""
        axes[0, column].set_title(textwrap.fill(item.prompt, 13) + held_out, fontsize=6)
        axes[0, column].imshow(real.read(item.picture), interpolation="nearest")
        for row, model in enumerate(models, 1):
            drawn = model.image(model.get(item.id, "image", str), f"item {item.id}")
            axes[row, column].imshow(drawn, interpolation="nearest")
    return figure


def choose(items: Sequence[benchmarks.DrawItem]) -> list[benchmarks.DrawItem]:
    """The first items of every kind of scene, held-out combinations last; the first ones where scenes are unknown."""
    kinds: dict[str, list[benchmarks.DrawItem]] = {}
    for item in items:
        kinds.setdefault(item.scene.kind if item.scene else "", []).append(item)
    chosen = []
    for of_kind in kinds.values():
        held_out = [item for item in of_kind if item.scene and item.scene.held_out]
        seen = [item for item in of_kind if item not in held_out]
        chosen += seen[: DRAWN_SEEN if held_out else 9] + held_out[:DRAWN_HELD_OUT]
    return chosen


def stories(model: Predictions) -> Figure:
    """The first stories with pictures: one row each, sentences over the pictures that follow them."""
    told = [_panels(record) for record in model.records.values()]
    told = [panels[:PICTURES_TOLD] for panels in told if any(image for _, image in panels)][:TOLD]
    rows, columns = max(len(told), 1), max((len(panels) for panels in told), default=1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.4 * columns, 1.75 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    if not told:
        axes[0, 0].set_title("no story has a picture", loc="left")
    for row, panels in zip(axes, told, strict=False):
        for column, (axis, (words, image)) in enumerate(zip(row, panels, strict=False)):
            axis.set_title(textwrap.fill(words, 20), fontsize=7, fontweight="bold" if column == 0 else "normal")
            if image:
                axis.imshow(model.image(image, "story"), interpolation="nearest")
    return figure


def _panels(record: dict) -> list[tuple[str, str]]:
    """A story as (words, picture after them); words without a picture at its end have ""."""
    panels: list[tuple[str, str]] = []
    words = record["prompt"]
    for part in record["parts"]:
        if "text" in part:
            words = f"{words} {part['text']}".strip()
        else:
            panels.append((words, part["image"]))
            words = ""
    return [*panels, (words, "")] if words else panels

"""Draw the figures of the results and write their index; `dreamllm.verbs.figures` lists them.

Learning curves are here, figures with pictures in `pictures.py`. Figure numbers are the paper's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dreamllm.atomic import new_folder
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.predictions import Predictions, read
from dreamllm.results import pictures
from dreamllm.results.csv_files import files_by_stage, read_csv
from dreamllm.results.figure_captions import CAPTIONS
from dreamllm.results.pictures import PAGE_WIDTH, NoData

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # embedded as outlines that stay text
    "savefig.dpi": 200,
}
# The palette of Okabe and Ito and one colour of Tol's: more curves in one panel cannot be distinguished.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999", "#882255")
LOSSES = {  # columns of losses.csv
    "language_loss": "language loss",
    "diffusion_loss": "diffusion loss",
    "alignment_loss": "alignment loss",
}
INTRODUCTION = (
    "Written by `dreamllm figures`. Each figure is a PNG and a PDF file. Figure numbers are the paper's "
    "(docs/figures.md)."
)


def _read(path: Path, benchmark: str) -> Predictions:
    """A prediction file. Raises BenchmarkProblem for one of another benchmark."""
    predictions = read(path)
    if (given := predictions.header.get("task", predictions.header["benchmark"])) != benchmark:
        raise BenchmarkProblem(path, "header", f"is for {given!r}, not for {benchmark!r}")
    return predictions


def main(args: argparse.Namespace) -> None:
    """Draw the figures that have data into a folder, all or nothing."""
    losses = {stage: read_losses(path) for stage, path in files_by_stage(args.losses).items()}
    drawings, answers = (
        [_read(path, task) for path in paths] for paths, task in ((args.drawings, "draw"), (args.answers, "vqa"))
    )
    in_context = [_read(path, "in_context") for path in args.in_context]
    stories = _read(args.stories, "stories") if args.stories else None
    attention = _read(args.attention, "attention") if args.attention else None
    figures: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: learning_curves(losses),
        "drawings": lambda: pictures.drawings(drawings, args.benchmarks),
        "figure3_documents": lambda: pictures.stories(stories),
        "figure4_questions": lambda: pictures.questions(answers, args.benchmarks),
        "figure5_in_context": lambda: pictures.in_context(in_context, args.benchmarks),
        "figure6_attention": lambda: pictures.attention(attention, args.benchmarks),
        "figure8_subject": lambda: pictures.subject(in_context, args.trained, args.benchmarks),
    }
    lines = ["# Figures", "", INTRODUCTION, "", "| figure | shows |", "|---|---|"]
    with new_folder(args.out) as folder, plt.rc_context(STYLE):
        for name, draw in figures.items():
            try:
                save(draw(), folder / name)
                lines.append(f"| [{name}]({name}.png) | {CAPTIONS[name]} |")
            except NoData as reason:
                lines.append(f"| {name} | not drawn: {reason} |")
        (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as PNG and PDF without dates and versions, so that equal data give equal bytes; close it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once for both
    figure.savefig(stem.with_suffix(".png"), metadata={"Software": None})
    figure.savefig(stem.with_suffix(".pdf"), metadata={"Creator": None, "Producer": None, "CreationDate": None})
    plt.close(figure)


# ---- learning curves -----------------------------------------------------------------------------------------------


def read_losses(path: Path) -> dict[str, np.ndarray]:
    """losses.csv as columns, NaN where a step has no such loss. Raises BenchmarkProblem when malformed."""
    frame = read_csv(path)
    if frame.empty or "step" not in frame or not {*LOSSES} & {*frame.columns}:
        wanted = " or ".join(LOSSES)
        raise BenchmarkProblem(path, "line 1", f"should have the columns step and {wanted}, and a line per step")
    columns = frame.reindex(columns=["step", *LOSSES], fill_value="").replace("", "nan")
    try:
        return {name: column.to_numpy(dtype=float) for name, column in columns.items()}
    except ValueError as error:
        raise BenchmarkProblem(path, "", str(error)) from None


def learning_curves(losses: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Plot the losses of every stage over its steps: thin lines as measured, thick lines smoothed.

    A column of panels per loss (alignment only if a stage has it), a row for as many stages as there are colours; all
    rows share their axes. Raises NoData without a stage.
    """
    if not losses:
        raise NoData("no stage was trained")
    aligned = any(not np.isnan(columns["alignment_loss"]).all() for columns in losses.values())
    shown = {name: title for name, title in LOSSES.items() if aligned or name != "alignment_loss"}
    rows = [list(stages) for stages in np.array_split(list(losses), math.ceil(len(losses) / len(COLOURS)))]
    shape = {"figsize": (PAGE_WIDTH, 0.6 + 1.9 * len(rows)), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(rows), len(shown), sharex="col", sharey="col", **shape)
    for panels, (name, title) in zip(axes.T, shown.items(), strict=True):
        smoothed: list[np.ndarray] = []
        for axis, stages in zip(panels, rows, strict=True):
            smoothed += _curves(axis, [losses[stage] for stage in stages], name)
        panels[0].set(title=title, yscale="log")
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        panels[-1].set(xlabel="step")
        if smoothed:  # the limits ignore outliers of single steps
            every = np.concatenate(smoothed)
            panels[0].set_ylim(every.min() / 1.5, every.max() * 1.5)
    for axis, stages in zip(axes[:, -1], rows, strict=True):
        names = [stage.replace("_", " ") for stage in stages]
        key = [Line2D([], [], color=colour, label=name) for name, colour in zip(names, COLOURS, strict=False)]
        axis.legend(handles=key, frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _curves(axis: Axes, stages: Sequence[Mapping[str, np.ndarray]], name: str) -> list[np.ndarray]:
    """Draw one loss of the stages that have it, each in its colour; return the smoothed curves."""
    smoothed = []
    for colour, columns in zip(COLOURS, stages, strict=False):
        has_loss = ~np.isnan(columns[name]) & (columns[name] > 0)
        if has_loss.any():
            steps, values = columns["step"][has_loss], columns[name][has_loss]
            axis.plot(steps, values, color=colour, linewidth=0.4, alpha=0.25)
            smoothed.append(smooth(values))
            axis.plot(steps, smoothed[-1], color=colour, linewidth=1.4)
    axis.grid(axis="y", which="both", linewidth=0.3, alpha=0.5)
    return smoothed


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over a fifteenth of the curve; the window is cut off at the ends."""
    radius = max(1, len(values) // 30)
    sums = np.concatenate([[0.0], values.cumsum()])
    indices = np.arange(len(values))
    low, high = np.maximum(indices - radius, 0), np.minimum(indices + radius + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)

"""Draw the figures that show pictures. The items shown are chosen by rule (the first of each kind), never by hand.

Each function raises NoData where the experiment has not run what its figure needs.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from dreamllm.evaluate import tasks
from dreamllm.evaluate.few_shot import most_common_answer
from dreamllm.evaluate.files import field, pictures_of
from dreamllm.evaluate.metrics import vqa_accuracy
from dreamllm.evaluate.predictions import Predictions, check_complete
from dreamllm.evaluate.tasks.draw import DrawItem
from dreamllm.evaluate.tasks.in_context import InContextItem, context_pictures
from dreamllm.evaluate.tasks.vqa import VqaItem

PAGE_WIDTH = 6.9  # inches between the margins
MODEL_LABELS = {
    "sd": "Stable Diffusion",
    "sd_finetuned": "SD fine-tuned",
    "alignment": "after alignment",
    "igpt": "after I-GPT",
    "sft": "DreamLLM, final",
    "sft_contexts": "trained on contexts",
    "creation_only": "creation-only",
    "creation_only_pairs": "creation-only, pairs",
    "joint_aligned": "with alignment loss",
    "clip_space": "CLIP regressed",
    "comprehension_only": "comprehension-only",
    "queries_half": "half the queries",
    "queries_double": "twice the queries",
    "rewrite": "rewritten prompt",
    "flow_decoder": "rectified flow",
    "flow_creation": "rectified flow, creation-only",
    "frozen_lm_connector": "frozen LM, connector",
}
SEEN_PROMPTS, HELD_OUT_PROMPTS = 2, 1  # shown of each kind of scene
STORIES, PICTURES_PER_STORY = 5, 4  # shown, at most
COMPARED = ("comprehension_only", "sft")  # models whose answers are shown side by side
QUESTIONS = 6  # shown
MODELS = 4  # shown in Figures 5 and 8, at most
SUBJECTS = 6  # subject-driven items shown
ATTENTION_KINDS = ("pair", "single")  # kinds of scenes; attention is shown for the first prompt of each
RIGHT_COLOUR, WRONG_COLOUR = "#007a5e", "#b34700"


class NoData(Exception):
    """The experiment has not run what a figure shows; the message says what is missing."""


def drawings(models: Sequence[Predictions], folder: Path) -> Figure:
    """A column per prompt, a row for the real picture and for each model's drawing; see `first_of_each_kind`."""
    if not models:
        raise NoData("no model ran the benchmark draw")
    items = _items("draw", models, folder)
    chosen = first_of_each_kind(items)
    real = pictures_of(folder, models[0].header["split"])
    side = PAGE_WIDTH / (len(chosen) + 1.1)
    figure, axes = plt.subplots(
        1 + len(models),
        1 + len(chosen),
        figsize=(PAGE_WIDTH, 0.75 + (1 + len(models)) * side),
        squeeze=False,
        width_ratios=[1.1, *[1] * len(chosen)],
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0.0, hspace=0.0)
    for axis in axes.flat:
        axis.axis("off")
    for row, name in enumerate(["real", *(model.header["model"] for model in models)]):
        label = textwrap.fill(MODEL_LABELS.get(name, name), 13)
        axes[row, 0].text(1.0, 0.5, label, transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=7)
    for column, item in enumerate(chosen, 1):
        held_out = "\n(held out)" if item.scene and item.scene.held_out else ""
        axes[0, column].set_title(textwrap.fill(item.prompt, 13) + held_out, fontsize=6)
        _show(axes[0, column], real.read(item.picture))
        for row, model in enumerate(models, 1):
            _show(axes[row, column], _drawn(model, item.id))
    return figure


def first_of_each_kind(items: Sequence[DrawItem]) -> list[DrawItem]:
    """The first items of each kind of scene, held-out combinations last; without scenes the first items."""
    kinds: dict[str, list[DrawItem]] = {}
    for item in items:
        kinds.setdefault(item.scene.kind if item.scene else "", []).append(item)
    chosen = []
    for of_kind in kinds.values():
        held_out = [item for item in of_kind if item.scene and item.scene.held_out]
        seen = [item for item in of_kind if item not in held_out]
        chosen += seen[: SEEN_PROMPTS if held_out else 9] + held_out[:HELD_OUT_PROMPTS]
    return chosen


# ---- Figure 3 ------------------------------------------------------------------------------------------------------


def stories(model: Predictions | None) -> Figure:
    """The first stories that have pictures, a row each, with the text above the picture that follows it."""
    if model is None:
        raise NoData("no model ran the benchmark stories")
    shown = [story_panels(model, id_) for id_ in model.records]
    shown = [panels[:PICTURES_PER_STORY] for panels in shown if any(image for _, image in panels)][:STORIES]
    if not shown:
        raise NoData(f"none of the {len(model.records)} stories of model {model.header['model']} has a picture")
    rows, columns = len(shown), max(len(panels) for panels in shown)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.4 * columns, 1.75 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for row, panels in zip(axes, shown, strict=True):
        for column, (axis, (text, image)) in enumerate(zip(row, panels, strict=False)):
            axis.set_title(textwrap.fill(text, 20), fontsize=7, fontweight="bold" if column == 0 else "normal")
            if image:
                _show(axis, model.image(image, "story"))
    return figure


def story_panels(model: Predictions, id_: str) -> list[tuple[str, str]]:
    """A story as pairs of text and the picture that follows it; "" where the story ends without a picture."""
    panels: list[tuple[str, str]] = []
    text = model.get(id_, "prompt", str)
    for part in model.get(id_, "parts", list):
        if isinstance(part, dict) and "text" in part:
            text = f"{text} {field(part, 'text', str, model.path, f'item {id_}')}".strip()
        else:
            panels.append((text, field(part, "image", str, model.path, f"item {id_}")))
            text = ""
    return [*panels, (text, "")] if text else panels


# ---- Figure 4 ------------------------------------------------------------------------------------------------------


def questions(models: Sequence[Predictions], folder: Path) -> Figure:
    """Questions that two models answer differently: picture, question, reference answer and both answers."""
    by_name = {model.header["model"]: model for model in models}
    if missing := [name for name in COMPARED if name not in by_name]:
        raise NoData(f"no run of model {' and '.join(missing)} on benchmark vqa")
    both = [by_name[name] for name in COMPARED]
    items = _items("vqa", both, folder)
    answers = {item.id: [model.get(item.id, "output", str).strip() for model in both] for item in items}
    chosen = round_robin([item for item in items if len(set(answers[item.id])) > 1], QUESTIONS)
    if not chosen:
        raise NoData(f"both models give the same answers to all {len(items)} questions")
    shown = pictures_of(folder, both[0].header["split"])
    rows = math.ceil(len(chosen) / 2)
    figure, axes = plt.subplots(
        rows, 4, figsize=(PAGE_WIDTH, 1.15 * rows + 0.3), width_ratios=[1, 2, 1, 2], layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for item, (picture, text) in zip(chosen, axes.reshape(-1, 2), strict=False):
        _show(picture, shown.read(item.picture))
        text.text(0, 0.92, textwrap.fill(item.question, 26), fontweight="bold", va="top", transform=text.transAxes)
        text.text(
            0, 0.62, f"answer: {most_common_answer(item)}", color="#666666", va="center", transform=text.transAxes
        )
        for height, letter, answer in zip((0.38, 0.14), "AB", answers[item.id], strict=True):
            right = vqa_accuracy.accuracy(vqa_accuracy.clip(answer), item.answers, "official") >= 0.5
            line = f"{letter}  {'✓' if right else '✗'}  {textwrap.shorten(answer, 30) or '(nothing)'}"
            colour = RIGHT_COLOUR if right else WRONG_COLOUR
            text.text(0, height, line, color=colour, va="center", transform=text.transAxes)
    figure.suptitle(
        "   ".join(f"{a}: {MODEL_LABELS.get(n, n)}" for a, n in zip("AB", COMPARED, strict=True)), fontsize=8
    )
    return figure


def round_robin(items: Sequence[VqaItem], most: int) -> list[VqaItem]:
    """The first item of each question type, then the second of each, and so on; each picture at most once."""
    types: dict[str, list[VqaItem]] = {}
    for item in items:
        types.setdefault(item.question_type, []).append(item)
    chosen: list[VqaItem] = []
    while len(chosen) < most and any(types.values()):
        for waiting in types.values():
            shown = {item.picture for item in chosen}
            while waiting and waiting[0].picture in shown:
                del waiting[0]
            if waiting and len(chosen) < most:
                chosen.append(waiting.pop(0))
    return chosen


# ---- Figures 5 and 8 -----------------------------------------------------------------------------------------------


def in_context(models: Sequence[Predictions], folder: Path) -> Figure:
    """For each kind of item the first with combinations seen in training, and the first with a held-out one."""
    if not models:
        raise NoData("no model ran the benchmark in_context")
    items = _items("in_context", models, folder)
    firsts: dict[tuple[str, bool], InContextItem] = {}
    for item in items:
        firsts.setdefault((item.scene.kind, item.scene.held_out), item)
    ordered = sorted(models, key=lambda model: model.header["model"] != "sd")  # Stable Diffusion first
    return _contexts(ordered[:MODELS], list(firsts.values()), folder)


def subject(models: Sequence[Predictions], trained: Sequence[str], folder: Path) -> Figure:
    """The first subject-driven items, drawn by the models that were trained on contexts and by others."""
    if not any(model.header["model"] in trained for model in models):
        raise NoData("no model that was trained on contexts ran the benchmark in_context")
    items = [item for item in _items("in_context", models, folder) if item.scene.kind == "subject"]
    if not items:
        raise NoData("the benchmark in_context is too small to have a subject-driven item")
    ordered = sorted(models, key=lambda model: (model.header["model"] in trained, model.header["model"] != "sd"))
    return _contexts(ordered[-MODELS:], items[:SUBJECTS], folder)


def _contexts(models: Sequence[Predictions], items: Sequence[InContextItem], folder: Path) -> Figure:
    """A row per item: the context pictures, the sentence, each model's drawing, and a real picture of the target."""
    real = context_pictures(folder, models[0].header["split"])
    widths = [1, 1, 1.5, *[1] * (len(models) + 1)]
    side = min(PAGE_WIDTH / sum(widths), 1.0)
    figure, axes = plt.subplots(
        len(items),
        len(widths),
        figsize=(side * sum(widths), 0.4 + len(items) * 1.06 * side),
        width_ratios=widths,
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    for axis in axes.flat:
        axis.axis("off")
    titles = [
        "shown",
        "",
        "sentence",
        *(MODEL_LABELS.get(m.header["model"], m.header["model"]) for m in models),
        "wanted",
    ]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(textwrap.fill(title, 12), fontsize=7)
    for row, item in zip(axes, items, strict=True):
        for axis, name in zip(row, item.shown, strict=False):
            _show(axis, real.read(name))
        about = f"({item.scene.kind}{', held out' if item.scene.held_out else ''})"
        text = f"{textwrap.fill(item.prompt, 17)}\n{textwrap.fill(about, 17)}"
        row[2].text(0.5, 0.5, text, ha="center", va="center", fontsize=6.5, transform=row[2].transAxes)
        for axis, model in zip(row[3:], models, strict=False):
            _show(axis, _drawn(model, item.id))
        _show(row[-1], real.read(item.picture))
    return figure


# ---- Figure 6 ------------------------------------------------------------------------------------------------------


def attention(model: Predictions | None, folder: Path) -> Figure:
    """Two prompts, each with its picture and a grid of attention maps, one per dream query."""
    if model is None:
        raise NoData("no model ran the benchmark attention")
    items = _items("attention", [model], folder)
    firsts = [
        next((i for i, item in enumerate(items) if item.scene and item.scene.kind == k), None) for k in ATTENTION_KINDS
    ]
    chosen = [i for i in firsts if i is not None] if None not in firsts else [0, 1]
    maps, pictures = model.tensor("maps"), model.tensor("pictures")
    scale = PowerNorm(0.5, vmin=0, vmax=maps[chosen].max())  # on a linear scale weak maps are black in print
    figure, axes = plt.subplots(1, 4, figsize=(PAGE_WIDTH, 2.5), width_ratios=[1, 2, 1, 2], layout="constrained")
    for axis in axes:
        axis.axis("off")
    for number, (picture, grid) in zip(chosen, axes.reshape(2, 2), strict=True):
        picture.set_title(textwrap.fill(items[number].prompt, 22), fontsize=7)
        _show(picture, pictures[number])
        grid.imshow(mosaic(maps[number]), cmap="magma", norm=scale, interpolation="nearest")
    return figure


def mosaic(maps: np.ndarray) -> np.ndarray:
    """Arrange maps (Q, h, w) in reading order in a nearly square grid, with lines of NaN between them."""
    count, height, width = maps.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    whole = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for number, one in enumerate(maps):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        whole[top : top + height, left : left + width] = one
    return whole


# ---- common --------------------------------------------------------------------------------------------------------


def _items(benchmark: str, models: Sequence[Predictions], folder: Path) -> list:
    """The items of a benchmark. Raises BenchmarkProblem unless each model has a prediction for all of them."""
    header = models[0].header
    items = tasks.load(benchmark, folder, header["split"], header.get("limit"))
    for model in models:
        check_complete(model, [item.id for item in items])
    return items


def _drawn(model: Predictions, id_: str) -> Image.Image:
    return model.image(model.get(id_, "image", str), f"item {id_}")


def _show(axis: Axes, picture: Image.Image | np.ndarray) -> None:
    axis.imshow(picture, interpolation="nearest")

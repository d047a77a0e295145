"""What is measured in each training step, and what becomes of it: TensorBoard, losses.csv, totals.

A step's losses stay on their device until somebody looks, since each look waits for the device to finish.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dreamllm.data.layout import IGNORE
from dreamllm.data.packing import Row
from dreamllm.data.stream import Prepared
from dreamllm.model.dreamllm import DreamLLMOutput

# The columns of losses.csv after the step. `loss` is weighted, its parts are not; a part is empty where the stage or
# the batch does not have it. The gradient's norm is the one before clipping.
MEASURED = ("loss", "language_loss", "diffusion_loss", "alignment_loss", "gradient_norm")
COUNTED = ("learning_rate", "tokens", "targets", "pictures_read", "pictures_drawn")
COLUMNS = (*MEASURED, *COUNTED)
LOSSES = MEASURED[:-1]


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is not a number any more: names the step and the documents."""


@dataclass(frozen=True)
class StepMetrics:
    """A step: its batch, the MEASURED values (5,) on their device, and the COUNTED ones."""

    prepared: Prepared
    values: torch.Tensor
    counts: tuple[float, ...]


@dataclass(frozen=True)
class Counts:
    """What some packed rows hold. Padding is no token."""

    tokens: int
    targets: int
    pictures_read: int
    pictures_drawn: int


def count(rows: Iterable[Row]) -> Counts:
    """Count what is in packed rows; the first label of a row has nothing before it and is no target."""
    rows = list(rows)
    sequences = [sequence for row in rows for sequence in row]
    first_labels = [row[0].labels[0] for row in rows]
    ignored = sum(sequence.labels.count(IGNORE) for sequence in sequences)
    tokens = sum(map(len, sequences))
    return Counts(
        tokens=tokens,
        targets=tokens - ignored - sum(label != IGNORE for label in first_labels),
        pictures_read=sum(len(sequence.read_slots) for sequence in sequences),
        pictures_drawn=sum(len(sequence.draw_slots) for sequence in sequences),
    )


def losses(output: DreamLLMOutput) -> torch.Tensor:
    """The LOSSES (4,), unfetched from their device; NaN for one that the stage does not have."""
    nothing = torch.full_like(output["loss"].detach(), math.nan)
    values = (output.get(name) for name in LOSSES)
    return torch.stack([nothing if value is None else value.detach().float() for value in values])


def flush(waiting: Sequence[StepMetrics], logged: int, board: SummaryWriter | None) -> list[list[float]]:
    """Fetch the losses of the steps after step `logged`, report them and skipped documents, return rows of COLUMNS.

    board: None in all processes but the first, which alone reports.
    Raises NonFiniteLoss for the first step whose loss or gradient is not finite.
    """
    fetched = torch.stack([step.values for step in waiting]).double().tolist()  # the one wait for the device
    rows = []
    for number, (step, values) in enumerate(zip(waiting, fetched, strict=True), logged + 1):
        for problem in step.prepared.problems if board else ():
            skipped = step.prepared.position.skipped
            tqdm.write(f"skipped a damaged document ({skipped} so far): {problem}", file=sys.stderr)
        row = dict(zip(COLUMNS, (*values, *step.counts), strict=True))
        if not (math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])):
            losses = ", ".join(f"{key} {row[key]:g}" for key in MEASURED)
            documents = ", ".join(sequence.document.id for packed in step.prepared.rows for sequence in packed)
            raise NonFiniteLoss(
                f"step {number}: {losses}. The state saved before is kept. Lower the learning rate (it was "
                f"{row['learning_rate']:.2g}), or look at the documents of this step: {documents}"
            )
        if not row["targets"]:
            row["language_loss"] = math.nan  # the model says 0, which would look like a very good step
        if not row["pictures_drawn"]:
            row["diffusion_loss"] = row["alignment_loss"] = math.nan
        if board:
            for key, value in row.items():
                if not math.isnan(value):
                    board.add_scalar(key, value, number)
        rows.append(list(row.values()))
    return rows


def losses_csv(log: Sequence[Sequence[float]]) -> str:
    """losses.csv: a line per step, numbered from 1; empty where a step has no such loss.

    The alignment loss has a column in the files of those stages alone that have it.
    """
    aligned = any(not math.isnan(row[COLUMNS.index("alignment_loss")]) for row in log)
    shown = [index for index, name in enumerate(COLUMNS) if aligned or name != "alignment_loss"]
    lines = [",".join(("step", *(COLUMNS[index] for index in shown)))]
    for number, row in enumerate(log, 1):
        values = (row[index] for index in shown)
        lines.append(",".join([str(number), *("" if math.isnan(value) else f"{value:.6g}" for value in values)]))
    return "\n".join(lines) + "\n"


def totals(log: Sequence[Sequence[float]], last: Prepared) -> dict[str, Any]:
    """What a training consumed, and its losses averaged over the last tenth of the steps (None: it had none)."""
    columns = dict(zip(COLUMNS, zip(*log, strict=True), strict=True))
    tail = math.ceil(len(log) / 10)

    def mean(values: Sequence[float]) -> float | None:
        there = [value for value in values if not math.isnan(value)]
        return sum(there) / len(there) if there else None

    return {
        "steps": len(log),
        "documents": last.position.drawn,
        "skipped_documents": last.position.skipped,
        **{key: int(sum(columns[key])) for key in COUNTED[1:]},
        "final": {key: mean(columns[key][-tail:]) for key in LOSSES},
    }

"""Metrics of each training step: the tracker (TensorBoard, ...), losses.csv and the totals in checkpoint.json.

Losses stay on the GPU until `flush` fetches those of several steps at once, because each fetch waits for the GPU.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from dreamllm.data.stream import SequencePlan, StepBatch
from dreamllm.model.dreamllm import DreamLLMOutput

# Columns of losses.csv after the step. `loss` is the weighted sum, the others are unweighted; a loss is empty where the
# stage or the batch does not have it. The gradient's norm is the one before clipping.
LOSS_COLUMNS = ("loss", "language_loss", "diffusion_loss", "alignment_loss")
METRIC_COLUMNS = (*LOSS_COLUMNS, "gradient_norm")  # computed on the device
COUNT_COLUMNS = ("tokens", "targets", "pictures_read", "pictures_drawn")
COLUMNS = (*METRIC_COLUMNS, "learning_rate", *COUNT_COLUMNS)


class NonFiniteLoss(ValueError):
    """The loss or the gradient's norm is NaN or infinite: names the step and its documents."""


@dataclass(frozen=True)
class StepMetrics:
    """One step, before its losses are fetched.

    values: METRIC_COLUMNS (5,), on their device.  others: the remaining COLUMNS.
    """

    batch: StepBatch
    values: torch.Tensor
    others: tuple[float, ...]


@dataclass(frozen=True)
class Counts:
    """What packed rows contain: COUNT_COLUMNS. Padding is not counted."""

    tokens: int
    targets: int
    pictures_read: int
    pictures_drawn: int


def count_rows(rows: Iterable[Iterable[SequencePlan]]) -> Counts:
    """Count the contents of packed rows."""
    sequences = [sequence for row in rows for sequence in row]
    return Counts(
        tokens=sum(sequence.tokens for sequence in sequences),
        targets=sum(sequence.targets for sequence in sequences),
        pictures_read=sum(sequence.reads for sequence in sequences),
        pictures_drawn=sum(sequence.draws for sequence in sequences),
    )


def stack_losses(output: DreamLLMOutput) -> torch.Tensor:
    """LOSS_COLUMNS (4,) of a forward pass, detached, on their device; NaN for a loss that the stage does not have."""
    missing = torch.full_like(output["loss"].detach(), math.nan)
    values = (output.get(name) for name in LOSS_COLUMNS)
    return torch.stack([missing if value is None else value.detach().float() for value in values])


def flush(steps: Sequence[StepMetrics], logged: int, accelerator: Accelerator) -> list[list[float]]:
    """Fetch the metrics of some steps and return their rows of COLUMNS.

    logged: number of steps before them.  accelerator: its trackers get them; its first process reports skipped
    documents to stderr.
    Raises NonFiniteLoss for the first step whose loss or gradient is not finite.
    """
    fetched = torch.stack([step.values for step in steps]).double().tolist()  # the only wait for the device
    rows = []
    for number, (step, values) in enumerate(zip(steps, fetched, strict=True), logged + 1):
        for problem in step.batch.problems if accelerator.is_main_process else ():
            skipped = step.batch.position.skipped
            tqdm.write(f"skipped a damaged document ({skipped} so far): {problem}", file=sys.stderr)  # above the bar
        row = dict(zip(COLUMNS, (*values, *step.others), strict=True))
        if not (math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])):
            metrics = ", ".join(f"{key} {row[key]:g}" for key in METRIC_COLUMNS)
            documents = ", ".join(sequence.document_id for packed in step.batch.rows for sequence in packed)
            raise NonFiniteLoss(
                f"step {number}: {metrics}. The last saved state is kept. Lower the learning rate (it was "
                f"{row['learning_rate']:.2g}) or check the documents of this step: {documents}"
            )
        if not row["targets"]:
            row["language_loss"] = math.nan  # the model returns 0, which would read as a perfect step
        if not row["pictures_drawn"]:
            row["diffusion_loss"] = row["alignment_loss"] = math.nan
        accelerator.log({key: value for key, value in row.items() if not math.isnan(value)}, step=number)
        rows.append(list(row.values()))
    return rows


def losses_csv(log: Sequence[Sequence[float]]) -> str:
    """The text of losses.csv: one line per step, numbered from 1; a missing loss is empty.

    The column alignment_loss is left out where no step has this loss.
    """
    aligned = any(not math.isnan(row[COLUMNS.index("alignment_loss")]) for row in log)
    shown = [index for index, name in enumerate(COLUMNS) if aligned or name != "alignment_loss"]
    lines = [",".join(("step", *(COLUMNS[index] for index in shown)))]
    for number, row in enumerate(log, 1):
        values = (row[index] for index in shown)
        lines.append(",".join([str(number), *("" if math.isnan(value) else f"{value:.6g}" for value in values)]))
    return "\n".join(lines) + "\n"


def totals(log: Sequence[Sequence[float]], last: StepBatch) -> dict[str, Any]:
    """What the training consumed, and its losses averaged over the last tenth of the steps (None where there is none).

    log: rows of COLUMNS, one for each step.  last: the batch of the last step.
    """
    columns = dict(zip(COLUMNS, zip(*log, strict=True), strict=True))
    tail = math.ceil(len(log) / 10)

    def mean(values: Sequence[float]) -> float | None:
        finite = [value for value in values if not math.isnan(value)]
        return sum(finite) / len(finite) if finite else None

    return {
        "steps": len(log),
        "documents": last.position.drawn,
        "skipped_documents": last.position.skipped,
        **{key: int(sum(columns[key])) for key in COUNT_COLUMNS},
        "final": {key: mean(columns[key][-tail:]) for key in LOSS_COLUMNS},
    }

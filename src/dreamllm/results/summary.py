"""The numbers of a run in the form in which DVC compares runs: `dvc metrics diff`, `dvc plots show`.

metrics.json         {model: {benchmark: {metric: mean over the runs}}}; intervals and protocols are in the tables
losses/STAGE.csv     the losses of each training stage, by step
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from dreamllm.atomic import new_folder
from dreamllm.results.metrics_store import Runs, find


def metrics(runs: Runs) -> dict[str, dict[str, dict[str, float]]]:
    """Every measured number by model, benchmark and metric, in the metric's own unit; the mean over the runs."""
    names = {(*key, metric) for one in runs.values() for key, content in one.items() for metric in content["metrics"]}
    means: dict[str, dict[str, dict[str, float]]] = {}
    for model, benchmark, metric in sorted(names):
        found = find(runs, model, benchmark, metric)
        if found.by_run:
            means.setdefault(model, {}).setdefault(benchmark, {})[metric] = found.interval()[0]
    return means


def write(out: Path, runs: Runs, losses: Mapping[str, Path]) -> None:
    """Write the folder, all or nothing. losses: losses.csv by stage"""
    with new_folder(out) as folder:
        (folder / "metrics.json").write_text(json.dumps(metrics(runs), indent=1) + "\n", encoding="utf-8")
        (folder / "losses").mkdir()
        for stage, path in losses.items():
            shutil.copyfile(path, folder / "losses" / f"{stage}.csv")

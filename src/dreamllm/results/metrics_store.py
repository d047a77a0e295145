"""Look up the numbers of one or several runs by model, benchmark, metric and group.

Runs are one experiment with several seeds. A run is named by the folder of its metrics: results/metrics/RUN/MODEL/
BENCHMARK.json, or deeper below MODEL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dreamllm.evaluate import files
from dreamllm.evaluate.files import BenchmarkProblem, read_json
from dreamllm.results.table_spec import Column, Row

Metrics = Mapping[tuple[str, str], dict[str, Any]]  # (model, benchmark) -> metrics file
Runs = Mapping[str, Metrics]  # by name
Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Estimate:
    """A measured number in every run that has it, or the reason why no run has it.

    by_run: {"value", "low", "high", "n"} by run.  external: a server has to score it, the reason says where
    protocol: split and settings.  source: MODEL/BENCHMARK
    """

    by_run: dict[str, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""
    external: bool = False
    protocol: str = ""
    source: str = ""

    @property
    def n(self) -> int:
        """Number of items; the smallest where runs differ (precision counts the questions answered with yes)."""
        return min((one["n"] for one in self.by_run.values()), default=0)

    def interval(self) -> Interval:
        """Mean over the runs with its 95 % interval. Raises ValueError without a run."""
        values = [one["value"] for one in self.by_run.values()]
        low, high = (float(np.mean([one[end] for one in self.by_run.values()])) for end in ("low", "high"))
        return widen_by_seeds(values, (float(np.mean(values)), low, high))


def widen_by_seeds(values: Sequence[float], items: Interval) -> Interval:
    """Widen an interval over test items by the spread between training seeds.

    values: the number in each run.  items: their mean, and its 95 % interval over test items
    Test items and seeds are independent, so the squares of the half-widths add; the half-width of the seeds comes from
    Student's t. With one run the interval covers test items only.
    """
    value, low, high = items
    if len(values) < 2:
        return items
    from scipy import stats  # only when it is needed: it takes half a second

    seeds = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return value, value - math.hypot(value - low, seeds), value + math.hypot(high - value, seeds)


def read_runs(paths: Sequence[Path]) -> Runs:
    """Metrics files by run, model and benchmark.

    Raises BenchmarkProblem for a malformed file, a second file of the same run, model and benchmark, files of different
    splits, and runs that differ in more than their seeds.
    """
    runs: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    splits: dict[str, Path] = {}
    for path in paths:
        content = read_json(path)
        key = files.field(content, "model", str, path, ""), files.field(content, "benchmark", str, path, "")
        for name in ("metrics", "groups", "protocol"):
            files.field(content, name, dict, path, "")
        run = runs.setdefault(_run_of(path, key[0]), {})
        if key in run:
            raise BenchmarkProblem(path, "", f"is a second file of model {key[0]} on benchmark {key[1]}")
        run[key] = content
        splits.setdefault(files.field(content, "split", str, path, ""), path)
        if len(splits) > 1:
            raise BenchmarkProblem(path, "", f"is of split {content['split']}, other files are of {next(iter(splits))}")
        for name, other in runs.items():
            if key in other and _conditions(other[key]) != _conditions(content):
                what = f"differs from run {name} in settings, precision or number of items"
                raise BenchmarkProblem(path, "", f"{what}; runs may differ only in their seeds")
    return runs


def _run_of(path: Path, model: str) -> str:
    """The folder above the model's: metrics may lie in folders of their own below that."""
    return next((folder.parent.name for folder in path.parents if folder.name == model), path.parent.parent.name)


def _conditions(content: dict[str, Any]) -> tuple[Any, ...]:
    protocol = content["protocol"]
    settings = {key: value for key, value in protocol.get("settings", {}).items() if key != "seed"}
    return settings, protocol.get("precision"), protocol.get("n")


def find(runs: Runs, model: str, benchmark: str, metric: str, group: str = "") -> Estimate:
    """A number in all runs that have it, or an Estimate with the reason why none has it."""
    contents = {run: metrics[model, benchmark] for run, metrics in runs.items() if (model, benchmark) in metrics}
    if not contents:
        if not any(benchmark == name for metrics in runs.values() for _, name in metrics):
            return Estimate(reason=f"no run on benchmark {benchmark}")
        return Estimate(reason=f"no run of model {model} on benchmark {benchmark}")
    found = {
        run: (content["groups"].get(group, {}) if group else content["metrics"]).get(metric)
        for run, content in contents.items()
    }
    by_run = {run: one for run, one in found.items() if one and one["value"] is not None}
    if by_run:
        first = contents[next(iter(by_run))]
        return Estimate(by_run, protocol=_protocol(first), source=f"{model}/{benchmark}")
    if empty := [one for one in found.values() if one]:
        reason = empty[0].get("reason", "not measured")
        return Estimate(reason=reason, external=reason.startswith("external"))
    reason = f"the results on benchmark {benchmark} have no metric {metric}" + (f" of group {group}" if group else "")
    return Estimate(reason=reason)


def lookup(row: Row, column: Column, runs: Runs) -> Estimate:
    """The number that a row and a column of a table ask for."""
    if not column.measure:
        return Estimate(reason="a setting, which this row does not have")
    benchmark, metric = column.measure.split("/")
    model = row.model or column.model
    found = find(runs, model, benchmark, metric, row.group or column.group)
    if not found.by_run and benchmark in row.lacks:
        return Estimate(reason=row.lacks[benchmark])
    return found


def _protocol(content: dict[str, Any]) -> str:
    """Split and settings in one line."""
    settings = _flat(content["protocol"].get("settings", {}))
    parts = [f"split {content['split']}", *(f"{key} {value}" for key, value in settings.items())]
    parts += [precision] if (precision := content["protocol"].get("precision")) else []
    if (encoder := content["protocol"].get("text_encoder")) and encoder["cut"]:
        parts.append(f"{encoder['cut']} of {encoder['prompts']} prompts cut off after {encoder['longest']} tokens")
    return "; ".join(parts)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat

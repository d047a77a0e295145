"""The run that the checks examine: its files, their lineage, and Snakemake's DAG. Everything is read once."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dreamllm.masking import mask
from dreamllm.paths import TABLES
from dreamllm.repro.audit import lineage
from dreamllm.repro.audit.findings import AuditProblem
from dreamllm.repro.audit.lineage import Link, Run
from dreamllm.repro.audit.untrusted import read_checkpoint_json, read_json_or_none
from dreamllm.snakemake_records import read_digests, read_records


@dataclass(frozen=True)
class Output:
    """An output of one of the experiment's rules. status, plan: Snakemake's words ("ok", "no update")"""

    path: str
    rule: str
    log: str
    command: str
    status: str
    plan: str


class AuditedRun:
    """A run of an experiment, as the checks see it.

    outputs: of the rules; Snakemake lists them on first use if they are not given
    """

    def __init__(self, run: Run, outputs: list[Output] | None = None) -> None:
        self.run = run
        self.list_outputs = self._list_by_snakemake if outputs is None else lambda: outputs

    @cached_property
    def outputs(self) -> list[Output]:
        """All outputs of the experiment's DAG. Raises AuditProblem if Snakemake cannot build it."""
        return self.list_outputs()

    def _list_by_snakemake(self) -> list[Output]:
        command = [sys.executable, "-m", "snakemake", f"--configfile={self.run.config}", "--detailed-summary"]
        done = subprocess.run(command, cwd=self.run.root, capture_output=True, text=True, check=False)
        if done.returncode:
            words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise AuditProblem(f"Snakemake cannot build the DAG: {mask(' '.join(words[-3:]))}")
        lines = csv.DictReader(io.StringIO(done.stdout), delimiter="\t")
        keys = {
            "path": "output_file", "rule": "rule", "log": "log-file(s)",
            "command": "shellcmd", "status": "status", "plan": "plan",
        }  # fmt: skip
        return [Output(**{name: line[key] or "" for name, key in keys.items()}) for line in lines]

    @property
    def command(self) -> str:
        """The command that runs the experiment."""
        if self.run.config == "config/embedded.yaml":
            return "make tables"
        return f"snakemake --cores all --configfile={self.run.config} results/tables"

    @cached_property
    def evaluated(self) -> list[str]:
        """MODEL/BENCHMARK of every metrics file that `dreamllm score` writes for the run, in the order of the rules."""
        return [f"{e.model}/{benchmark}" for e in self.run.experiment.evaluations for benchmark in e.benchmarks]

    @cached_property
    def metrics(self) -> dict[str, str]:
        """The existing metrics files that the tables are made from, by MODEL/BENCHMARK, in the order of the rules."""
        found, order = lineage.metrics_files(self.run), [*self.evaluated]
        if self.run.experiment.evaluation.pictures:
            order += [f"{name}_pictures" for name in self.evaluated]
        models = [name.partition("/")[0] for name in self.evaluated if name.endswith("/stories")]
        ratings = {model: self.root / self.run.paths.ratings(model) for model in models}
        order += [f"{model}/human" for model, folder in ratings.items() if any(folder.glob("*.json"))]
        return {name: found[name] for name in order if name in found}

    @cached_property
    def runs(self) -> list[AuditedRun]:
        """All runs of the experiment, this one first; they share one list of outputs."""
        others = [AuditedRun(run) for run in self.run.runs.values() if run.name != self.run.name]
        for other in others:
            other.list_outputs = lambda: self.outputs
        return [self, *others]

    @cached_property
    def all_metrics(self) -> list[str]:
        """Metrics files of all runs in the order of the rule `tables`: benchmarks, pictures, human ratings."""
        kinds: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for run in self.runs:
            for source, path in run.metrics.items():
                kinds[0 if source in run.evaluated else 2 if source.endswith("/human") else 1].append(path)
        return [path for paths in kinds.values() for path in paths]

    @cached_property
    def links(self) -> list[Link]:
        """All links below the existing metrics, each once; then those of checkpoints that no metric depends on."""
        tops = [lineage.metric_link(self.run, source, path) for source, path in self.metrics.items()]
        tops += [lineage.checkpoint_link(self.run, stage, "") for stage in self.trained]
        unique = {(one.kind, one.path, one.name, one.recorded): one for top in tops for one in lineage.walk(top)}
        return list(unique.values())

    def of_kind(self, *kinds: str) -> Iterator[Link]:
        """Links of these kinds, each path once for each digest recorded of it."""
        return (link for link in self.links if link.kind in kinds)

    @cached_property
    def trained(self) -> list[str]:
        """Stages of the experiment that have a checkpoint folder, with or without a checkpoint.json."""
        return [name for name in _stages(self.run) if (self.root / self.run.paths.checkpoint(name)).exists()]

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """Snakemake's records of the jobs that ran here, by output; {} in a clone."""
        return read_records(self.root / ".snakemake")

    @cached_property
    def made(self) -> dict[str, dict[str, Any]]:
        """What Snakemake's jobs made here below results/ with the digests of then, by output; {} in a clone."""
        return read_digests(self.root / ".snakemake")

    def was_made_here(self, path: str) -> bool:
        """Whether a job made this output here, and recorded its digests."""
        return path in self.made and not self.made[path]["touched"]

    @cached_property
    def tables_show_this_run(self) -> bool:
        """Whether results/tables was made from this run, by Snakemake's record; without one, by the tables' index."""
        if TABLES in self.records:
            names = {Path(log).parent.name for log in self.records[TABLES]["log"]}
            return self.run.experiment.name in names
        index = self.root / TABLES / "README.md"  # tables without an index are examined, and fail
        return not index.is_file() or f"\n| {self.run.name} | " in index.read_text(encoding="utf-8")

    def limit(self, benchmark: str) -> int | None:
        """How many items of each set of a benchmark the configuration asks for; None: all."""
        from dreamllm.evaluate import tasks

        task, settings = tasks.module(self.run.experiment.benchmark(benchmark).task), self.run.experiment.evaluation
        return task.limit(settings) if hasattr(task, "limit") else settings.limit

    @property
    def root(self) -> Path:
        """The checkout."""
        return self.run.root

    def json(self, path: str) -> dict[str, Any]:
        """A JSON file's content; {} if it is missing or malformed."""
        read = read_checkpoint_json if path.endswith("/checkpoint.json") else read_json_or_none
        content = read(self.root / path)
        return content if isinstance(content, dict) else {}


def trained_stages(run: Run) -> list[str]:
    """Stages of the experiment that have a checkpoint with a checkpoint.json."""
    return [name for name in _stages(run) if (run.root / run.paths.checkpoint(name) / "checkpoint.json").is_file()]


def _stages(run: Run) -> list[str]:
    return [*run.experiment.stages, *(["sd_finetuned"] if run.experiment.sd_finetuned else [])]

"""Read everything that the report of a run shows: tables, claims, the lineage of each number, costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dreamllm.evaluate.files import read_json
from dreamllm.paths import Paths
from dreamllm.repro.audit import lineage
from dreamllm.repro.audit.audited_run import trained_stages
from dreamllm.repro.report import cost
from dreamllm.results import claims, tables
from dreamllm.results.claims import ClaimResult, Items
from dreamllm.results.metrics_store import Runs, read_runs
from dreamllm.results.render import Block
from dreamllm.results.table_spec import Table, read_published, read_tables

STATUSES = ("reproduced", "partly", "not reproduced", "external", "not attempted")


@dataclass(frozen=True)
class Report:
    """A run with its results.

    claims: with their computed status.  items: scores of single items
    metrics: the metrics file of MODEL/BENCHMARK in this run, relative to the root
    """

    run: lineage.Run
    tables: list[tuple[Table, list[Block]]]
    claims: list[ClaimResult]
    runs: Runs
    items: Items
    metrics: dict[str, str]
    timings: list[cost.Timing]

    @property
    def statuses(self) -> dict[str, int]:
        """The number of claims with each status; a status without claims is left out."""
        counts = Counter(claim.status for claim in self.claims)
        return {status: counts[status] for status in STATUSES if counts[status]}

    @cached_property
    def links(self) -> dict[str, lineage.Link]:
        """The lineage of each metrics file of this run, by MODEL/BENCHMARK."""
        return {source: lineage.metric_link(self.run, source, path) for source, path in sorted(self.metrics.items())}

    @cached_property
    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """checkpoint.json of every stage of the configuration that has a checkpoint."""
        return read_checkpoints(self.run)

    @property
    def commits(self) -> list[str]:
        """Commits at which the checkpoints were trained, the most frequent one first."""
        counts = Counter(
            about.get("commit") or about.get("no_commit") or "unknown" for about in self.checkpoints.values()
        )
        return [commit for commit, _ in counts.most_common()]

    @property
    def machines(self) -> list[str]:
        """Hardware on which the checkpoints were trained."""
        return sorted({about["machine"] for about in self.checkpoints.values() if about.get("machine")})

    @property
    def final_model(self) -> str:
        """The model that the configuration evaluates on most benchmarks, of equals the first; "" without one."""
        evaluations = self.run.experiment.evaluations
        return max(evaluations, key=lambda one: len(one.benchmarks)).model if evaluations else ""

    def predictions(self, benchmark: str) -> list[Path]:
        """Existing prediction files on a benchmark, in the configuration's order of models."""
        root, evaluations = self.run.root, self.run.experiment.evaluations
        paths = [self.run.predictions(e.model, benchmark) for e in evaluations if benchmark in e.benchmarks]
        return [root / path for path in paths if path]


def read_checkpoints(run: lineage.Run) -> dict[str, dict[str, Any]]:
    """checkpoint.json of every stage of the configuration that has a checkpoint."""
    return {
        stage: read_json(run.root / run.paths.checkpoint(stage) / "checkpoint.json") for stage in trained_stages(run)
    }


def timings(run: lineage.Run, runs: Iterable[str]) -> list[cost.Timing]:
    """Time and memory of the jobs of the experiment and its runs."""
    names = dict.fromkeys([run.experiment.name, run.name, *runs])
    return [
        one
        for name in names
        for one in cost.read_timings(run.root / Paths(run.experiment, name).timings, run.experiment)
    ]


def gather(root: Path, config: Path, paper: Path, metrics: Sequence[Path], items: Sequence[Path]) -> Report:
    """Read a report's content. Raises ConfigProblem and BenchmarkProblem for files that are wrong."""
    run = lineage.Run.at(root, config)
    definitions, published = read_tables(paper / "tables.yaml"), read_published(paper)
    runs = read_runs(metrics)
    scores = claims.read_items(items)
    numbers = claims.Numbers(definitions, published, runs, scores)
    here, below = root.resolve(), (root / run.paths.results("metrics")).resolve()
    of_this_run = [path for path in map(Path.resolve, metrics) if below in path.parents]
    return Report(
        run=run,
        tables=[(table, tables.fill(table, runs, published)) for table in definitions.values()],
        claims=claims.evaluate_claims(claims.read_claims(paper / "claims.yaml", definitions, published), numbers),
        runs=runs,
        items=scores,
        metrics={
            f"{content['model']}/{content['benchmark']}": path.relative_to(here).as_posix()
            for path, content in zip(of_this_run, map(read_json, of_this_run), strict=True)
        },
        timings=timings(run, runs),
    )

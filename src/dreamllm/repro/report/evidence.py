"""Everything that a report tells of a run, read once: numbers, claims, the way of each number, costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dreamllm.evaluate.files import read_json
from dreamllm.repro.audit import lineage
from dreamllm.repro.audit.evidence import trained_stages
from dreamllm.repro.report import cost
from dreamllm.results import claims, tables
from dreamllm.results.claims import Verdict
from dreamllm.results.metrics_store import Runs, read_runs
from dreamllm.results.render import Block
from dreamllm.results.table_spec import Table, read_published, read_tables

STATUSES = ("reproduced", "partly", "not reproduced", "external", "not attempted")


@dataclass(frozen=True)
class Report:
    """A run, and what came of it.

    metrics: the metrics file of MODEL/BENCHMARK in this run, relative to the repository
    """

    run: lineage.Run
    tables: list[tuple[Table, list[Block]]]
    verdicts: list[Verdict]
    runs: Runs
    metrics: dict[str, str]
    timings: list[cost.Timing]

    @property
    def statuses(self) -> dict[str, int]:
        """How many claims have which status, those without any left out."""
        counts = Counter(verdict.status for verdict in self.verdicts)
        return {status: counts[status] for status in STATUSES if counts[status]}

    @cached_property
    def links(self) -> dict[str, lineage.Link]:
        """The way below each metrics file of this run, by MODEL/BENCHMARK."""
        return {source: lineage.metric_link(self.run, source, path) for source, path in sorted(self.metrics.items())}

    @cached_property
    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """checkpoint.json of every stage of the configuration whose checkpoint is there."""
        return read_checkpoints(self.run)

    @property
    def commits(self) -> list[str]:
        """Commits that the checkpoints were trained at, the most frequent one first."""
        counts = Counter(about.get("commit") or "unknown" for about in self.checkpoints.values())
        return [commit for commit, _ in counts.most_common()]

    @property
    def machines(self) -> list[str]:
        """Processors and GPUs that the checkpoints were trained on."""
        return sorted({about["machine"] for about in self.checkpoints.values() if about.get("machine")})

    def predictions(self, benchmark: str) -> list[Path]:
        """Prediction files that are there, of all models of the configuration on a benchmark, in its order."""
        root, evaluations = self.run.root, self.run.experiment.evaluations
        paths = [self.run.predictions(e.model, benchmark) for e in evaluations if benchmark in e.benchmarks]
        return [root / path for path in paths if path]


def house_at(root: Path, config: Path) -> lineage.Run:
    """The repository at `root` with the run of a configuration; of several seeds, the first one's.

    Snakemake gives the configuration as an absolute path: here it is said relative to the repository.
    Raises ConfigProblem for a configuration that cannot be used.
    """
    here, there = root.resolve(), (root / config).resolve()
    return lineage.Run.at(root, there.relative_to(here) if here in there.parents else there)


def read_checkpoints(run: lineage.Run) -> dict[str, dict[str, Any]]:
    """checkpoint.json of every stage of the configuration whose checkpoint is there."""
    return {
        stage: read_json(run.root / run.paths.checkpoint(stage) / "checkpoint.json") for stage in trained_stages(run)
    }


def timings(run: lineage.Run, runs: Iterable[str]) -> list[cost.Timing]:
    """What Snakemake measured of the jobs of the experiment and of its runs."""
    names = dict.fromkeys([run.experiment.name, run.name, *runs])
    return [one for name in names for one in cost.read_timings(run.root / f"benchmarks/{name}", run.experiment)]


def gather(root: Path, config: Path, paper: Path, metrics: Sequence[Path], items: Sequence[Path]) -> Report:
    """Read it all. Raises the problems of what it reads, as `dreamllm tables` does."""
    run = house_at(root, config)
    definitions, published = read_tables(paper / "tables.yaml"), read_published(paper)
    runs = read_runs(metrics)
    evidence = claims.Evidence(definitions, published, runs, claims.read_items(items))
    here, below = root.resolve(), (root / f"results/metrics/{run.name}").resolve()
    of_this_run = [path for path in map(Path.resolve, metrics) if below in path.parents]
    return Report(
        run=run,
        tables=[(table, tables.fill(table, runs, published)) for table in definitions.values()],
        verdicts=claims.judge(claims.read_claims(paper / "claims.yaml", definitions, published), evidence),
        runs=runs,
        metrics={
            f"{content['model']}/{content['benchmark']}": path.relative_to(here).as_posix()
            for path, content in zip(of_this_run, map(read_json, of_this_run), strict=True)
        },
        timings=timings(run, runs),
    )

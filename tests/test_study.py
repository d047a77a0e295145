"""The study's committed results: nothing is missing, and tables and claims follow from the metrics beside them."""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamllm.config.reading import load
from dreamllm.results import tables

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "results/study"


def test_every_seed_of_every_arm_has_a_metric_of_every_benchmark() -> None:
    experiment = load(STUDY / "study.yaml")  # the configuration that the results are from
    wanted = {
        (run, evaluation.model, benchmark)
        for run, of_seed in experiment.runs().items()
        for evaluation in of_seed.evaluations
        for benchmark in evaluation.benchmarks
    }
    there = {(file.parts[-3], file.parts[-2], file.stem) for file in (STUDY / "metrics").rglob("*.json")}
    assert there == wanted


def test_tables_and_claims_are_those_that_the_metrics_give(tmp_path: Path) -> None:
    made = tmp_path / "tables"
    files = {"metrics": sorted((STUDY / "metrics").glob("*/*/*.json")), "items": sorted((STUDY / "items").iterdir())}
    tables.main(argparse.Namespace(**files, paper=ROOT / "paper", losses=[], summary=None, out=made))
    names = sorted(file.name for file in made.iterdir())
    assert names == sorted(file.name for file in (STUDY / "tables").iterdir())
    differing = [name for name in names if (made / name).read_bytes() != (STUDY / "tables" / name).read_bytes()]
    assert not differing, f"docs/audit.md says how to make results/study/tables again; other bytes: {differing}"

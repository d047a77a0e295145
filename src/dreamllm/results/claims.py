"""Compute the status of each of the paper's claims (paper/claims.yaml) from the numbers.

A claim has tests. A test adds and subtracts cells (named by id); the claim says that the sum is higher than, lower than
or equal to 0, with a tolerance. Each test is applied to the paper's own numbers and to the measured ones. The measured
numbers are either all of the paper's benchmarks, with rows that only the paper has as constants, or all of the emoji
world (`miniature`).

    holds      the whole 95 % interval agrees with the claim         open      the interval lies on both sides
    opposite   the whole interval contradicts the claim              missing   a cell has no number: the reason is given
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dreamllm.config.base import Section, near
from dreamllm.config.reading import ConfigProblem
from dreamllm.evaluate import files
from dreamllm.evaluate.files import BenchmarkProblem, read_json
from dreamllm.evaluate.metrics.intervals import RESAMPLES, SEED
from dreamllm.results.metrics_store import Estimate, Interval, Runs, lookup, widen_by_seeds
from dreamllm.results.table_spec import Column, Published, Row, Table, read_sections

Items = Mapping[tuple[str, str, str], dict[str, Any]]  # (run, model, benchmark) -> file of `dreamllm score --items`
Outcome = Literal["holds", "open", "opposite", "missing", "external"]
BY_ITEMS = "paired bootstrap over items"
BY_CELLS = "from the intervals of the cells"


class ClaimTest(Section):
    """One comparison of cells."""

    plus: Annotated[list[str], Field(min_length=1)]
    """Ids of cells that are added."""
    minus: list[str] = []
    """Ids of cells that are subtracted."""
    direction: Literal["higher", "lower", "equal"]
    """How the sum compares with 0 according to the claim."""
    tolerance: float = 0
    """higher: the sum is above this; lower: below its negative; equal: between the two. In the unit of the tables."""

    @property
    def text(self) -> str:
        """The test in one line."""
        total = " + ".join(self.plus) + "".join(f" − {id_}" for id_ in self.minus)
        bound = {"higher": f"> {self.tolerance:g}", "lower": f"< {0 - self.tolerance:g}"}
        return f"{total} {bound.get(self.direction, f'within ±{self.tolerance:g}')}"

    def margin(self, total: float) -> float:
        """How far a sum lies on the claim's side of its bound; negative on the other side."""
        sides = {"higher": total, "lower": -total, "equal": -abs(total)}
        return sides[self.direction] + (self.tolerance if self.direction == "equal" else -self.tolerance)

    def outcome(self, low: float, high: float) -> Outcome:
        """The outcome for an interval of the sum."""
        margins = [self.margin(low), self.margin(high)]
        if self.direction == "equal" and low < 0 < high:
            margins.append(self.margin(0))
        return "holds" if min(margins) > 0 else "opposite" if max(margins) < 0 else "open"


class Claim(Section):
    """A claim of the paper."""

    id: str
    statement: str
    """The claim, paraphrased."""
    note: str = ""
    """Reason for the tolerance, background, or why there is no test."""
    tests: list[ClaimTest] = []


@dataclass(frozen=True)
class Numbers:
    """The tables' layout, the published numbers, and those of the runs with the scores of single items."""

    tables: Mapping[str, Table]
    published: Published
    runs: Runs
    items: Items

    @cached_property
    def places(self) -> dict[str, list[tuple[Row, Column]]]:
        """Rows and columns by cell id: one on the paper's benchmark, one in miniature, or both."""
        return _places(self.tables)


@dataclass(frozen=True)
class TestResult:
    """A test applied to the paper's numbers and to the measured ones.

    measured: the sum in the unit of the tables.  world: where it was measured.  reason: why it is missing
    """

    test: ClaimTest
    paper: float | None
    paper_outcome: Outcome
    outcome: Outcome
    measured: Interval | None = None
    world: str = ""
    n: int = 0
    seeds: int = 0
    interval_by: str = ""
    reason: str = ""

    @property
    def measured_on(self) -> str:
        """Where the measured number, or its absence, is from, in words."""
        return {"miniature": "the emoji world", "": "this repository"}.get(self.world, f"the {self.world}, here")

    @property
    def smallest_detectable(self) -> float | None:
        """How far beyond its bound the sum has to be measured for the test to hold; None without numbers.

        It is the half-width of the sum's 95 % interval on the side of the bound.
        """
        if self.measured is None:
            return None
        value, *ends = self.measured
        return self.test.margin(value) - min(self.test.margin(end) for end in ends)

    @property
    def expected_effect(self) -> float | None:
        """How far the paper's sum is beyond the bound; where the paper has no number, how far the bound is from 0.

        None where the paper's number contradicts the claim, and where it has none and the bound is 0.
        """
        effect = abs(self.test.tolerance) if self.paper is None else self.test.margin(self.paper)
        return effect if effect > 0 else None

    @property
    def detectable(self) -> Literal["yes", "no", ""]:
        """Whether the expected effect is larger than the smallest detectable one; "" where one is not known."""
        if self.smallest_detectable is None or self.expected_effect is None:
            return ""
        return "yes" if self.expected_effect > self.smallest_detectable else "no"


@dataclass(frozen=True)
class ClaimResult:
    """A claim with the results of its tests."""

    claim: Claim
    tests: list[TestResult]

    @property
    def status(self) -> str:
        """reproduced: every test holds.  partly: some hold.  not reproduced: no test with numbers holds.

        not attempted: no test has numbers.  external: no test has numbers, and a server has to score some
        """
        outcomes = [one.outcome for one in self.tests]
        if not set(outcomes) & {"holds", "open", "opposite"}:
            return "external" if "external" in outcomes else "not attempted"
        if set(outcomes) == {"holds"}:
            return "reproduced"
        return "partly" if "holds" in outcomes else "not reproduced"

    @property
    def worlds(self) -> str:
        """Where the numbers were measured."""
        return ", ".join(dict.fromkeys(one.world for one in self.tests if one.world))


def read_claims(path: Path, tables: Mapping[str, Table], published: Published) -> list[Claim]:
    """The claims of paper/claims.yaml. Raises ConfigProblem for wrong keys and for cells that do not exist."""
    known = [*published, *_places(tables)]
    claims, problems = read_sections(path, Claim)
    for claim in claims.values():
        cells = [id_ for test in claim.tests for id_ in (*test.plus, *test.minus)]
        problems += [f"{claim.id}: no cell {id_!r}{near(id_, known)}" for id_ in cells if id_ not in known]
    if problems:
        raise ConfigProblem("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems]))
    return list(claims.values())


def read_items(folders: Sequence[Path]) -> Items:
    """Scores of single items, RUN/MODEL/BENCHMARK.json. Raises BenchmarkProblem for a malformed file."""
    items: dict[tuple[str, str, str], dict[str, Any]] = {}
    if missing := next((folder for folder in folders if not folder.is_dir()), None):
        raise BenchmarkProblem(missing, "", "no such folder")
    for path in (path for folder in folders for path in sorted(folder.glob("*/*.json"))):
        content = read_json(path)
        for name in ("items", "groups"):
            files.field(content, name, dict, path, "")
        model, benchmark = (files.field(content, name, str, path, "") for name in ("model", "benchmark"))
        items[path.parent.parent.name, model, benchmark] = content
    return items


def evaluate_claims(claims: Sequence[Claim], numbers: Numbers) -> list[ClaimResult]:
    """Apply every test of every claim to the numbers. Raises BenchmarkProblem as `apply` does."""
    return [ClaimResult(claim, [apply(test, numbers) for test in claim.tests]) for claim in claims]


def apply(test: ClaimTest, numbers: Numbers) -> TestResult:
    """Apply a test to the paper's numbers and to the measured ones.

    Uses the paper's own benchmarks if all of the test's cells were measured there, else the miniature ones.
    Raises BenchmarkProblem when the scores of single items do not add up to the metrics.
    """
    signs = [*((id_, 1) for id_ in test.plus), *((id_, -1) for id_ in test.minus)]
    printed = [numbers.published[id_].value if id_ in numbers.published else "" for id_, _ in signs]
    paper = sum(sign * float(value) for (_, sign), value in zip(signs, printed, strict=True)) if all(printed) else None
    paper_outcome: Outcome = "missing" if paper is None else test.outcome(paper, paper)
    missing: list[Estimate] = []
    for miniature in (False, True):
        terms = [_term(id_, miniature, numbers) for id_, _ in signs]
        runs = set.intersection(*[set(t.found.by_run) for t in terms if not t.constant] or [set()])
        if all(term.found.by_run for term in terms) and runs:
            scaled = [_scaled(term, runs) for term in terms]
            total, interval_by = _sum(scaled, [sign for _, sign in signs], numbers.items)
            return TestResult(
                test,
                paper,
                paper_outcome,
                outcome=test.outcome(*total[1:]),
                measured=total,
                world="miniature" if miniature else "paper's benchmarks",
                n=min(term.found.n for term in terms if not term.constant),
                seeds=len(runs),
                interval_by=interval_by,
            )
        without = (term.found for term in terms if not term.found.by_run)
        missing.append(next(without, Estimate(reason="no run has all of the cells")))
    external = next((found for found in missing if found.external), None)
    reason = external.reason if external else "; ".join(dict.fromkeys(found.reason for found in missing))
    return TestResult(test, paper, paper_outcome, "external" if external else "missing", reason=reason)


@dataclass(frozen=True)
class _Term:
    """A cell in a test's sum: its number, row and column. constant: a number that only the paper has"""

    found: Estimate
    row: Row | None = None
    column: Column | None = None
    constant: bool = False


def _places(tables: Mapping[str, Table]) -> dict[str, list[tuple[Row, Column]]]:
    places: dict[str, list[tuple[Row, Column]]] = {}
    for table in tables.values():
        for row in table.rows:
            for column in table.columns:
                if column.measure and column.header not in row.given:
                    places.setdefault(table.cell_id(row, column), []).append((row, column))
    return places


def _term(id_: str, miniature: bool, numbers: Numbers) -> _Term:
    places = numbers.places.get(id_, [])
    for row, column in places:
        if column.miniature == miniature:
            return _Term(lookup(row, column, numbers.runs), row, column)
    if not places and not miniature and numbers.published[id_].value:
        value = float(numbers.published[id_].value)
        return _Term(Estimate({"": {"value": value, "low": value, "high": value, "n": 0}}), constant=True)
    return _Term(Estimate(reason=f"{id_} has no counterpart in the {'emoji world' if miniature else 'repository'}"))


def _scaled(term: _Term, runs: set[str]) -> _Term:
    """The term in the unit of the tables, in these runs only."""
    scale = term.column.scale if term.column else 1
    by_run = {run: term.found.by_run["" if term.constant else run] for run in sorted(runs)}
    scaled = {run: one | {end: one[end] * scale for end in ("value", "low", "high")} for run, one in by_run.items()}
    return replace(term, found=Estimate(scaled, source=term.found.source))


def _sum(terms: Sequence[_Term], signs: Sequence[int], items: Items) -> tuple[Interval, str]:
    """The sum of the terms over all runs with its 95 % interval, and the method of the interval."""
    runs = list(terms[0].found.by_run)
    by_run = [sum(sign * t.found.by_run[run]["value"] for t, sign in zip(terms, signs, strict=True)) for run in runs]
    item_sums = [sums for run in runs if (sums := _item_sums(terms, signs, run, items)) is not None]
    if len(terms) > 1 and len(item_sums) == len(runs):
        mean = np.mean(item_sums, axis=0)  # (items,), over the runs
        interval = (float(np.mean(by_run)), *bootstrap_mean(mean))
        return widen_by_seeds(by_run, interval), BY_ITEMS
    half_widths = []
    for down, up in (("low", "high"), ("high", "low")):
        by_term = [
            [abs(one["value"] - one[down if sign > 0 else up]) for one in term.found.by_run.values()]
            for term, sign in zip(terms, signs, strict=True)
        ]
        half_widths.append(math.hypot(*(float(np.mean(of_runs)) for of_runs in by_term)))
    value = float(np.mean(by_run))
    return widen_by_seeds(by_run, (value, value - half_widths[0], value + half_widths[1])), BY_CELLS


def _item_sums(terms: Sequence[_Term], signs: Sequence[int], run: str, items: Items) -> np.ndarray | None:
    """The test's sum for every single item (items,); None without such scores, or where terms have different items."""
    total: dict[str, float] | None = None
    for term, sign in zip(terms, signs, strict=True):
        if term.row is None or term.column is None:  # a constant
            return None
        model, _, benchmark = term.found.source.partition("/")
        content = items.get((run, model, benchmark))
        if content is None or (scores := content["items"].get(term.column.measure.split("/")[1])) is None:
            return None
        group = term.row.group or term.column.group
        chosen = content["groups"].get(group, []) if group else list(scores)
        mean = sum(scores[id_] for id_ in chosen) * term.column.scale / max(len(chosen), 1)
        if not math.isclose(mean, term.found.by_run[run]["value"], rel_tol=1e-9, abs_tol=1e-9):
            what = f"scores of single items come to {mean:g}, the metric is {term.found.by_run[run]['value']:g}"
            raise BenchmarkProblem(f"{run}/{model}/{benchmark}", term.column.measure, what)
        weighted = {id_: sign * term.column.scale * scores[id_] for id_ in chosen}
        if total is None:
            total = weighted
        elif total.keys() != weighted.keys():
            return None
        else:
            total = {id_: value + weighted[id_] for id_, value in total.items()}
    return np.array(list(total.values())) if total else None


def bootstrap_mean(scores: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of scores (N,) by resampling them: the percentile bootstrap."""
    if len(scores) < 2 or np.ptp(scores) == 0:  # nothing to resample
        return float(scores[0]), float(scores[0])
    from scipy import stats  # only when it is needed: it takes half a second

    generator = np.random.default_rng(SEED)
    result = stats.bootstrap(
        (scores,), np.mean, n_resamples=RESAMPLES, batch=50, method="percentile", rng=generator
    ).confidence_interval
    return float(result.low), float(result.high)

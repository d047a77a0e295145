"""The results of the claims as CSV and Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dreamllm.results.claims import ClaimResult, TestResult
from dreamllm.results.csv_files import csv_text
from dreamllm.results.metrics_store import Runs

CSV_COLUMNS = ["claim", "status", "test", "paper", "paper_outcome", "ours", "low", "high", "n", "seeds", "interval"]
CSV_COLUMNS += ["world", "outcome", "smallest_detectable", "expected_effect", "detectable", "reason"]
INTRODUCTION = """\
Written by `dreamllm tables` from paper/claims.yaml and the metrics; every status is computed. A claim is *reproduced*
when all its tests hold, *partly* reproduced when some hold, *not reproduced* when no test with numbers holds, *not
attempted* when no test has numbers, and *external* when a server has to score them.

A test *holds* when its whole 95 % interval agrees with the claim, is *open* when the interval lies on both sides,
*opposite* when the whole interval contradicts the claim, and *missing* without numbers. Numbers are in the unit of the
tables. Each test has a row with the paper's number and a row with the measured one. Compare their outcomes, not their
numbers, where the test was measured in the emoji world (*miniature*): it shows whether the effect is there, not how
large it is on photographs. An interval "from the intervals of the cells" treats the cells as independent.

*Smallest detectable* effect: the half-width of the 95 % interval on the side of the test's bound. A test holds when the
measured sum is farther beyond its bound than this; a true effect of just this size is found by about half of all
repetitions. Below a test that does not hold stands whether the expected effect is larger than this. *Expected* is how
far the paper's sum is beyond the bound or, where the paper prints no number, how far the bound is from 0. Sizes on the
paper's benchmarks are only a rough guide to those in the miniature.
"""


def to_csv(results: Sequence[ClaimResult]) -> str:
    """One test per line; a claim without a test has one line too."""
    lines = []
    for result in results:
        start = [result.claim.id, result.status]
        for one in result.tests:
            numbers = [f"{number:.6g}" for number in one.measured] if one.measured else ["", "", ""]
            paper = "" if one.paper is None else f"{one.paper:.6g}"
            effects = ["" if size is None else f"{size:.6g}" for size in (one.smallest_detectable, one.expected_effect)]
            about = [one.n or "", one.seeds or "", one.interval_by, one.world, one.outcome]
            about += [*effects, one.detectable, one.reason]
            lines.append([*start, one.test.text, paper, one.paper_outcome, *numbers, *about])
        if not result.tests:
            lines.append([*start, *[""] * (len(CSV_COLUMNS) - 3), result.claim.note])
    return csv_text(lines, CSV_COLUMNS)


def to_markdown(results: Sequence[ClaimResult], runs: Runs) -> str:
    """An overview, then every claim with its tests."""
    overview = [
        f"| [{one.claim.id}](#{one.claim.id.lower()}) | {one.claim.statement} "
        f"| {one.status} | {_outcomes(one)} | {one.worlds or '–'} |"
        for one in results
    ]
    counts = Counter(result.status for result in results)
    lines = [
        "# Claims",
        "",
        INTRODUCTION,
        f"Runs (seeds): {', '.join(runs) or 'none'}. "
        + ", ".join(f"{n} {status}" for status, n in counts.items())
        + ".",
        "",
        "| claim | | status | tests | measured on |",
        "|---|---|---|---|---|",
        *overview,
    ]
    for result in results:
        lines += ["", f"## {result.claim.id}", "", f"{result.claim.statement} **{result.status.capitalize()}.**"]
        lines += ["", result.claim.note] if result.claim.note else []
        if result.tests:
            lines += ["", "| test | number of | number | smallest detectable | n | seeds | interval | outcome |"]
            lines += [
                "|---|---|--:|--:|--:|--:|---|---|",
                *(row for number, one in enumerate(result.tests, 1) for row in _rows(number, one)),
            ]
            lines += _power(result)
    return "\n".join(lines) + "\n"


def _outcomes(result: ClaimResult) -> str:
    """The number of tests with each outcome."""
    counts = Counter(one.outcome for one in result.tests)
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none"


def _rows(number: int, one: TestResult) -> list[str]:
    """The row of the paper, without the numbers of which a paper has none, and the row of what was measured."""
    paper = ["–", "–"] if one.paper is None else [f"{one.paper:.4g}", one.paper_outcome]
    measured = "–"
    outcome = f"{one.outcome}: {one.reason}"
    if one.measured:
        measured = f"{one.measured[0]:.4g} <sub>{one.measured[1]:.4g}–{one.measured[2]:.4g}</sub>"
        outcome = f"**{one.outcome}**"
    smallest = "–" if one.smallest_detectable is None else f"{one.smallest_detectable:.3g}"
    about = [measured, smallest, str(one.n or "–"), str(one.seeds or "–"), one.interval_by or "–", outcome]
    rows = [
        [f"{number}. {one.test.text}", "the paper", paper[0], "", "", "", "", paper[1]],
        ["", one.measured_on, *about],
    ]
    return [f"| {' | '.join(row)} |" for row in rows]


def _power(result: ClaimResult) -> list[str]:
    """For each measured test that does not hold, whether the expected effect could have been detected."""
    lines = []
    for number, one in enumerate(result.tests, 1):
        if one.smallest_detectable is None or one.outcome == "holds":
            continue
        if one.expected_effect is not None:
            size = f"{one.expected_effect:.3g}"
            expected = (
                f"the bound is {size} from 0" if one.paper is None else f"the paper's sum is {size} beyond the bound"
            )
        else:
            expected = (
                "the paper prints no number" if one.paper is None else "the paper's own sum contradicts the claim"
            )
        found = one.detectable.capitalize() or "Unknown"
        lines.append(f"- Test {number}: {found}. Smallest detectable is {one.smallest_detectable:.3g}; {expected}.")
    return ["", "Could the expected effect have been detected?", "", *lines] if lines else []

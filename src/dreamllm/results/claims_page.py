"""The claims page: verdicts as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

from dreamllm.results.claims import Finding, Verdict
from dreamllm.results.metrics_store import Runs

CSV_COLUMNS = ["claim", "status", "test", "paper", "paper_outcome", "ours", "low", "high", "n", "seeds", "interval"]
CSV_COLUMNS += ["world", "outcome", "reason"]
ABOUT = """\
Written by `dreamllm tables` from paper/claims.yaml and the metrics; no status is typed. A claim is *reproduced* when
every test of it holds, *partly* when some do, *not reproduced* when none of those with numbers does, *not attempted*
when none has numbers, *external* when a server has to score them.

A test holds when its whole 95 % interval is where the claim says, is *open* when the interval reaches to both sides,
*opposite* when all of it is on the other side, and *missing* without numbers. Numbers are in the unit of the tables.
*Miniature* tests put the same question to the emoji world: they say whether the effect is there, not how large it is on
photographs. Intervals from those of the cells take the cells as independent.
"""


def to_csv(verdicts: Sequence[Verdict]) -> str:
    """One test per line; a claim without a test has one line too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for verdict in verdicts:
        start = [verdict.claim.id, verdict.status]
        for one in verdict.findings:
            numbers = [f"{number:.6g}" for number in one.ours] if one.ours else ["", "", ""]
            paper = "" if one.paper is None else f"{one.paper:.6g}"
            about = [one.n or "", one.seeds or "", one.interval_by, one.world, one.outcome, one.reason]
            writer.writerow([*start, one.test.words, paper, one.paper_outcome, *numbers, *about])
        if not verdict.findings:
            writer.writerow([*start, *[""] * 11, verdict.claim.note])
    return text.getvalue()


def to_markdown(verdicts: Sequence[Verdict], runs: Runs) -> str:
    """An overview, then every claim with its tests."""
    named = ", ".join(runs) or "none"
    overview = [
        f"| [{v.claim.id}](#{v.claim.id.lower()}) | {v.claim.statement} "
        f"| {v.status} | {_tests(v)} | {v.worlds or '–'} |"
        for v in verdicts
    ]
    counts = Counter(verdict.status for verdict in verdicts)
    lines = [
        "# Claims",
        "",
        ABOUT,
        f"Runs (seeds): {named}. " + ", ".join(f"{count} {status}" for status, count in counts.items()) + ".",
        "",
        "| claim | | status | tests | measured on |",
        "|---|---|---|---|---|",
        *overview,
    ]
    for verdict in verdicts:
        lines += ["", f"## {verdict.claim.id}", "", f"{verdict.claim.statement} **{verdict.status.capitalize()}.**"]
        lines += ["", verdict.claim.note] if verdict.claim.note else []
        if verdict.findings:
            lines += ["", "| test | paper | ours | n | seeds | interval | outcome |", "|---|--:|--:|--:|--:|---|---|"]
            lines += [_line(finding) for finding in verdict.findings]
    return "\n".join(lines) + "\n"


def _tests(verdict: Verdict) -> str:
    """How many tests came out how."""
    outcomes = Counter(finding.outcome for finding in verdict.findings)
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "none"


def _line(one: Finding) -> str:
    paper = "–" if one.paper is None else f"{one.paper:.4g}, {one.paper_outcome}"
    ours = f"{one.ours[0]:.4g} <sub>{one.ours[1]:.4g}–{one.ours[2]:.4g}</sub>" if one.ours else "–"
    outcome = f"**{one.outcome}** ({one.world})" if one.ours else f"{one.outcome}: {one.reason}"
    cells = [one.test.words, paper, ours, str(one.n or "–"), str(one.seeds or "–"), one.interval_by or "–", outcome]
    return f"| {' | '.join(cells)} |"

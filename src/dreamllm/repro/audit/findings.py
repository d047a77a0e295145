"""The result of a check: pass, fail or not applicable, and for each fault the file and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "not applicable"]


class AuditProblem(ValueError):
    """An audit that cannot run: what is missing, and what to do."""


@dataclass(frozen=True)
class Fault:
    """A violation of a check: the file (relative to the repository, "" if none), what is wrong with it, and the fix."""

    what: str
    file: str
    fix: str


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check. reason: what was verified, or why the check does not apply"""

    outcome: Outcome
    reason: str
    faults: tuple[Fault, ...] = ()


def pass_or_fail(faults: Sequence[Fault], reason: str) -> CheckResult:
    """Fail with the faults, each once; pass with the reason if there are none."""
    faults = tuple(dict.fromkeys(faults))
    return (
        CheckResult("fail", f"{len(faults)} fault{'s'[: len(faults) != 1]}", faults)
        if faults
        else CheckResult("pass", reason)
    )


def merge_runs(results: dict[str, CheckResult]) -> CheckResult:
    """One result for several runs by name; a single run keeps its own."""
    if len(results) == 1:
        return next(iter(results.values()))
    reason = "; ".join(f"{name}: {result.reason}" for name, result in results.items())
    if any(result.outcome == "fail" for result in results.values()):
        return pass_or_fail([fault for result in results.values() for fault in result.faults], "")
    return (
        not_applicable(reason)
        if all(r.outcome == "not applicable" for r in results.values())
        else CheckResult("pass", reason)
    )


def not_applicable(reason: str) -> CheckResult:
    """The check does not apply, for this reason."""
    return CheckResult("not applicable", reason)

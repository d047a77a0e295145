"""What a check found: pass, fail or not applicable, and for each fault the file and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "not applicable"]


class AuditProblem(ValueError):
    """An audit that cannot begin: says what is missing and what to do."""


@dataclass(frozen=True)
class Fault:
    """Something that is not as it is said to be. file: relative to the repository, "" where it is no file."""

    what: str
    file: str
    fix: str


@dataclass(frozen=True)
class Result:
    """The outcome of a check. reason: what was verified, or why there is nothing to verify."""

    outcome: Outcome
    reason: str
    faults: tuple[Fault, ...] = ()


def judged(faults: Sequence[Fault], reason: str) -> Result:
    """Fails with the faults, each once, or passes for this reason."""
    faults = tuple(dict.fromkeys(faults))
    return Result("fail", f"{len(faults)} fault{'s'[: len(faults) != 1]}", faults) if faults else Result("pass", reason)


def merged(results: dict[str, Result]) -> Result:
    """One result of several runs, by name; of one alone its own."""
    if len(results) == 1:
        return next(iter(results.values()))
    reason = "; ".join(f"{name}: {result.reason}" for name, result in results.items())
    if any(result.outcome == "fail" for result in results.values()):
        return judged([fault for result in results.values() for fault in result.faults], "")
    return absent(reason) if all(r.outcome == "not applicable" for r in results.values()) else Result("pass", reason)


def absent(reason: str) -> Result:
    """There is nothing to check."""
    return Result("not applicable", reason)

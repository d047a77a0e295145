"""The jobs that made a run, from Snakemake's records: rule, inputs, outputs, command, start and end.

The records are not part of the results: a clone whose results came by DVC has none, and its run has no jobs here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dreamllm.snakemake_records import read_records


@dataclass(frozen=True)
class Job:
    """A job. Paths, those in the command too, are relative to the repository.

    run, name: folder and name of its log and of its timing file
    """

    rule: str
    run: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    command: str
    start: str
    end: str


def read_jobs(root: Path, targets: Iterable[str]) -> list[Job]:
    """The jobs that made `targets` and all that they were made from, the earliest one first."""
    records = {_relative(output, root): record for output, record in read_records(root / ".snakemake").items()}
    wanted, todo = {}, list(targets)
    while todo:
        path = todo.pop()
        if path in records and path not in wanted:
            wanted[path] = records[path]
            todo += [_relative(one, root) for one in records[path]["input"]]
    outputs: dict[tuple[Any, ...], list[str]] = {}  # by job
    for path, record in sorted(wanted.items()):
        outputs.setdefault((record["rule"], record["starttime"], tuple(record["log"])), []).append(path)
    jobs = [_job(records[paths[0]], paths, root) for paths in outputs.values()]
    return sorted(jobs, key=lambda job: (job.start, job.outputs))


def _job(record: dict[str, Any], outputs: list[str], root: Path) -> Job:
    log = next(iter(record["log"]), "")
    here = str(root.resolve())
    return Job(
        rule=record["rule"],
        run=Path(log).parent.name,
        name=Path(log).stem if log else record["rule"],
        inputs=tuple(sorted(_relative(one, root) for one in record["input"])),
        outputs=tuple(outputs),
        command=" ".join((record["shellcmd"] or "").replace(f"{here}/", "").split()),
        start=_time(record["starttime"]),
        end=_time(record["endtime"]),
    )


def _relative(path: str, root: Path) -> str:
    """Where it lies below the repository; as it is where it does not."""
    one = Path(path)
    here = root.resolve()
    return one.relative_to(here).as_posix() if one.is_absolute() and here in one.parents else one.as_posix()


def _time(seconds: float | None) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the second; "" where none is known."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""

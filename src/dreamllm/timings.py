"""What a job used: wall time, CPU time and peak memory, in timings/RUN/JOB.tsv beside its log, logs/RUN/JOB.log.

A job with the flag --job LOG before its verb measures itself, to the end and with all processes that it waited for.
Snakemake's `benchmark:` only samples the processes below the job's shell: it misses the last seconds of a job, and all
that the job server runs (`job_server.py`). The columns are those of `benchmark:`, NA where nothing is measured. `main`
measures any other command.
"""

from __future__ import annotations

import csv
import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from dreamllm.atomic import new_file

COLUMNS = ("s", "h:m:s", "max_rss", "max_vms", "max_uss", "max_pss", "io_in", "io_out", "mean_load", "cpu_time")
RECORDED = Path("results/recorded/timings.csv")  # of the last recorded run; what a run is expected to cost
KIB = 1 if sys.platform == "linux" else 1024  # units of ru_maxrss in a KiB; macOS counts bytes


class TimingProblem(ValueError):
    """A timing file that cannot be read: which file, and what is wrong."""


@dataclass(frozen=True)
class Usage:
    """What a job used. seconds: wall clock.  cpu_seconds: of all cores.  memory_mb: peak of its largest process, MiB

    None where the file says NA.
    """

    seconds: float
    cpu_seconds: float | None
    memory_mb: float | None


@contextmanager
def measured(log: Path) -> Iterator[None]:
    """Write the timing file of the job with this log when the block ends without an error.

    CPU time is that of the whole process, from its start, and of all processes that it waited for.
    """
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu_seconds = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
    values = dict.fromkeys(COLUMNS, "NA") | {
        "s": f"{seconds:.4f}",
        "h:m:s": str(timedelta(seconds=int(seconds))),
        "max_rss": f"{max(_own_peak(), others.ru_maxrss / KIB) / 1024:.2f}",
        "mean_load": f"{100 * cpu_seconds / seconds:.2f}",
        "cpu_time": f"{cpu_seconds:.2f}",
    }
    with new_file(Path("timings", log.parent.name, f"{log.stem}.tsv")) as file:
        file.write_text("\t".join(COLUMNS) + "\n" + "\t".join(values.values()) + "\n", encoding="utf-8")


def _own_peak() -> float:
    """Peak memory of this process in KiB. Where Linux tells it, without what ru_maxrss has from before an exec."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB
    return float(status.partition("VmHWM:")[2].split()[0])


def read_usage(path: Path) -> Usage:
    """Read a job's timing file.

    Raises FileNotFoundError where there is none, and TimingProblem for a file of another form.
    """
    with path.open(encoding="utf-8", newline="") as file:
        line = next(csv.DictReader(file, delimiter="\t"), {})
    if not {"s", "cpu_time", "max_rss"} <= line.keys():
        raise TimingProblem(f"{path}, line 1: should have the columns s, max_rss and cpu_time, and a line below")
    try:
        numbers = [None if line[key] in (None, "", "NA", "-") else float(line[key]) for key in ("cpu_time", "max_rss")]
        return Usage(float(line["s"]), *(None if n is None or not math.isfinite(n) else n for n in numbers))
    except (TypeError, ValueError) as error:
        raise TimingProblem(f"{path}, line 2: {error}") from None


def write_recorded(path: Path, rules: Mapping[str, str]) -> None:
    """Write the CPU times of the jobs of a run, for `read_recorded`. rules: the rule of each job by the path of its log

    Jobs without a timing file are left out.
    """
    lines = ["rule,job,cpu_seconds"]
    for log, rule in sorted(rules.items(), key=lambda item: (item[1], item[0])):
        timing = Path("timings", Path(log).parent.name, f"{Path(log).stem}.tsv")
        if timing.exists():
            usage = read_usage(timing)
            seconds = usage.seconds if usage.cpu_seconds is None else usage.cpu_seconds
            lines.append(f"{rule},{Path(log).stem},{seconds:.1f}")
    with new_file(path) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_recorded(path: Path) -> dict[str, dict[str, float]]:
    """CPU seconds by rule and job, as `write_recorded` wrote them; {} without the file.

    Raises TimingProblem for a file of another form.
    """
    found: dict[str, dict[str, float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    found.setdefault(row["rule"], {})[row["job"]] = float(row["cpu_seconds"])
                except (KeyError, TypeError, ValueError):
                    raise TimingProblem(f"{path}, line {number}: should be rule,job,cpu_seconds") from None
    except FileNotFoundError:
        return {}
    return found


def main() -> None:
    """Run a command (arguments: LOG COMMAND ...), pass signals on, measure it if it succeeds, and exit as it does."""
    log, *command = sys.argv[1:]
    with measured(Path(log)), subprocess.Popen(command) as process:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, frame: process.send_signal(received))
        if status := process.wait():
            sys.exit(status if status > 0 else 128 - status)


if __name__ == "__main__":
    main()

"""The live view of a Snakemake run: `snakemake --logger dreamllm`, which `make tables` uses.

It shows jobs done and running, the share of the expected CPU time that is done, the time left, and the last line of
progress (step, rate, loss) of each running job. A terminal is redrawn every second; a log gets one line a minute.
Expected are the CPU times of the last recorded run (`timings.read_recorded`).

`Run` computes, from Snakemake's events; `LiveView` shows.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any

from dreamllm.progress import read_last

EVERY = 60.0  # seconds between two lines in a log
PRIOR = 60.0  # seconds for which each core is taken to do one expected CPU second per second; then measurements prevail
MOST_UNKNOWN = 0.95  # of a running job without lines of progress, however long it runs
SHOWN = ("Nothing to be done", "Complete log", "Will exit", "Unlock")  # beginnings of messages that are no events


@dataclass(frozen=True)
class Job:
    """A job that has started. name: of its log, without suffix.  begin: on the clock of `time.monotonic`, in seconds"""

    rule: str
    name: str
    log: Path | None
    begin: float


class Run:
    """The state of a run. expected: CPU seconds by rule and job of an earlier run; {} if none is known."""

    def __init__(self, expected: Mapping[str, Mapping[str, float]]) -> None:
        self.expected = expected
        self.counts: dict[str, int] = {}
        self.running: dict[int, Job] = {}
        self.finished: dict[int, Job] = {}
        self.failed: dict[int, Job] = {}
        self.cores = 1
        self.begin = 0.0

    def plan(self, counts: Mapping[str, int], now: float) -> None:
        """Set how many jobs each rule has in this run, those that are done included."""
        self.counts = {rule: count for rule, count in counts.items() if rule != "total"}
        self.begin = self.begin or now

    def start(self, number: int, rule: str, log: list[str], now: float) -> None:
        """A job starts."""
        path = Path(log[0]) if log else None
        self.running[number] = Job(rule, path.stem if path else rule, path, now)

    def finish(self, number: int) -> None:
        """A job has succeeded."""
        if job := self.running.pop(number, None):
            self.finished[number] = job

    def fail(self, number: int) -> None:
        """A job has failed."""
        if job := self.running.pop(number, None):
            self.failed[number] = job

    def weight(self, job: Job) -> float:
        """The expected CPU seconds of a job: its own of the earlier run, or else the mean of its rule or of all."""
        known = self.expected.get(job.rule, {})
        return known[job.name] if job.name in known else self._mean(job.rule, set())

    def total(self) -> float:
        """The expected CPU seconds of the whole run.

        Snakemake tells how many jobs of a rule are still to start, not which: they get the mean of those of the rule
        that have not started yet. Where a whole run is repeated, this is exact.
        """
        started = [*self.finished.values(), *self.failed.values(), *self.running.values()]
        names: dict[str, list[str]] = {}
        for job in started:
            names.setdefault(job.rule, []).append(job.name)
        waiting = {rule: count - len(names.get(rule, ())) for rule, count in self.counts.items()}
        left = (number * self._mean(rule, set(names.get(rule, ()))) for rule, number in waiting.items() if number > 0)
        return sum(map(self.weight, started)) + sum(left)

    def done(self, now: float) -> float:
        """The expected CPU seconds of what is done: finished jobs, and the done part of running ones."""
        parts = [self.weight(job) * self._fraction(job, now) for job in list(self.running.values())]
        return sum(map(self.weight, list(self.finished.values()))) + sum(parts)

    def seconds_left(self, now: float) -> float:
        """What is left, at the rate so far (expected CPU seconds per second)."""
        done, cores = self.done(now), min(self.cores, max(1, sum(self.counts.values())))
        rate = (done + PRIOR * cores) / (now - self.begin + PRIOR)
        return max(0.0, self.total() - done) / rate

    def headline(self, now: float) -> str:
        """One line on the whole run."""
        text = f"{len(self.finished)} of {sum(self.counts.values())} jobs done, {len(self.running)} running"
        if self.failed:
            text += f", {len(self.failed)} failed"
        if self.expected:
            share = 100 * self.done(now) / max(self.total(), 1e-9)
            text += f", {share:.0f} % of the expected CPU time, about {rounded(self.seconds_left(now))} left"
        return text

    def jobs(self, now: float) -> list[tuple[str, str, str]]:
        """Name, time since the start and last line of progress of each running job."""
        lines = []
        for job in list(self.running.values()):
            last = job.log and read_last(job.log)
            lines.append((job.name, str(timedelta(seconds=int(now - job.begin))), last[2] if last else ""))
        return lines

    def summary(self, now: float) -> str:
        """What was done, and what to do next where something is left."""
        number, all_ = len(self.finished), sum(self.counts.values())
        text = f"{number} of {all_} jobs done in {rounded(now - self.begin)}."
        if self.failed:
            logs = ", ".join(str(job.log or job.name) for job in self.failed.values())
            text += f" Failed: {logs}. When the cause is mended, run the same command again: what is done is kept."
        elif number < all_:
            text += " Run the same command again to go on: what is done is kept, trainings go on from their last save."
        return text

    def _mean(self, rule: str, without: set[str]) -> float:
        """The mean of the rule's recorded jobs but these, or else of all of its jobs, or else of all jobs."""
        known = self.expected.get(rule, {})
        values = [value for name, value in known.items() if name not in without] or list(known.values())
        values = values or [value for jobs in self.expected.values() for value in jobs.values()] or [1.0]
        return sum(values) / len(values)

    def _fraction(self, job: Job, now: float) -> float:
        if job.log and (last := read_last(job.log)) and last[1]:
            return min(1.0, last[0] / last[1])
        return min(MOST_UNKNOWN, (now - job.begin) / max(self.weight(job), 1.0))


def rounded(seconds: float) -> str:
    """A duration for people: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class LiveView:
    """Shows a run on stderr, from the records of Snakemake's logger, until `close`."""

    def __init__(self, run: Run) -> None:
        from rich.console import Console
        from rich.live import Live

        self.run = run
        self.console = Console(stderr=True)
        self.closed = threading.Event()
        self.live: Live | None = None
        self.lines: threading.Thread | None = None
        if self.console.is_terminal:
            self.live = Live(console=self.console, get_renderable=self.picture, refresh_per_second=1, transient=True)
        else:
            self.lines = threading.Thread(target=self._write_lines, daemon=True)

    def handle(self, record: LogRecord, text_of: Callable[[LogRecord], str]) -> None:
        """Show what a record of Snakemake's logger changes. text_of: Snakemake's own text for a record"""
        event, now = getattr(record, "event", None), time.monotonic()
        about: dict[str, Any] = vars(record)
        if event == "run_info":
            self.run.plan(about["stats"], now)
            self._start()
        elif event == "resources_info":
            self.run.cores = about.get("cores") or self.run.cores
        elif event == "job_info":
            self.run.start(about["jobid"], about["rule_name"], about["log"], now)
        elif event == "job_finished":
            self.run.finish(about["job_id"])
        elif event == "job_error":
            self.run.fail(about["jobid"])
        is_message = event is None and str(record.msg).startswith(SHOWN)
        if record.levelno >= WARNING or is_message:
            self.console.print(text_of(record), markup=False, highlight=False, soft_wrap=True)

    def picture(self) -> Any:
        """What a terminal shows: the headline, a bar, a line for each running job."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        table = Table.grid()
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row(Text(self.run.headline(now)))
        table.add_row(ProgressBar(self.run.total() or 1, self.run.done(now), width=min(60, self.console.width)))
        jobs = self.run.jobs(now)
        width = max((len(name) for name, _, _ in jobs), default=0)
        for name, elapsed, progress in jobs:
            table.add_row(Text(f"  {name:<{width}}  {elapsed}  {progress}"))
        return table

    def line(self) -> str:
        """What a log shows: the headline and the running jobs, in one line."""
        now = time.monotonic()
        jobs = [f"{name} ({progress})" if progress else name for name, _, progress in self.run.jobs(now)]
        running = f"; {'; '.join(jobs)}" if jobs else ""
        return f"{time.strftime('%H:%M:%S')} {self.run.headline(now)}{running}"

    def close(self) -> None:
        """End the view, and say what was done."""
        if self.closed.is_set():
            return
        self.closed.set()
        if self.live:
            self.live.stop()
        if self.lines and self.lines.is_alive():
            self.lines.join()
        if self.run.counts:
            self.console.print(self.run.summary(time.monotonic()), markup=False, highlight=False, soft_wrap=True)

    def _start(self) -> None:
        if self.live and not self.live.is_started:
            self.live.start()
            self.console.show_cursor(True)  # a killed process would leave it hidden
        if self.lines and not self.lines.is_alive():
            self.lines.start()

    def _write_lines(self) -> None:
        print(self.line(), file=sys.stderr, flush=True)
        while not self.closed.wait(EVERY):
            print(self.line(), file=sys.stderr, flush=True)

"""The live view of a Snakemake run: what it computes, what a terminal and a log show, and a run with it."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from dreamllm import live_view
from dreamllm.live_view import LiveView, Run, rounded
from snakemake_logger_plugin_dreamllm import wrong_configfile

EXPECTED = {
    "train": {"train_sft": 60.0},
    "predict": {"predict_vqa": 10.0, "predict_draw": 20.0},
    "tables": {"tables": 10.0},
}
LINE = "sft: step 30 of 60, 1.31 s/step, 0:00:39 left, loss 0.412\n"


def run_of(counts: dict[str, int], expected=EXPECTED) -> Run:
    run = Run(expected)
    run.plan({**counts, "total": sum(counts.values())}, now=100.0)
    return run


def share(run: Run, now: float) -> float:
    return run.done(now) / run.total()


def test_the_share_of_a_whole_run_is_that_of_the_recorded_cpu_time():
    run = run_of({"train": 1, "predict": 2, "tables": 1})
    assert run.total() == 100 and share(run, 100) == 0
    run.start(1, "train", ["logs/embedded/train_sft.log"], now=100)
    run.finish(1)
    assert share(run, 200) == pytest.approx(0.6)
    run.start(2, "predict", ["logs/embedded/predict_draw.log"], now=200)
    run.finish(2)
    assert run.total() == 100 and share(run, 200) == pytest.approx(0.8)


def test_what_is_not_recorded_counts_as_the_mean_of_its_rule_or_of_all():
    assert run_of({"predict": 3}).total() == 45
    assert run_of({"other": 2}).total() == 50
    run = run_of({"predict": 1})
    run.start(1, "predict", ["logs/embedded/predict_new.log"], now=100)
    assert run.total() == 15
    assert "expected" not in run_of({"other": 2}, {}).headline(100) and run_of({"other": 2}, {}).total() == 2


def test_a_running_job_counts_by_its_steps_or_by_its_time(tmp_path):
    log = tmp_path / "train_sft.log"
    run = run_of({"train": 1, "tables": 1})
    run.start(1, "train", [str(log)], now=100)
    assert run.done(112) == pytest.approx(12)  # as long as it has run
    assert run.done(10_000) == pytest.approx(57)  # never whole before it has ended
    log.write_text(LINE)
    assert run.done(112) == pytest.approx(30)
    assert run.jobs(112) == [("train_sft", "0:00:12", "step 30 of 60, 1.31 s/step, 0:00:39 left, loss 0.412")]


def test_time_left_begins_with_the_recorded_times_and_then_follows_the_machine():
    run = run_of({"train": 1, "predict": 2, "tables": 1})
    run.cores = 2
    assert run.seconds_left(100) == 50
    run.start(1, "train", ["logs/embedded/train_sft.log"], now=100)
    run.finish(1)
    assert run.seconds_left(100 + 600) == pytest.approx(40 / (180 / 660))  # ten times as slow as recorded


def test_durations_are_rounded_for_people():
    assert [rounded(seconds) for seconds in (5, 89, 90, 3600, 12_000)] == [
        "5 s",
        "89 s",
        "2 min",
        "60 min",
        "3 h 20 min",
    ]


def record(event: str | None, message: str = "", level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", level, "", 0, message, None, None)
    vars(made).update(event=event, **fields)
    return made


@pytest.fixture
def view(monkeypatch):
    """A view in a log, whose lines are kept."""
    monkeypatch.setattr(live_view, "EVERY", 0.05)
    view = LiveView(Run(EXPECTED))
    yield view
    view.close()


def events(view: LiveView, log: Path) -> None:
    for one in (
        record(None, "Building DAG of jobs..."),
        record("resources_info", cores=2),
        record("run_info", stats={"train": 1, "tables": 1, "total": 2}),
        record("job_info", jobid=1, rule_name="train", log=[str(log)]),
    ):
        view.handle(one, logging.LogRecord.getMessage)


def test_a_log_gets_lines_on_the_whole_run_and_its_jobs(view, tmp_path, capsys):
    log = tmp_path / "train_sft.log"
    log.write_text(LINE)
    events(view, log)
    assert view.line()[9:] == (
        "0 of 2 jobs done, 1 running, 43 % of the expected CPU time, about 16 s left; "
        "train_sft (step 30 of 60, 1.31 s/step, 0:00:39 left, loss 0.412)"
    )
    view.closed.wait(0.3)
    view.handle(record("job_error", "train failed: its log", logging.ERROR, jobid=1), logging.LogRecord.getMessage)
    view.handle(record(None, "Complete log(s): x.log"), logging.LogRecord.getMessage)
    view.close()
    lines = capsys.readouterr().err.splitlines()
    assert (
        "Building" not in "".join(lines) and len([line for line in lines if "0 of 2 jobs done, 1 running" in line]) > 1
    )
    messages = [line for line in lines if " running, " not in line]
    assert messages[-3:-1] == ["train failed: its log", "Complete log(s): x.log"]
    assert lines[-1].startswith("0 of 2 jobs done in 0 s. Failed: ") and "train_sft.log. When the cause" in lines[-1]


def test_a_terminal_gets_a_line_for_each_job_cut_to_its_width(view, tmp_path):
    log = tmp_path / "train_sft.log"
    log.write_text(LINE)
    events(view, log)
    view.console = Console(file=io.StringIO(), force_terminal=True, width=50, color_system=None)
    view.console.print(view.picture())
    lines = view.console.file.getvalue().splitlines()
    assert len(lines) == 3 and all(len(line) <= 50 for line in lines)
    assert lines[0].startswith("0 of 2 jobs done, 1 running") and "  train_sft  0:00:00  step 30 of 60" in lines[2]


def test_an_unfinished_run_says_how_to_go_on():
    run = run_of({"tables": 1})
    assert "Run the same command again" in run.summary(now=101)
    run.start(1, "tables", [], now=100)
    run.finish(1)
    assert run.summary(now=101) == "1 of 1 jobs done in 1 s."


SNAKEFILE = """
    rule tables:
        input: "a"
        output: "b"
        log: "logs/run/tables.log"
        shell: "echo a reason > {log}; exit 1"
    rule first:
        output: "a"
        shell: "touch {output}"
"""


def test_a_run_of_snakemake_shows_the_view_and_the_log_of_what_failed(tmp_path):
    (tmp_path / "Snakefile").write_text(textwrap.dedent(SNAKEFILE))
    command = [sys.executable, "-m", "snakemake", "--logger", "dreamllm", "--show-failed-logs", "--cores", "1", "b"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 1 and not shown.stdout
    assert "0 of 2 jobs done, 0 running" in shown.stderr and "a reason" in shown.stderr
    assert "1 of 2 jobs done" in shown.stderr and "Failed: logs/run/tables.log" in shown.stderr.splitlines()[-1]
    assert "rule first" not in shown.stderr
    [complete] = (tmp_path / ".snakemake/log").glob("*.log")
    assert "rule first" in complete.read_text()


def test_a_configuration_that_does_not_exist_is_named_with_those_that_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/mine.yaml").touch()
    told = wrong_configfile(["--cores", "1", "--configfile=mein.yaml", "results/tables"])
    assert told == "snakemake: --configfile: mein.yaml: no such file; configurations: config/mine.yaml"
    assert wrong_configfile(["--configfile=config"]) == told.replace("mein.yaml", "config")
    told = wrong_configfile(["--configfile", "config/mine.yaml", "results/tables", "-n"])
    assert "results/tables: no such file; before a target write --configfile=FILE, with the equals sign" in told
    assert wrong_configfile(["--configfile=config/mine.yaml", "results/tables"]) is None
    assert wrong_configfile(["--configfile", "config/mine.yaml", "--", "results/tables"]) is None

"""Every job writes down its wall time, CPU time and peak memory, with the processes it started."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dreamllm import cli
from dreamllm.emoji import world
from dreamllm.timings import COLUMNS, TimingProblem, Usage, measured, read_recorded, read_usage, write_recorded

LOG = Path("logs/run/job.name.log")
BUSY = "import time; block = b'x' * (200 << 20); end = time.process_time() + 1\nwhile time.process_time() < end: pass"


def test_a_command_is_measured_to_its_end_with_its_children(tmp_path):
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}], check=True)"
    command = [sys.executable, "-m", "dreamllm.timings", str(LOG), sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, check=True)
    usage = read_usage(tmp_path / "timings/run/job.name.tsv")
    assert 1 <= usage.cpu_seconds < 10 and usage.seconds >= 1
    assert 200 < usage.memory_mb < 400
    header, values = (tmp_path / "timings/run/job.name.tsv").read_text().splitlines()
    assert tuple(header.split("\t")) == COLUMNS and len(values.split("\t")) == len(COLUMNS)


@pytest.mark.parametrize(
    ("program", "status"), [("raise SystemExit(3)", 3), ("import os\nos.kill(os.getpid(), 15)", 143)]
)
def test_a_command_that_fails_is_not_measured_and_its_status_is_kept(tmp_path, program, status):
    command = [sys.executable, "-m", "dreamllm.timings", str(LOG), sys.executable, "-c", program]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == status
    assert not (tmp_path / "timings").exists()


def test_a_signal_reaches_the_measured_command(tmp_path):
    program = """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    """
    command = [sys.executable, "-m", "dreamllm.timings", str(LOG), sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, cwd=tmp_path, check=False, timeout=50).returncode == 5


def test_a_verb_measures_itself_when_it_is_a_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(world, "main", lambda arguments: None)
    verb = ["make-world", "--config", "c", "--out", "o"]
    cli.main(verb)
    assert not (tmp_path / "timings").exists()
    cli.main(["--job", str(LOG), *verb])
    assert read_usage(tmp_path / "timings/run/job.name.tsv").cpu_seconds > 0
    with pytest.raises(ValueError, match="a failure"), measured(Path("logs/run/other.log")):
        raise ValueError("a failure")
    assert not (tmp_path / "timings/run/other.tsv").exists()


def test_what_is_not_measured_is_none(tmp_path):
    (tmp_path / "job.tsv").write_text("s\tmax_rss\tcpu_time\n0.4\tNA\tNA\n")
    assert read_usage(tmp_path / "job.tsv") == Usage(0.4, None, None)


def test_what_jobs_used_is_recorded_by_rule_and_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header = "\t".join(COLUMNS)
    for name, cpu in (("train_sft", "61.25"), ("tables", "NA")):
        file = tmp_path / f"timings/embedded/{name}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{header}\n7.5\t0:00:07\t100\tNA\tNA\tNA\tNA\tNA\t90\t{cpu}\n")
    rules = {f"logs/embedded/{name}.log": name for name in ("train_sft", "tables", "without_timing")}
    path = tmp_path / "recorded/timings.csv"
    write_recorded(path, rules)
    assert read_recorded(path) == {"tables": {"tables": 7.5}, "train_sft": {"train_sft": 61.2}}
    assert read_recorded(tmp_path / "none.csv") == {}
    path.write_text("rule,job,cpu_seconds\ntables,tables,many\n")
    with pytest.raises(TimingProblem, match=r"timings.csv, line 2: should be rule,job,cpu_seconds"):
        read_recorded(path)

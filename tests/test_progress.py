"""Progress of a long loop: lines in a log, seldom enough to be read, and read by the live view of a run."""

from __future__ import annotations

import pytest

from dreamllm import progress
from dreamllm.progress import Progress, counted, read_last


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_the_first_and_the_last_step_and_a_line_every_30_seconds(clock, capsys):
    with Progress("sft", 100) as bar:
        for step in range(100):
            clock[0] += 1
            bar.update(step + 1, {"loss": 1 / (step + 1)})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "sft: step 1 of 100, 1 s/step, 0:01:39 left, loss 1",
        "sft: step 31 of 100, 1 s/step, 0:01:09 left, loss 0.0323",
        "sft: step 61 of 100, 1 s/step, 0:00:39 left, loss 0.0164",
        "sft: step 91 of 100, 1 s/step, 0:00:09 left, loss 0.011",
        "sft: step 100 of 100, 1 s/step, 0:00:00 left, loss 0.01",
    ]


def test_a_resumed_loop_has_the_rate_of_its_own_steps(clock, capsys):
    with Progress("sft", 20, first=10) as bar:
        clock[0] += 2
        bar.update(11)
    assert capsys.readouterr().err == "sft: step 11 of 20, 2 s/step, 0:00:18 left\n"


def test_a_process_that_is_told_to_is_silent(capsys):
    with Progress("sft", 2, disable=True) as bar:
        bar.update(2)
    assert not capsys.readouterr().err


def test_a_terminal_gets_a_bar_with_the_values(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("sft", 2) as bar:
        bar.update(1, {"loss": 0.5})
        bar.update(2, {"loss": 0.25})
    assert "2/2" in (shown := capsys.readouterr().err) and "loss=0.25" in shown and "step 1 of" not in shown


def test_the_last_line_of_progress_is_found_at_the_end_of_a_long_log(tmp_path, capsys):
    assert list(counted("features", 3, "batch")) == [0, 1, 2]
    lines = capsys.readouterr().err
    log = tmp_path / "log"
    log.write_text("stage sft: comprehension\n" + "x: y\n" * 5000 + lines + "a warning: step by step\n")
    done, total, text = read_last(log)
    assert (done, total) == (3, 3) and text.startswith("batch 3 of 3, ")
    log.write_text("stage sft: comprehension, loss = 1 language\n")
    assert read_last(log) is None and read_last(tmp_path / "none") is None

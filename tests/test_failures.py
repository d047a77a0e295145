"""The page of failures: the first items with the score 0 of the final model, in the order of the benchmark."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import finished_run
from dreamllm.evaluate import predictions, tasks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.repro.report import failures, site
from dreamllm.repro.report.report import Report, gather
from dreamllm.results.claims import read_items
from test_site import Elements

SPLIT = "test"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A finished run without scores of single items."""
    root = finished_run.write(tmp_path_factory.mktemp("run"))
    return gather(root, Path("config/smoke.yaml"), root / "paper", finished_run.metrics(root), [])


@pytest.fixture
def root(report: Report) -> Path:
    """Its folder, for the scores of one test."""
    shutil.rmtree(report.run.root / "results/items", ignore_errors=True)
    (report.run.root / "results/items/smoke").mkdir(parents=True)
    return report.run.root


def items_of(root: Path, benchmark: str) -> list[Any]:
    return tasks.load(benchmark, root / "data/emoji_smoke/benchmarks", SPLIT)


def predicted(root: Path, benchmark: str, **fields: Any) -> None:
    """Write predictions of the final model, every record with these fields, and its prompt."""
    suffix = tasks.about(benchmark).predictions
    records = [
        {"id": item.id, "prompt": f"<image> {getattr(item, 'question', '')}", **fields}
        for item in items_of(root, benchmark)
    ]
    header = {"model": "sft", "benchmark": benchmark, "split": SPLIT}
    images = {"0.png": Image.new("RGB", (48, 48), "red")} if suffix == "tar" else None
    predictions.write(root / f"results/predictions/smoke/sft/{benchmark}.{suffix}", header, records, images)


def scored(root: Path, benchmark: str, **wrong: list[str]) -> Path:
    """Write scores of single items: 0 in a metric for the ids that are given, else 1."""
    ids = [item.id for item in items_of(root, benchmark)]
    scores = {metric: {id_: float(id_ not in of_metric) for id_ in ids} for metric, of_metric in wrong.items()}
    return write_scores(root, benchmark, scores)


def write_scores(root: Path, benchmark: str, scores: dict[str, dict[str, float]]) -> Path:
    path = root / f"results/items/smoke/sft/{benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"model": "sft", "benchmark": benchmark, "split": SPLIT, "items": scores, "groups": {}}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(report: Report) -> Report:
    """The run with the scores that were written."""
    return replace(report, items=read_items([report.run.root / "results/items/smoke"]))


def found(report: Report) -> failures.Failures:
    """The failures in the only benchmark that has scores."""
    (one,) = failures.failures(read(report), report.run.root / "page")
    return one


def test_wrong_images_are_shown_in_the_order_of_the_set_with_what_is_wrong(report: Report, root: Path) -> None:
    scored(root, "draw", all=["4", "1", "2"], object=["1"], colour=["1"], bind=["1", "4"], all_judge2=["1", "4"])
    one = found(report)
    assert (one.wrong, one.total, len(one.shown)) == (3, 6, 3)
    assert [[panel.image.alt for panel in failure.panels] for failure in one.shown] == [
        [f"expected, item {id_}", f"generated, item {id_}"] for id_ in ("1", "2", "4")
    ]
    notes = [failure.note for failure in one.shown]
    assert notes[0].endswith("wrong: objects, colours")
    assert notes[1].endswith("wrong: background, places or number · right by the second scene classifier")
    assert notes[2].endswith("wrong: which object has which colour")
    scene = items_of(root, "draw")[1].scene
    assert notes[0].startswith(f"{scene.kind} · held-out combination" if scene.held_out else f"{scene.kind} · wrong")


def test_only_the_first_are_shown_and_all_are_counted(
    report: Report, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "SHOWN", 2)
    scored(root, "draw", all=["0", "3", "5"])
    one = found(report)
    assert (one.wrong, len(one.shown)) == (3, 2)
    assert [failure.panels[0].image.alt for failure in one.shown] == ["expected, item 0", "expected, item 3"]


def test_a_story_is_wrong_by_its_images_or_their_places(report: Report, root: Path) -> None:
    """The finished run's stories have one image: after the first text, before the last."""
    ids = [item.id for item in items_of(root, "stories")]
    write_scores(
        root,
        "stories",
        {
            "placement": {id_: float(id_ != ids[0]) for id_ in ids},
            "all": {f"{id_}-0": float(id_ != ids[2]) for id_ in ids},
        },
    )
    one = found(report)
    assert (one.wrong, one.total) == (2, 3)
    misplaced, wrong_image = one.shown
    assert misplaced.note == "an image is missing, doubled or misplaced" and wrong_image.note == ""
    assert [panel.wrong for panel in misplaced.panels] == [False] and [p.wrong for p in wrong_image.panels] == [True]
    assert wrong_image.texts == {"without an image": "the end"}


@pytest.mark.parametrize(("benchmark", "metric"), [("captions", "exact"), ("vqa", "accuracy"), ("pope", "accuracy")])
def test_answers_stand_beside_what_was_expected(report: Report, root: Path, benchmark: str, metric: str) -> None:
    predicted(root, benchmark, output="")
    item = items_of(root, benchmark)[2]
    scored(root, benchmark, **{metric: [item.id]})
    (failure,) = found(report).shown
    expected = {"captions": "references", "vqa": "answers"}.get(benchmark)
    expected = getattr(item, expected)[0] if expected else item.label
    assert failure.texts == {"expected": expected, "answered": "(nothing)"}
    assert failure.asked == getattr(item, "question", "(an image alone)")
    assert [panel.words for panel in failure.panels] == ["given"]


def test_in_context_the_given_images_come_first(report: Report, root: Path) -> None:
    predicted(root, "in_context", image="0.png")
    items = items_of(root, "in_context")
    scored(root, "in_context", all=[item.id for item in items])
    for item, failure in zip(items, found(report).shown, strict=True):
        assert [panel.words for panel in failure.panels] == [*["given"] * len(item.shown), "expected", "generated"]


def test_scores_of_other_items_are_refused(report: Report, root: Path) -> None:
    path = scored(root, "draw", all=["1"])
    path.write_text(path.read_text().replace('"5": 1.0', '"6": 1.0'))
    with pytest.raises(BenchmarkProblem, match=r"draw.tar: results/items has all of other items; score these"):
        found(report)
    scored(root, "draw", all=["1"])
    path.write_text(path.read_text().replace('"all": {', '"object": [0], "all": {'))
    with pytest.raises(BenchmarkProblem, match="field 'object' should be dict, it is list"):
        found(report)


def test_the_pages_lead_to_each_other_and_show_models_text_as_text(report: Report, root: Path) -> None:
    predicted(root, "captions", output=finished_run.HOSTILE)
    scored(root, "captions", exact=["1"])
    folder = root / "page"
    pages = site.pages(read(report), folder)
    first, page = Elements(pages["index.html"]).found, Elements(pages["failures.html"]).found
    assert [about.get("href") for _, about in first].count("failures.html") == 2, "in the navigation and in the text"
    anchors = {about["href"] for _, about in first if "failures.html#" in (about.get("href") or "")}
    assert anchors == {"failures.html#captions"} and "captions" in {about.get("id") for _, about in page}
    assert "index.html" in {about.get("href") for _, about in page}
    assert "1 of 6 wrong" in pages["failures.html"] and "alert(&#34;x&#34;)" in pages["failures.html"]
    assert not [tag for tag, _ in page if tag == "script"]
    assert not [name for _, about in page for name in about if name.startswith("on") or name == "style"]
    images = [about for tag, about in page if tag == "img"]
    assert images and all(about["alt"] and (folder / str(about["src"])).is_file() for about in images)


def test_the_first_page_opens_with_images_and_a_story_of_the_final_model(report: Report, root: Path) -> None:
    assert report.final_model == "sft"
    pages = site.pages(report, root / "page")
    assert pages.keys() == {"index.html"} and "failures.html" not in pages["index.html"], "without item scores"
    opening, _, rest = pages["index.html"].partition('<section id="claims">')
    assert rest and opening.count("sft for: ") == 6 and opening.count('<article class="story') == 1

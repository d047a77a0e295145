"""Tables and figures from hand-made metrics and predictions."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamllm.data.emoji import Scene, render
from dreamllm.data.world import write_benchmarks
from dreamllm.evaluate import benchmarks, predictions
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.experiment import World
from dreamllm.results import figures, tables
from dreamllm.results.cells import TABLES

PAPER = Path(__file__).parents[1] / "paper"
TABLE = {table.name: table for table in TABLES}


def metrics_file(path: Path, model: str, benchmark: str, **values: float | None) -> Path:
    """A metrics file in which every group has the same metrics as the whole."""
    metrics = {
        name: {"value": value, "n": 40, "low": value - 0.1, "high": value + 0.05}
        if value is not None
        else {"value": None, "n": 0, "low": None, "high": None, "reason": "nobody said yes"}
        for name, value in values.items()
    }
    groups = dict.fromkeys(["random", "popular", "adversarial", "piqa", "boolq", "seen"], metrics)
    content = {"model": model, "benchmark": benchmark, "split": "test", "metrics": metrics, "groups": groups}
    path.write_text(json.dumps(content | {"protocol": {"n": 40}}))
    return path


def blocks(name: str, *files: Path) -> list[tables.Block]:
    table = TABLE[name]
    published = tables.read_published(PAPER / f"table{table.paper}.csv") if table.paper else {}
    return tables.fill(table, tables.read_metrics(files), published)


def cell(block: tables.Block, row: str, column: str) -> tables.Cell:
    return dict(block.rows)[row][block.columns.index(column)]


# ---- published numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [table for table in TABLES if table.paper], ids=lambda table: table.name)
def test_published_tables_are_whole_and_have_the_columns_that_ours_point_to(table: tables.Table) -> None:
    rows = tables.read_published(PAPER / f"table{table.paper}.csv")
    wanted = {column.paper for column in table.columns if column.paper}
    for label, cells in rows.items():
        assert cells.keys() == wanted, label
        for line in cells.values():
            assert line["table"] == str(table.paper)
            assert line["confidence"] in ("C", "S", "D") or not line["value"]
            assert line["source"] or not line["value"]


def test_some_published_numbers() -> None:
    assert tables.read_published(PAPER / "table1.csv")["DreamLLM-7B"]["VQAv2"]["value"] == "56.6"
    assert tables.read_published(PAPER / "table2.csv")["DreamLLM-7B"]["MS-COCO"]["value"] == "8.46"
    assert tables.read_published(PAPER / "table7.csv")["adversarial / DreamLLM-7B"]["F1"]["value"] == "76.47"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("1,A,B,5,C,pdf,\n1,A,B,6,C,pdf,\n", "cell A, B occurs twice"),
        ("1,A,B,,,,\n", "cell A, B is empty and does not say why"),
    ],
)
def test_broken_published_tables(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "table1.csv"
    path.write_text("table,row,column,value,confidence,source,note\n" + lines)
    with pytest.raises(BenchmarkProblem, match=words):
        tables.read_published(path)
    path.write_text("row,value\n")
    with pytest.raises(BenchmarkProblem, match="line 1: should have the columns"):
        tables.read_published(path)


# ---- filling -------------------------------------------------------------------------------------------------------


def test_cells_are_in_display_units_with_interval_and_n(tmp_path: Path) -> None:
    ours = blocks(
        "table2", metrics_file(tmp_path / "m", "sft", "draw", fid=0.5, object=0.8, colour=0.9, bind=0.7, all=0.6)
    )[0]
    fid, whole = (cell(ours, "DreamLLM, final", name) for name in ("FID (cf. MS-COCO)", "whole scene"))
    assert (fid.text, fid.interval, fid.n) == ("0.500", ("0.400", "0.550"), 40)
    assert (whole.text, whole.interval) == ("60.0", ("50.0", "65.0"))
    assert whole.measured == pytest.approx((60, 50, 65))


def test_an_empty_cell_says_why(tmp_path: Path) -> None:
    pope = metrics_file(tmp_path / "m", "sft", "pope", accuracy=0.5, precision=None, recall=0.5, f1=0.5, yes=0.5)
    ours, paper = blocks("table7", pope)
    assert cell(ours, "random / DreamLLM, final", "precision").note == "nobody said yes"
    missing = cell(ours, "random / DreamLLM, comprehension-only", "accuracy")
    assert (missing.text, missing.note) == ("", "no run of model comprehension_only on benchmark pope")
    assert cell(paper, "popular / DreamLLM-7B", "F1").note == "not found in any source read"
    assert "does not draw" in cell(blocks("table3")[0], "comprehension-only", "FID (cf. MS-COCO FID)").note
    sd = metrics_file(tmp_path / "sd", "sd", "draw", fid=0.5)
    assert cell(blocks("scenes", sd)[0], "all seen", "drawn, Stable Diffusion").note == (
        "the results on benchmark draw have no all of group seen"
    )


def test_metrics_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    one, two = (metrics_file(tmp_path / name, "sft", "vqa", accuracy=0.5) for name in "ab")
    with pytest.raises(BenchmarkProblem, match="b: is a second file of model sft on vqa"):
        tables.read_metrics([one, two])
    two.write_text(two.read_text().replace('"sft"', '"igpt"').replace('"test"', '"dev"'))
    with pytest.raises(BenchmarkProblem, match="b: is of split dev, other files are of test"):
        tables.read_metrics([one, two])
    two.write_text('{"model": "sft"}')
    with pytest.raises(BenchmarkProblem, match="b: has no field 'benchmark'"):
        tables.read_metrics([two])


# ---- forms ---------------------------------------------------------------------------------------------------------


def test_all_tables_are_written_in_three_forms_and_twice_the_same(tmp_path: Path) -> None:
    files = [
        metrics_file(tmp_path / "a", "sft", "vqa", accuracy=0.5),
        metrics_file(tmp_path / "b", "llm", "language", accuracy=0.5),
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "old.md").write_text("from another run")
    for name in ("one", "two"):
        tables.main(argparse.Namespace(metrics=files, paper=PAPER, out=tmp_path / name))
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1]
    assert contents[0].keys() == {f"{name}.{form}" for name in TABLE for form in ("csv", "md", "tex")} | {"README.md"}
    for name, table in TABLE.items():
        assert f"({name}.md)" in contents[0]["README.md"].decode()
        assert ("worlds differ" in contents[0][f"{name}.md"].decode()) == bool(table.paper)


def test_tables_without_any_run_are_written_too(tmp_path: Path) -> None:
    tables.main(argparse.Namespace(metrics=[], paper=PAPER, out=tmp_path / "out"))
    assert "no run of model sft on benchmark vqa" in (tmp_path / "out" / "table1.md").read_text()


def test_the_csv_has_a_line_per_cell_and_our_numbers_in_full(tmp_path: Path) -> None:
    filled = blocks("table4", metrics_file(tmp_path / "m", "llm", "language", accuracy=2 / 3))
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(TABLE["table4"], filled))))
    assert len(lines) == sum(len(block.rows) * len(block.columns) for block in filled)
    first = lines[0]
    assert (first["source"], first["row"], first["column"]) == ("ours", "language model alone", "PIQA")
    assert (first["value"], first["n"]) == ("66.6667", "40")
    assert {line["source"] for line in lines} == {"ours", "paper"}


def test_markdown_rows_have_as_many_cells_as_their_header_and_all_footnotes_exist(tmp_path: Path) -> None:
    file = metrics_file(tmp_path / "m", "sft", "captions", cider=5.0, exact=0.5, object=0.5, colour=0.5, bind=0.5)
    for name in TABLE:
        text = tables.to_markdown(TABLE[name], blocks(name, file))
        for part in text.split("**")[2::2]:
            widths = {line.count("|") for line in part.splitlines() if line.startswith("|")}
            assert len(widths) <= 1, name
        marks = set(re.findall(r"<sup>(\w)</sup> \|", text))
        assert marks == set(re.findall(r"^<sup>(\w)</sup>", text, re.MULTILINE)), name
    assert "500.0 <sub>490.0–505.0</sub>" in tables.to_markdown(TABLE["table1"], blocks("table1", file))


def test_published_numbers_of_one_source_are_marked() -> None:
    text = tables.to_markdown(TABLE["table2"], blocks("table2"))
    assert "| SDv2.1 fine-tuned | 11.91† | 25.35† |" in text
    assert "| DreamLLM-7B | 8.46 | 20.53 |" in text


def test_latex_is_escaped_and_balanced() -> None:
    for name in TABLE:
        text = tables.to_latex(TABLE[name], blocks(name))
        assert text.count("{") == text.count("}")
        for environment in ("table", "tabular", "adjustbox"):
            assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") > 0
        assert not re.search(r"(?<!\\)[%#_]", text.split("\n", 1)[1].replace(rf"\label{{tab:{name}}}", ""))
        for character in "†‡–*":
            assert character not in text.replace("B*", "")


# ---- figures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmarks, losses of two stages, drawings of a perfect model and its stories."""
    folder = tmp_path_factory.mktemp("drawn")
    counts = {"pictures": 12, "draw": 12, "stories": 2, "language": 1}
    write_benchmarks(World(picture_side=48, benchmarks=counts), "test", folder)
    for stage, columns in (("align", "{0},,{1}"), ("sft", "{0},{1},{1}")):
        lines = [columns.format(step, 1 / step) for step in range(1, 40)]
        (folder / f"{stage}.csv").write_text("\n".join(["step,language_loss,diffusion_loss", *lines]) + "\n")
    items = benchmarks.load("draw", folder, "test")
    images = {f"{item.id}.png": render(Scene.from_json(item.scene.scene), 48) for item in items}
    records = [{"id": item.id, "prompt": item.prompt, "image": f"{item.id}.png"} for item in items]
    predictions.write(folder / "draw.tar", {"model": "sft", "benchmark": "draw", "split": "test"}, records, images)
    told = [{"text": "then"}, {"image": "0.png"}, {"text": "the end."}]
    records = [{"id": "0", "prompt": "a cat.", "parts": told}, {"id": "1", "prompt": "no picture.", "parts": []}]
    header = {"model": "sft", "benchmark": "stories", "split": "test"}
    predictions.write(folder / "told.tar", header, records, {"0.png": Image.new("RGB", (48, 48), "red")})
    return folder


def test_equal_data_give_equal_bytes(drawn: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        losses = [f"{stage}={drawn / stage}.csv" for stage in ("align", "sft")]
        chosen = {"losses": losses, "drawings": [drawn / "draw.tar"], "stories": drawn / "told.tar"}
        figures.main(argparse.Namespace(**chosen, benchmarks=drawn, out=tmp_path / name))
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == sorted(f"{n}.{s}" for n in ("learning_curves", "drawings", "stories") for s in ("png", "pdf"))
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    pdf = (tmp_path / "one" / "learning_curves.pdf").read_bytes()
    assert b"FontFile2" in pdf
    assert b"CreationDate" not in pdf


def test_the_grid_shows_each_kind_of_scene_with_a_held_out_one() -> None:
    scenes = [(kind, held_out) for kind in ("single", "pair") for held_out in (False, False, False, True, True)]
    items = [
        benchmarks.DrawItem(str(number), "", "", benchmarks.SceneRecord({}, kind, held_out))
        for number, (kind, held_out) in enumerate(scenes)
    ]
    assert [item.id for item in figures.choose(items)] == ["0", "1", "3", "5", "6", "8"]


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert figures.smooth(np.full(90, 2.0)) == pytest.approx(np.full(90, 2.0))
    assert figures.smooth(np.array([0.0, 1.0, 2.0])) == pytest.approx([0.5, 1.0, 1.5])


def test_losses_may_lack_one_kind_and_are_named_where_they_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,loss\n1,2\n")
    with pytest.raises(
        BenchmarkProblem, match=r"losses.csv, line 1: should have the columns step and language_loss or"
    ):
        figures.read_losses(path)
    path.write_text("step,diffusion_loss\n1,0.5\n")
    assert np.isnan(figures.read_losses(path)["language_loss"]).all()
    path.write_text("step,language_loss,diffusion_loss\n1,much,\n")
    with pytest.raises(BenchmarkProblem, match="could not convert string to float: 'much'"):
        figures.read_losses(path)


def test_a_model_that_drew_less_than_the_benchmark_is_not_shown_as_if_it_had(drawn: Path, tmp_path: Path) -> None:
    whole = predictions.read(drawn / "draw.tar")
    records = list(whole.records.values())[:-1]
    predictions.write(tmp_path / "less.tar", whole.header, records, {})
    with pytest.raises(BenchmarkProblem, match="1 of 12 items have no prediction"):
        figures.drawings([predictions.read(tmp_path / "less.tar")], drawn)

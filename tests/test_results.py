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

from dreamllm.config.reading import ConfigProblem
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.results import metrics_store, render, table_spec, tables

PAPER = Path(__file__).parents[1] / "paper"
TABLE = table_spec.read_tables(PAPER / "tables.yaml")
PUBLISHED = table_spec.read_published(PAPER)


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
    protocol = {"n": 40, "settings": {"prompts": "emoji", "text": {"num_beams": 1}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"protocol": protocol}))
    return path


def blocks(name: str, *files: Path) -> list[render.Block]:
    return tables.fill(TABLE[name], metrics_store.read_runs(files), PUBLISHED)


def cell(block: render.Block, row: str, column: str) -> render.Cell:
    return dict(block.rows)[row][block.columns.index(column)]


# ---- published numbers ---------------------------------------------------------------------------------------------


def test_published_numbers_have_what_is_needed_to_trust_them() -> None:
    for one in PUBLISHED.values():
        assert one.confidence in ("C", "S", "Q", "D") or not one.value, one.id
        assert (one.source and one.protocol) or not one.value, one.id
        assert one.value in ("", "yes", "no") or np.isfinite(float(one.value)), one.id
        assert not one.n or int(one.n) > 0


def test_derived_numbers_of_pope_follow_from_whole_answers() -> None:
    """Published percentages allow one pair of counts alone: true yes of 1500, false yes of the rest."""
    value = {id_: one.value for id_, one in PUBLISHED.items() if id_.startswith("table7.")}

    def percentages(true: int, false: int, absent: int) -> dict[str, float]:
        rates = {"accuracy": (true + absent - false) / (1500 + absent), "precision": true / (true + false)}
        rates |= {"recall": true / 1500, "f1": 2 * true / (true + false + 1500)}
        return {name: 100 * rate for name, rate in (rates | {"yes": (true + false) / (1500 + absent)}).items()}

    for row, counts, tolerance in (
        ("adversarial_dreamllm_7b", (1334, 655, 1500), 0.005),
        ("random_dreamllm_7b", (1319, 216, 1410), 0.01),  # its precision and F1 are cut off, not rounded
        ("adversarial_instructblip_14b", (1427, 764, 1500), 0.01),
    ):
        for name, percentage in percentages(*counts).items():
            assert float(value[f"table7.{row}.{name}"]) == pytest.approx(percentage, abs=tolerance), (row, name)
    one = PUBLISHED["table7.adversarial_dreamllm_7b.yes"]
    assert (one.value, one.confidence) == ("66.30", "D") and "derived" in one.note
    assert PUBLISHED["table7.popular_instructblip_14b.f1"].confidence == "Q"
    assert PUBLISHED["table7.random_dreamllm_7b.f1"].n == "2910"


def test_tables_1_to_10_are_there_and_whole() -> None:
    papers = {table.paper for table in TABLE.values()}
    assert {"1", "2", "3", "4", "5", "6", "7", "8", "9a", "9b", "10"} <= papers
    for table in TABLE.values():
        ids = {id_ for id_ in PUBLISHED if id_.startswith(f"{table.id}.")}
        assert bool(ids) == bool(table.paper)
        rows, columns = ({id_.split(".")[part] for id_ in ids} for part in (1, 2))
        assert len(ids) == len(rows) * len(columns), table.id


@pytest.mark.parametrize("table", TABLE.values(), ids=list(TABLE))
def test_what_points_to_the_paper_points_to_a_cell_that_is_there(table: table_spec.Table) -> None:
    names = [(one.row, one.column) for id_, one in PUBLISHED.items() if id_.startswith(f"{table.id}.")]
    assert {row.paper for row in table.rows if row.paper} <= {row for row, _ in names}
    assert {column.paper for column in table.columns if column.paper} <= {column for _, column in names}


def test_some_published_numbers() -> None:
    values = {
        "table1.dreamllm_7b.vqav2": "56.6",
        "table1.dreamllm_7b_star.mm_vet": "36.6",
        "table2.dreamllm_7b.ms_coco": "8.46",
        "table5.dreamllm_7b.rr": "60.9",
        "table7.adversarial_dreamllm_7b.f1": "76.47",
        "table9a.32_queries.ms_coco": "9.56",
        "table9b.50_steps.dreamllm": "3.65",
        "table10.rewrite_then_generate.ms_coco": "11.91",
        "human.dreamllm_7b.supported": "60.68",
        "interleaved.stable_diffusion.fid": "74.77",
    }
    assert {id_: PUBLISHED[id_].value for id_ in values} == values
    assert PUBLISHED["table6.dreamllm_7b.math"].note == "not found in any source read"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("table1.a.b,1,A,B,5,,,C,pdf,\ntable1.a.b,1,A,B,6,,,C,pdf,\n", "cell table1.a.b occurs twice"),
        ("table1.a.b,1,A,B,,,,,,\n", "cell table1.a.b is empty and does not say why"),
        ("table1.a.c,1,A,B,5,,,C,pdf,\n", "has the id table1.a.c, row and column make it table1.a.b"),
    ],
)
def test_broken_published_tables(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "table1.csv"
    path.write_text("id,table,row,column,value,n,protocol,confidence,source,note\n" + lines)
    with pytest.raises(BenchmarkProblem, match=words):
        table_spec.read_published(tmp_path)
    path.write_text("row,value\n")
    with pytest.raises(BenchmarkProblem, match="line 1: should have the columns"):
        table_spec.read_published(tmp_path)


def test_a_wrong_key_of_the_layout_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text("t: {title: T, about: A, columns: [{header: H, measures: a/b}], rows: [{label: L}]}\nu: 1\n")
    with pytest.raises(ConfigProblem, match=r"t.columns.0.measures: Extra inputs"):
        table_spec.read_tables(path)
    path.write_text("t: {title: T, about: A, columns: [{header: H}, {header: h}], rows: [{label: L}]}\n")
    with pytest.raises(ConfigProblem, match="two cells would have the same id: column h stands twice"):
        table_spec.read_tables(path)


# ---- filling -------------------------------------------------------------------------------------------------------


def test_cells_are_in_display_units_with_interval_and_n(tmp_path: Path) -> None:
    ours = blocks("table2", metrics_file(tmp_path / "m", "sft", "draw_human", fid=0.5, all=0.6))[0]
    names = ("FID, human sentences (cf. MS-COCO)", "whole scene, human sentences")
    fid, whole = (cell(ours, "DreamLLM, final", name) for name in names)
    assert (fid.text, fid.interval, fid.n) == ("0.500", ("0.400", "0.550"), 40)
    assert (whole.text, whole.interval) == ("60.0", ("50.0", "65.0"))
    assert whole.measured == pytest.approx((60, 50, 65))


def test_a_stand_in_is_in_no_row_with_a_published_number(tmp_path: Path) -> None:
    ours, beside, paper = blocks("table1", metrics_file(tmp_path / "m", "sft", "captions", cider=5.0, exact=0.5))
    stand_in = cell(ours, "DreamLLM, final", "caption CIDEr (cf. COCO)")
    assert (stand_in.id, stand_in.miniature, stand_in.difference) == ("table1.dreamllm_7b.coco", True, None)
    assert beside.rows == [] and "nothing was measured on the paper's own benchmarks" in beside.note
    lines = list(csv.DictReader(io.StringIO(render.to_csv(TABLE["table1"], [ours, beside, paper]))))
    assert {line["paper"] + line["difference"] for line in lines if line["world"] == "miniature"} == {""}
    assert [line["value"] for line in lines if line["id"] == stand_in.id if line["value"]] == ["500", "115.4"]
    shown = render.to_markdown(TABLE["table1"], [ours, beside, paper])
    assert not [line for line in shown.splitlines() if "500.0" in line and "115.4" in line]
    assert f"**Paper and this repository**\n\n{beside.note}\n" in shown


def test_the_papers_own_benchmark_alone_is_compared_with_the_paper(tmp_path: Path) -> None:
    files = [
        metrics_file(tmp_path / "a", "sft", "captions", cider=5.0),
        metrics_file(tmp_path / "b", "sft", "coco_karpathy", cider=1.2),
    ]
    ours, beside, _ = blocks("table1", *files)
    assert [label for label, _ in beside.rows] == ["DreamLLM-7B, COCO"]
    assert cell(ours, "DreamLLM, final", "COCO").difference == pytest.approx(120 - 115.4)
    assert cell(beside, "DreamLLM-7B, COCO", "ours").text == "120.0"
    assert cell(beside, "DreamLLM-7B, COCO", "difference").text == "+4.6"
    assert cell(beside, "DreamLLM-7B, COCO", "model/benchmark").text == "sft/coco_karpathy"


def test_an_empty_cell_says_why(tmp_path: Path) -> None:
    pope = metrics_file(tmp_path / "m", "sft", "pope", accuracy=0.5, precision=None, recall=0.5, f1=0.5, yes=0.5)
    ours, _, paper = blocks("table7", pope)
    assert cell(ours, "random / DreamLLM, final", "precision, emoji (cf. precision)").note == "nobody said yes"
    missing = cell(ours, "random / DreamLLM, comprehension-only", "accuracy, emoji (cf. accuracy)")
    assert (missing.text, missing.note) == ("", "no run of model comprehension_only on benchmark pope")
    assert cell(paper, "popular / DreamLLM-7B", "F1").note == "not found in any source read"
    assert ours.empty_columns["precision"] == "no run on benchmark pope_coco"
    assert (
        "does not draw"
        in cell(blocks("table3")[0], "comprehension-only", "FID, human sentences (cf. MS-COCO FID)").note
    )
    sd = metrics_file(tmp_path / "sd", "sd", "draw", fid=0.5)
    assert cell(blocks("scenes", sd)[0], "all seen", "drawn, Stable Diffusion").note == (
        "the results on benchmark draw have no metric all of group seen"
    )


def test_a_number_that_a_server_has_to_give_is_marked(tmp_path: Path) -> None:
    path = metrics_file(tmp_path / "m", "sft", "vqav2", accuracy=None)
    content = json.loads(path.read_text())
    content["metrics"]["accuracy"] |= {"reason": "external: EvalAI has the answers"}
    path.write_text(json.dumps(content))
    found = metrics_store.find(metrics_store.read_runs([path]), "sft", "vqav2", "accuracy")
    assert found.external and found.reason == "external: EvalAI has the answers"


def test_metrics_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    one, two = (metrics_file(tmp_path / name, "sft", "vqa", accuracy=0.5) for name in "ab")
    with pytest.raises(BenchmarkProblem, match="b: is a second file of model sft on benchmark vqa"):
        metrics_store.read_runs([one, two])
    two.write_text(two.read_text().replace('"sft"', '"igpt"').replace('"test"', '"dev"'))
    with pytest.raises(BenchmarkProblem, match="b: is of split dev, other files are of test"):
        metrics_store.read_runs([one, two])
    two.write_text('{"model": "sft"}')
    with pytest.raises(BenchmarkProblem, match="b: has no field 'benchmark'"):
        metrics_store.read_runs([two])


# ---- several seeds -------------------------------------------------------------------------------------------------


def seeds(folder: Path, *values: float) -> list[Path]:
    """Runs of one experiment that differ in their seeds."""
    names = [folder / f"study_{number}" / "sft" / "vqa.json" for number in range(len(values))]
    return [metrics_file(path, "sft", "vqa", accuracy=value) for path, value in zip(names, values, strict=True)]


def test_several_seeds_are_averaged_and_widen_the_interval(tmp_path: Path) -> None:
    shown = cell(blocks("table1", *seeds(tmp_path, 0.5, 0.6, 0.7))[0], "DreamLLM, final", "VQA, all (cf. VQAv2)")
    assert (shown.text, shown.seeds, shown.n) == ("60.0", 3, 40)
    spread = 4.302652729749464 * 10 / 3**0.5  # Student's t with 2 degrees of freedom; the standard deviation is 10
    assert shown.measured == pytest.approx((60, 60 - np.hypot(10, spread), 60 + np.hypot(5, spread)))


def test_metrics_deeper_below_the_model_are_of_the_same_run(tmp_path: Path) -> None:
    files = [
        metrics_file(tmp_path / "metrics/study/sft/draw.json", "sft", "draw", fid=1.0),
        metrics_file(tmp_path / "metrics/study/sft/pictures/draw.json", "sft", "draw_pictures", fid_clip_best=1.0),
    ]
    assert metrics_store.read_runs(files).keys() == {"study"}


def test_one_run_has_the_interval_of_its_items() -> None:
    assert metrics_store.widen_by_seeds([1.0], (1.0, 0.5, 2.0)) == (1.0, 0.5, 2.0)


def test_runs_that_are_no_seeds_of_one_experiment_are_refused(tmp_path: Path) -> None:
    files = seeds(tmp_path, 0.5, 0.6)
    files[1].write_text(files[1].read_text().replace('"prompts"', '"seed": 7, "prompts"'))
    assert len(metrics_store.read_runs(files)) == 2
    text = files[1].read_text()
    for old, new in (('"num_beams": 1', '"num_beams": 5'), ('"settings"', '"precision": "bf16", "settings"')):
        assert old in text
        files[1].write_text(text.replace(old, new))
        with pytest.raises(
            BenchmarkProblem, match="differs from run study_0 in settings, precision or number of items"
        ):
            metrics_store.read_runs(files)


# ---- forms ---------------------------------------------------------------------------------------------------------


def write(out: Path, *files: Path) -> None:
    tables.main(argparse.Namespace(metrics=files, items=[], paper=PAPER, losses=[], summary=None, out=out))


def test_all_tables_are_written_in_three_forms_and_twice_the_same(tmp_path: Path) -> None:
    files = [
        metrics_file(tmp_path / "a", "sft", "vqa", accuracy=0.5),
        metrics_file(tmp_path / "b", "llm", "language", accuracy=0.5),
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "old.md").write_text("from another run")
    for name in ("one", "two"):
        write(tmp_path / name, *files)
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1]
    wanted = {f"{name}.{form}" for name in TABLE for form in ("csv", "md", "tex")}
    assert contents[0].keys() == wanted | {"README.md", "claims.csv", "claims.md"}
    for name, table in TABLE.items():
        assert f"({name}.md)" in contents[0]["README.md"].decode()
        has_stand_in = any(column.miniature for column in table.columns)
        assert ("Stand-ins are not the paper's benchmarks" in contents[0][f"{name}.md"].decode()) == has_stand_in


def test_tables_without_any_run_are_written_too(tmp_path: Path) -> None:
    write(tmp_path / "out")
    text = (tmp_path / "out" / "table1.md").read_text()
    assert "VQA background (no run on benchmark vqa)" in text
    assert "| DreamLLM-7B | 115.4 |" in text
    assert (tmp_path / "out" / "claims.md").read_text().count("not attempted") > 25


def test_the_csv_has_a_line_per_cell_and_our_numbers_in_full(tmp_path: Path) -> None:
    filled = blocks("table4", metrics_file(tmp_path / "m", "llm", "language", accuracy=2 / 3))
    lines = list(csv.DictReader(io.StringIO(render.to_csv(TABLE["table4"], filled))))
    kept = [block for block in filled if block.source != "comparison"]
    assert len(lines) == sum(len(block.rows) * len(block.columns) for block in kept)
    ours = next(line for line in lines if line["value"])
    assert (ours["source"], ours["row"], ours["id"]) == ("ours", "language model alone", "table4.vicuna_7b.piqa")
    assert (ours["value"], ours["n"], ours["seeds"], ours["paper"]) == ("66.6667", "40", "1", "")
    assert (ours["world"], ours["protocol"]) == ("miniature", "split test; prompts emoji; text.num_beams 1")
    assert {line["source"] for line in lines} == {"ours", "paper"}
    assert all(line["value"] or line["note"] for line in lines)
    published = next(line for line in lines if line["source"] == "paper" and line["id"] == ours["id"])
    assert (published["value"], published["protocol"]) == ("77.1", "zero-shot; accuracy, per cent")


def test_markdown_rows_have_as_many_cells_as_their_header_and_all_footnotes_exist(tmp_path: Path) -> None:
    file = metrics_file(tmp_path / "m", "sft", "captions", cider=5.0, exact=0.5, object=0.5, colour=0.5, bind=0.5)
    for name in TABLE:
        text = render.to_markdown(TABLE[name], blocks(name, file))
        for part in text.split("**")[2::2]:
            widths = {line.count("|") for line in part.splitlines() if line.startswith("|")}
            assert len(widths) <= 1, name
        marks = set(re.findall(r"<sup>(\w+)</sup> \|", text))
        assert marks == set(re.findall(r"^<sup>(\w+)</sup>", text, re.MULTILINE)), name
    assert "500.0 <sub>490.0–505.0</sub>" in render.to_markdown(TABLE["table1"], blocks("table1", file))


def test_published_numbers_of_one_source_are_marked() -> None:
    text = render.to_markdown(TABLE["table2"], blocks("table2"))
    assert "| SDv2.1 fine-tuned | 11.91† | 25.35† |" in text
    assert "| DreamLLM-7B | 8.46 | 20.53 |" in text


def test_latex_is_escaped_and_balanced() -> None:
    for name in TABLE:
        text = render.to_latex(TABLE[name], blocks(name))
        assert text.count("{") == text.count("}")
        assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
        for environment in ("tabular", "adjustbox"):
            assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}")
        assert r"\begin{tabular}" in text or not TABLE[name].paper
        assert not re.search(r"(?<!\\)[%#_]", text.split("\n", 1)[1].replace(rf"\label{{tab:{name}}}", ""))
        for character in "†‡–*":
            assert character not in text.replace("B*", "")

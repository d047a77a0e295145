"""config/paper.yaml measures every cell of paper/tables.yaml, except where the row says why not, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dreamllm.config.reading import load
from dreamllm.evaluate import selection, tasks
from dreamllm.evaluate.tasks import mm_vet, mmbench
from dreamllm.results.table_spec import Column, Row, Table, read_tables

ROOT = Path(__file__).parent.parent
EXPERIMENT = load(ROOT / "config/paper.yaml")
TABLES = read_tables(ROOT / "paper/tables.yaml")
SCENES = "( (single|pair|group)(/(seen|held_out))?| seen| held_out)?"
JUDGED = "object|colour|bind|all|all_judge2"
POPE = "(accuracy|precision|recall|f1|yes)( random| popular| adversarial)?"
WORLD = {  # what a metrics file of the emoji world holds: METRIC, or METRIC GROUP
    "captions": f"(cider|exact){SCENES}",
    "vqa": f"accuracy( type/[a-z_]+|{SCENES})",
    "pope": POPE,
    "draw": f"fid|({JUDGED}){SCENES}",
    "draw_human": f"fid|({JUDGED}){SCENES}",
    "narratives": f"fid|({JUDGED}){SCENES}",
    "illustrations": "fid",
    "in_context": f"({JUDGED})( edit| subject| compose)?|judge_on_real",
    "attention": "same|other|difference",
    "stories": f"placement|ended|followed|{JUDGED}",
    "language": "accuracy( piqa| boolq)?",
    "latency": f"seconds steps/({'|'.join(map(str, EXPERIMENT.evaluation.latency.steps))})",
}
PUBLIC = {
    "captions": "cider",
    "vqa": "accuracy",
    "pope": POPE,
    "mmbench": f"accuracy( ({'|'.join(mmbench.ABILITIES.values())}))?",
    "mm_vet": f"total|{'|'.join(mm_vet.CAPABILITIES.values())}",
    "harness": "accuracy(_norm)?",
    "draw": "nothing",  # measured as NAME_pictures
}
PICTURES = f"fid_(paper|clean)_({'|'.join(selection.RULES)})"
ELSEWHERE = {("scenes", "sd_finetuned")}  # columns about the emoji world's experiments
ELSEWHERE |= {("parts", row.model) for row in TABLES["parts"].rows}  # all of it


def holds(benchmark: str) -> str:
    """What the metrics file of a benchmark holds, as a pattern."""
    if benchmark.endswith("_pictures"):
        return PICTURES
    use = EXPERIMENT.benchmark(benchmark)
    if use.task == "vqa" and use.shots:
        return f"accuracy shots/({'|'.join(map(str, use.shots))})"
    return (PUBLIC if use.source else WORLD)[use.task]


MEASURED = {(one.model, name) for one in EXPERIMENT.evaluations for name in one.benchmarks}
MEASURED |= {
    (model, f"{name}_pictures")
    for model, name in MEASURED
    if tasks.about(EXPERIMENT.benchmark(name).task).image_metrics
}
CELLS = [(t, row, column) for t in TABLES.values() for row in t.rows for column in t.columns if column.measure]


def is_measured(row: Row, column: Column) -> bool:
    benchmark, metric = column.measure.split("/")
    wanted = f"{metric} {row.group or column.group}".strip()
    there = (row.model or column.model, benchmark) in MEASURED
    return there and re.fullmatch(holds(benchmark), wanted) is not None


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_cell_is_measured_or_its_row_says_why_not(table: Table):
    for _, row, column in (one for one in CELLS if one[0] is table):
        there, benchmark = is_measured(row, column), column.measure.split("/")[0]
        if (table.id, row.model or column.model) not in ELSEWHERE:
            why = f"{table.cell_id(row, column)}: {column.measure} of {row.model or column.model}"
            assert there != (benchmark in row.lacks), f"{why} is {'measured, and lacks' if there else 'not measured'}"


def test_the_study_measures_every_cell_of_the_table_of_parts():
    study = load(ROOT / "config/study.yaml")
    measured = {(one.model, name) for one in study.evaluations for name in one.benchmarks}
    for _, row, column in (one for one in CELLS if one[0].id == "parts"):
        benchmark = column.measure.split("/")[0]
        reason = row.lacks.get(benchmark, "")
        assert ((row.model, benchmark) in measured) == (not reason or "config/study.yaml" in reason), (row, column)


def test_every_benchmark_of_the_configuration_has_cells():
    asked = {(row.model or column.model, column.measure.split("/")[0]) for _, row, column in CELLS}
    names = {name.removesuffix("_pictures") for _, name in asked}
    assert {name for _, name in MEASURED} - {f"{name}_pictures" for name in ("draw", "illustrations")} <= {
        *names,
        *(f"{name}_pictures" for name in names),
    }
    assert set(EXPERIMENT.benchmarks) <= names


@pytest.mark.parametrize("name", ["paper-as-released", "single_gpu", "modern", "metaquery", "released"])
def test_the_other_configurations_use_the_same_names(name: str):
    for benchmark, use in load(ROOT / f"config/{name}.yaml").benchmarks.items():
        assert use == EXPERIMENT.benchmarks[benchmark], benchmark

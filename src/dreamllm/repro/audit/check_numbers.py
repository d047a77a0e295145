"""Checks of numbers, by computing them again: tables from metrics, metrics from raw predictions, verdicts from both."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamllm.paths import TABLES
from dreamllm.repro.audit import lineage
from dreamllm.repro.audit.evidence import Evidence
from dreamllm.repro.audit.findings import Fault, Result, absent, judged

SAME_NUMBER = 1e-6  # relative: what two machines' floating point may differ by (docs/audit.md)
MAKE_TABLES = "remove results/tables and make them again: {}"


def tables(evidence: Evidence) -> Result:
    """A01: every claim and every cell leads to its number: results/tables is what the metrics and paper/ give."""
    folder = evidence.root / TABLES
    if not folder.is_dir():
        return absent(f"{TABLES} is not there: {evidence.command}, or `make restore`")
    if not evidence.tables_are_of_this:
        return absent(f"{TABLES} shows another experiment than {evidence.run.name}: {evidence.command}")
    try:
        wanted = _contents(evidence)
    except ValueError as error:  # a metrics file or a file of paper/ that is wrong says so itself
        if not type(error).__module__.startswith("dreamllm."):
            raise
        return judged([Fault(str(error), TABLES, "mend what the message names, or make it again")], "")
    faults = list(_differences(folder, wanted, evidence))
    cells = lineage.read_cells(evidence.run)
    for cell in cells:
        if not all(cell.source in run.metrics for run in evidence.runs):
            what = f"cell {cell.id} is from {cell.source}, of which there are no metrics"
            faults.append(Fault(what, cell.place, evidence.command))
    return judged(faults, f"{len(cells)} measured cells and {len(wanted)} files are what metrics and paper/ give")


def predictions(evidence: Evidence, *, pictures: bool = False) -> Result:
    """A12: every metric comes from the raw predictions that are there, one per item, and they give its numbers."""
    if not evidence.metrics:
        return absent(f"no metrics of {evidence.run.name} are there: {evidence.command}, or `make restore`")
    faults, counts = [], {"again": 0, "digest": 0}
    for source in evidence.evaluated:
        if source not in evidence.metrics:
            file = f"{evidence.run.paths.results('metrics')}/{source}.json"
            what = f"{source} was not measured, though the configuration asks for it"
            faults.append(Fault(what, file, evidence.command))
            continue
        path = evidence.metrics[source]
        found = list(_of_metric(evidence, source, path))
        if not found:
            found, again = _score_again(evidence, source, path, pictures)
            counts["again" if again else "digest"] += 1
        faults += found
    words = f"{counts['again']} metrics computed again from their predictions, to {SAME_NUMBER:g} of their values"
    if counts["digest"]:
        words += f"; {counts['digest']} more are compared by digest alone"
        words += "" if pictures else " (--pictures looks at pictures again)"
    return judged(faults, words)


def claims(evidence: Evidence) -> Result:
    """A13: every claim has the verdict that numbers and tolerance give; none is typed."""
    folder = evidence.root / TABLES
    if not folder.is_dir() or not evidence.tables_are_of_this:
        return absent(f"no verdicts of {evidence.run.name} in {TABLES}: {evidence.command}")
    try:
        verdicts, wanted = _verdicts(evidence)
    except ValueError as error:
        if not type(error).__module__.startswith("dreamllm."):
            raise
        return judged([Fault(str(error), "paper/claims.yaml", "mend what the message names")], "")
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.status] = counts.get(verdict.status, 0) + 1
    faults = list(_typed(folder / "claims.csv", wanted["claims.csv"], evidence))
    if not faults:
        faults = list(_differences(folder, wanted, evidence, index=False))
    words = ", ".join(f"{number} {status}" for status, number in counts.items())
    return judged(faults, f"{len(verdicts)} verdicts computed again: {words}")


# ---- tables and verdicts ---------------------------------------------------------------------------------------------


def _read(evidence: Evidence) -> tuple[Any, Any, Any]:
    """Tables, published numbers and runs, as `dreamllm tables` reads them."""
    from dreamllm.results.metrics_store import read_runs
    from dreamllm.results.table_spec import read_published, read_tables

    paper = evidence.root / "paper"
    runs = read_runs([evidence.root / path for path in evidence.all_metrics])
    return read_tables(paper / "tables.yaml"), read_published(paper), runs


def _contents(evidence: Evidence) -> dict[str, str]:
    from dreamllm.results.tables import render_tables

    named, published, runs = _read(evidence)
    return render_tables(named, runs, published)


def _verdicts(evidence: Evidence) -> tuple[list[Any], dict[str, str]]:
    from dreamllm.results.claims import Numbers, evaluate_claims, read_claims, read_items
    from dreamllm.results.tables import render_claims

    named, published, runs = _read(evidence)
    items = read_items([evidence.root / run.paths.results("items") for run in evidence.run.runs.values()])
    read = read_claims(evidence.root / "paper/claims.yaml", named, published)
    results = evaluate_claims(read, Numbers(named, published, runs, items))
    return results, render_claims(results, runs)


def _differences(folder: Path, wanted: Mapping[str, str], evidence: Evidence, *, index: bool = True) -> Iterator[Fault]:
    """Files that are missing, differ, or (with the index) that should not be there. A cell is named by its id."""
    fix = MAKE_TABLES.format(evidence.command)
    for name, text in wanted.items():
        path = folder / name
        now = path.read_text(encoding="utf-8") if path.is_file() else None
        if now == text:
            continue
        file = f"{TABLES}/{name}"
        changed = list(_changed_cells(now, text)) if now is not None and name.endswith(".csv") else []
        if now is None:
            yield Fault("is missing", file, fix)
        elif changed:
            yield from (Fault(what, f"{file}, line {line}", fix) for line, what in changed)
        else:
            yield Fault(f"is not what the metrics give, first in line {_first_difference(now, text)}", file, fix)
    if index:
        known = {*wanted, "claims.csv", "claims.md"}
        for path in sorted(folder.iterdir()):
            if path.name not in known and path.name != ".snakemake_timestamp":
                yield Fault("is no table of this experiment", f"{TABLES}/{path.name}", "remove it")


def _changed_cells(now: str, wanted: str) -> Iterator[tuple[int, str]]:
    """Line and words for each line of a table's CSV that differs in a column."""
    lines, right = (list(csv.DictReader(io.StringIO(text))) for text in (now, wanted))
    if len(lines) != len(right):
        return
    for number, (line, wanted_line) in enumerate(zip(lines, right, strict=True), 2):
        for column, value in wanted_line.items():
            if line.get(column) != value:
                found = f"{column} is {line.get(column)!r}, the metrics give {value!r}"
                yield number, f"cell {wanted_line.get('id')}: {found}"


def _typed(path: Path, wanted: str, evidence: Evidence) -> Iterator[Fault]:
    """Verdicts in claims.csv other than those computed."""
    if not path.is_file():
        yield Fault("is missing", f"{TABLES}/claims.csv", MAKE_TABLES.format(evidence.command))
        return
    lines, right = (list(csv.DictReader(io.StringIO(text))) for text in (path.read_text(encoding="utf-8"), wanted))
    if len(lines) != len(right):
        return
    for number, (line, wanted_line) in enumerate(zip(lines, right, strict=True), 2):
        for column in ("status", "outcome"):
            if line.get(column) != wanted_line[column]:
                found = f"{column} is {line.get(column)!r}, computed is {wanted_line[column]!r}"
                what = f"claim {wanted_line['claim']}: {found}"
                yield Fault(what, f"{TABLES}/claims.csv, line {number}", MAKE_TABLES.format(evidence.command))


def _first_difference(now: str, wanted: str) -> int:
    pairs = enumerate(zip(now.splitlines(), wanted.splitlines(), strict=False), 1)
    return next((number for number, (a, b) in pairs if a != b), min(now.count("\n"), wanted.count("\n")) + 1)


# ---- metrics ---------------------------------------------------------------------------------------------------------


def _of_metric(evidence: Evidence, source: str, path: str) -> Iterator[Fault]:
    """Whether a metric's inputs are there and are those it was made from."""
    link = lineage.metric_link(evidence.run, source, path)
    fix = f"score again: {evidence.command}"
    if link.problem:
        yield Fault(link.problem, path, fix)
    if "predictions" not in {one.kind for one in link.made_from} and not link.problem:
        yield Fault("does not name the predictions it was made from", path, fix)
    for one in link.made_from:
        if not one.digest:
            yield Fault(f"made from {one.path}, which is not there", path, "bring it (`make restore`), or " + fix)
        elif not one.agrees:
            what = f"made from another {one.path}: sha256 {one.recorded[:12]}, there is {one.digest[:12]}"
            yield Fault(f"{what}{'; ' + one.problem if one.problem else ''}", path, fix)
        elif one.kind == "predictions" and f"{one.facts['model']}/{one.facts['benchmark']}" != source:
            what = f"made from predictions of {one.facts['model']}/{one.facts['benchmark']}"
            yield Fault(what, path, fix)


def _score_again(evidence: Evidence, source: str, path: str, pictures: bool) -> tuple[list[Fault], bool]:
    """Faults, and whether the metric was computed again: what needs no model, or with `pictures` judge and CLIP too."""
    from dreamllm.evaluate import score, tasks
    from dreamllm.evaluate.predictions import read

    run = evidence.run
    model, _, benchmark = source.partition("/")
    task = tasks.about(run.experiment.benchmark(benchmark).task)
    if task.judged or not task.files or (not pictures and task.instruments):
        return [], False
    instruments = getattr(run.experiment.foundations, "instruments", run.experiment.foundations)
    folder = evidence.root / run.paths.benchmark_files(benchmark)
    answered = evidence.root / run.predictions(model, benchmark)
    fix = f"score again: {evidence.command}"
    try:
        raw = read(answered)
        wanted, of_items = score.score_items(raw, benchmark, folder, evidence.root / instruments.folder)
        faults = [
            Fault(f"{name} is {now}, the predictions give {right}", path, fix)
            for name, now, right in _other_numbers(evidence.json(path), wanted)
        ]
        file = f"{run.paths.results('items')}/{source}.json"
        if (evidence.root / file).is_file() and not _alike(evidence.json(file), json.loads(json.dumps(of_items))):
            faults.append(Fault("scores of single items are not what the predictions give", file, fix))
    except ValueError as error:
        if not type(error).__module__.startswith("dreamllm."):
            raise
        return [Fault(str(error), path, fix)], True
    return faults, True


def _other_numbers(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, number and right number of every metric that differs, groups included."""
    for name, (a, b) in _pairs(flat(now), flat(wanted)).items():
        if not _alike(a, b):
            yield name, a and a.get("value"), b and b.get("value")


def flat(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The measured numbers of a metrics file by METRIC or METRIC@GROUP."""
    groups = {f"{name}@{group}": one for group, of in content.get("groups", {}).items() for name, one in of.items()}
    return dict(content.get("metrics", {})) | groups


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a.get(name), b.get(name)) for name in [*a, *(key for key in b if key not in a)]}


def _alike(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal, numbers to within SAME_NUMBER."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=SAME_NUMBER, abs_tol=1e-9)
    return a == b


Check = Callable[[Evidence], Result]

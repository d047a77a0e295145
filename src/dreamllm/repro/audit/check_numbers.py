"""Recompute the numbers: tables and claims from metrics, metrics from raw predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamllm.paths import TABLES
from dreamllm.repro.audit import lineage
from dreamllm.repro.audit.audited_run import AuditedRun
from dreamllm.repro.audit.findings import CheckResult, Fault, not_applicable, pass_or_fail

SAME_NUMBER = 1e-6  # relative: allowed difference of floating point between machines (docs/audit.md)
MAKE_TABLES = "remove results/tables and make it again: {}"


def tables(audited: AuditedRun) -> CheckResult:
    """A01: results/tables is what the metrics and paper/ give, and the metrics of every cell exist."""
    folder = audited.root / TABLES
    if not folder.is_dir():
        return not_applicable(f"{TABLES} does not exist: {audited.command}, or `make restore`")
    if not audited.tables_show_this_run:
        return not_applicable(f"{TABLES} is not of experiment {audited.run.name}: {audited.command}")
    try:
        wanted = _tables(audited)
    except ValueError as error:  # its message names a wrong metrics file or file of paper/
        if not type(error).__module__.startswith("dreamllm."):
            raise
        return pass_or_fail(
            [Fault(str(error), TABLES, "correct the file that the message names, or make it again")], ""
        )
    faults = list(_differences(folder, wanted, audited))
    cells = lineage.read_measured_cells(audited.run)
    for cell in cells:
        if not all(cell.source in run.metrics for run in audited.runs):
            what = f"cell {cell.id} is from {cell.source}, which has no metrics"
            faults.append(Fault(what, cell.place, audited.command))
    return pass_or_fail(faults, f"{len(cells)} measured cells and {len(wanted)} files are what metrics and paper/ give")


def predictions(audited: AuditedRun, *, pictures: bool = False) -> CheckResult:
    """A12: every metric was computed from the existing raw predictions, one per item, and they give its numbers."""
    if not audited.metrics:
        return not_applicable(f"there are no metrics of {audited.run.name}: {audited.command}, or `make restore`")
    faults, counts = [], {"again": 0, "digest": 0}
    for source in audited.evaluated:
        if source not in audited.metrics:
            file = f"{audited.run.paths.results('metrics')}/{source}.json"
            what = f"{source} was not measured, but the configuration lists it"
            faults.append(Fault(what, file, audited.command))
            continue
        path = audited.metrics[source]
        found = [*_check_inputs(audited, source, path), *_check_selection(audited, source)]
        if not found:
            found, again = _score_again(audited, source, path, pictures)
            counts["again" if again else "digest"] += 1
        faults += found
    words = f"{counts['again']} metrics computed again from their predictions, to {SAME_NUMBER:g} of their values"
    if counts["digest"]:
        words += f"; {counts['digest']} more compared only by digest"
        words += "" if pictures else " (--pictures scores pictures again)"
    return pass_or_fail(faults, words)


def claims(audited: AuditedRun) -> CheckResult:
    """A13: every claim has the status that numbers and tolerance give."""
    folder = audited.root / TABLES
    if not folder.is_dir() or not audited.tables_show_this_run:
        return not_applicable(f"{TABLES} has no claims of {audited.run.name}: {audited.command}")
    try:
        results, wanted = _claims(audited)
    except ValueError as error:
        if not type(error).__module__.startswith("dreamllm."):
            raise
        return pass_or_fail([Fault(str(error), "paper/claims.yaml", "correct the file that the message names")], "")
    counts: dict[str, int] = {}
    for result in results:
        counts[result.status] = counts.get(result.status, 0) + 1
    faults = list(_differences(folder, wanted, audited, index=False))
    words = ", ".join(f"{number} {status}" for status, number in counts.items())
    return pass_or_fail(faults, f"status of {len(results)} claims computed again: {words}")


# ---- tables and claims -----------------------------------------------------------------------------------------------


def _read(audited: AuditedRun) -> tuple[Any, Any, Any]:
    """Tables, published numbers and runs, as `dreamllm tables` reads them."""
    from dreamllm.results.metrics_store import read_runs
    from dreamllm.results.table_spec import read_published, read_tables

    paper = audited.root / "paper"
    runs = read_runs([audited.root / path for path in audited.all_metrics])
    return read_tables(paper / "tables.yaml"), read_published(paper), runs


def _tables(audited: AuditedRun) -> dict[str, str]:
    from dreamllm.results.tables import render_tables

    named, published, runs = _read(audited)
    return render_tables(named, runs, published)


def _claims(audited: AuditedRun) -> tuple[list[Any], dict[str, str]]:
    from dreamllm.results.claims import Numbers, evaluate_claims, read_claims, read_items
    from dreamllm.results.tables import render_claims

    named, published, runs = _read(audited)
    items = read_items([audited.root / run.paths.results("items") for run in audited.run.runs.values()])
    read = read_claims(audited.root / "paper/claims.yaml", named, published)
    results = evaluate_claims(read, Numbers(named, published, runs, items))
    return results, render_claims(results, runs)


def _differences(
    folder: Path, wanted: Mapping[str, str], audited: AuditedRun, *, index: bool = True
) -> Iterator[Fault]:
    """Files that are missing or differ, differing cells by id, and (with the index) files that do not belong there."""
    fix = MAKE_TABLES.format(audited.command)
    for name, text in wanted.items():
        path = folder / name
        now = path.read_text(encoding="utf-8") if path.is_file() else None
        if now == text:
            continue
        file = f"{TABLES}/{name}"
        changed = list(_changed_cells(now, text, path)) if now is not None and name.endswith(".csv") else []
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
                yield Fault("is not a table of this experiment", f"{TABLES}/{path.name}", "remove it")


def _changed_cells(now: str, wanted: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and message for each cell of a CSV file that differs."""
    from dreamllm.results.csv_files import parse_csv

    found, right = (parse_csv(text, path).to_dict("records") for text in (now, wanted))
    if len(found) != len(right):
        return
    for number, (line, wanted_line) in enumerate(zip(found, right, strict=True), 2):
        id_ = f"cell {wanted_line['id']}" if "id" in wanted_line else f"claim {wanted_line['claim']}"
        for column in wanted_line:
            if line.get(column) != wanted_line[column]:
                yield number, f"{id_}: {column} is {line.get(column)!r}, the metrics give {wanted_line[column]!r}"


def _first_difference(now: str, wanted: str) -> int:
    pairs = enumerate(zip(now.splitlines(), wanted.splitlines(), strict=False), 1)
    return next((number for number, (a, b) in pairs if a != b), min(now.count("\n"), wanted.count("\n")) + 1)


# ---- metrics ---------------------------------------------------------------------------------------------------------


def _check_inputs(audited: AuditedRun, source: str, path: str) -> Iterator[Fault]:
    """Check that a metric's inputs exist and are those it was computed from."""
    link = lineage.metric_link(audited.run, source, path)
    fix = f"score again: {audited.command}"
    if link.problem:
        yield Fault(link.problem, path, fix)
    if "predictions" not in {one.kind for one in link.made_from} and not link.problem:
        yield Fault("does not name its predictions", path, fix)
    for one in link.made_from:
        if not one.digest:
            yield Fault(f"computed from {one.path}, which is missing", path, "make restore, or " + fix)
        elif not one.agrees:
            what = f"computed from another {one.path}: sha256 {one.recorded[:12]}, the file is {one.digest[:12]}"
            yield Fault(f"{what}{'; ' + one.problem if one.problem else ''}", path, fix)
        elif one.kind == "predictions" and f"{one.facts['model']}/{one.facts['benchmark']}" != source:
            what = f"computed from predictions of {one.facts['model']}/{one.facts['benchmark']}"
            yield Fault(what, path, fix)


def _check_selection(audited: AuditedRun, source: str) -> Iterator[Fault]:
    """Check that there is one prediction for each item of the benchmark that the configuration asks for."""
    from dreamllm.evaluate import few_shot, tasks
    from dreamllm.evaluate.predictions import check_complete, read

    run = audited.run
    model, _, benchmark = source.partition("/")
    use, settings = run.experiment.benchmark(benchmark), run.experiment.evaluation
    answered, folder = run.predictions(model, benchmark), audited.root / run.paths.benchmark_files(benchmark)
    if not answered or not folder.is_dir() or not tasks.about(use.task).files:
        return  # missing files are other faults; lm-evaluation-harness has its own items
    fix = f"predict again: {audited.command}"
    try:
        raw = read(audited.root / answered)
        ids = [item.id for item in tasks.load(use.task, folder, settings.split, audited.limit(benchmark))]
        check_complete(raw, [few_shot.item_id(n, one) for n in use.shots for one in ids] if use.shots else ids)
    except ValueError as error:
        if not type(error).__module__.startswith("dreamllm."):
            raise
        yield Fault(str(error), answered, fix)


def _score_again(audited: AuditedRun, source: str, path: str, pictures: bool) -> tuple[list[Fault], bool]:
    """Faults, and whether the metric was computed again. Metrics that need judge or CLIP are only with `pictures`."""
    from dreamllm.evaluate import score, tasks
    from dreamllm.evaluate.predictions import read

    run = audited.run
    model, _, benchmark = source.partition("/")
    task = tasks.about(run.experiment.benchmark(benchmark).task)
    if task.judged or not task.files or (not pictures and task.instruments):
        return [], False
    folder = audited.root / run.paths.benchmark_files(benchmark)
    answered = audited.root / run.predictions(model, benchmark)
    fix = f"score again: {audited.command}"
    try:
        raw = read(answered)
        wanted, of_items = score.score_items(raw, benchmark, folder, audited.root / run.experiment.instruments.folder)
        faults = [
            Fault(f"{name} is {now}, the predictions give {right}", path, fix)
            for name, now, right in _differing_numbers(audited.json(path), wanted)
        ]
        file = f"{run.paths.results('items')}/{source}.json"
        if not (audited.root / file).is_file():
            faults.append(Fault("is missing: the scores of single items", file, fix))
        elif not _equal(audited.json(file), json.loads(json.dumps(of_items))):
            faults.append(Fault("scores of single items differ from what the predictions give", file, fix))
    except ValueError as error:
        if not type(error).__module__.startswith("dreamllm."):
            raise
        return [Fault(str(error), path, fix)], True
    return faults, True


def _differing_numbers(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, recorded and recomputed number of every metric that differs, groups included."""
    for name, (a, b) in _pairs(flat(now), flat(wanted)).items():
        if not _equal(a, b):
            yield name, a and a.get("value"), b and b.get("value")


def flat(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The measured numbers of a metrics file by METRIC or METRIC@GROUP."""
    groups = {f"{name}@{group}": one for group, of in content.get("groups", {}).items() for name, one in of.items()}
    return dict(content.get("metrics", {})) | groups


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a.get(name), b.get(name)) for name in [*a, *(key for key in b if key not in a)]}


def _equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal, numbers to within SAME_NUMBER."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=SAME_NUMBER, abs_tol=1e-9)
    return a == b

"""Result tables beside the published ones, and the paper's claims: `dreamllm tables`.

Every table is written three times: NAME.csv (one cell per line, ours to six digits), NAME.md and NAME.tex (to be read);
then claims.csv and claims.md. An empty cell says why it is empty. Which number goes where is paper/tables.yaml.
Several runs of an experiment that differ in their seeds alone are averaged.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreamllm.atomic import new_folder
from dreamllm.results import claims, claims_page, render
from dreamllm.results.metrics_store import Runs, lookup, read_runs
from dreamllm.results.render import Block, Cell
from dreamllm.results.table_spec import (
    Column,
    Published,
    Row,
    Table,
    read_published,
    read_tables,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm tables`."""
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics files of one or several seeds")
    parser.add_argument("--items", nargs="*", default=[], type=Path, help="folders of `dreamllm item-scores`, per seed")
    parser.add_argument("--paper", required=True, type=Path, help="folder of what was published")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; an old one is replaced")


def main(args: argparse.Namespace) -> None:
    """Write all tables, the claims and an index into a folder, whole or not at all."""
    tables = read_tables(args.paper / "tables.yaml")
    published = read_published(args.paper)
    runs = read_runs(args.metrics)
    judged = claims.judge(
        claims.read_claims(args.paper / "claims.yaml", tables, published),
        claims.Evidence(tables, published, runs, claims.read_items(args.items)),
    )
    with new_folder(args.out) as folder:
        for name, text in (contents(tables, runs, published) | claims_pages(judged, runs)).items():
            (folder / name).write_text(text, encoding="utf-8")


def contents(tables: Mapping[str, Table], runs: Runs, published: Published) -> dict[str, str]:
    """The text of every file of the tables and of their index, by file name."""
    files = {"README.md": render.index(tables.values(), runs)}
    for table in tables.values():
        blocks = fill(table, runs, published)
        for suffix, write in (("csv", render.to_csv), ("md", render.to_markdown), ("tex", render.to_latex)):
            files[f"{table.name}.{suffix}"] = write(table, blocks)
    return files


def claims_pages(judged: Sequence[claims.Verdict], runs: Runs) -> dict[str, str]:
    """The text of the pages about the claims, by file name."""
    return {"claims.csv": claims_page.to_csv(judged), "claims.md": claims_page.to_markdown(judged, runs)}


def fill(table: Table, runs: Runs, published: Published) -> list[Block]:
    """A table's rows: ours, the published ones, and those of both that stand beside each other cell by cell."""
    columns = [column for column in table.columns if column.measure or _is_setting(column, table)]
    rows = [(row, [ours(table, row, column, runs, published) for column in columns]) for row in table.rows]
    shown = [
        index for index, column in enumerate(columns) if _is_setting(column, table) or _has_run(column, table, runs)
    ]
    left_out = {
        _header(column): f"no run on benchmark {column.measure.split('/')[0]}"
        for index, column in enumerate(columns)
        if index not in shown
    }
    headers = [_header(column) for column in columns]
    result = [Block("ours", "This repository", headers, [(row.label, cells) for row, cells in rows], left_out)]
    if table.paper:
        result.append(beside([cell for _, cells in rows for cell in cells]))
        result.append(publication(table, published))
    return result


def ours(table: Table, row: Row, column: Column, runs: Runs, published: Published) -> Cell:
    """A cell of ours, with the published one that it belongs to."""
    id_ = table.cell_id(row, column)
    if column.header in row.given:
        return Cell(id_, row.given[column.header])
    paper = published.get(id_) if row.paper and column.paper else None
    found = lookup(row, column, runs)
    if not found.by_run:
        return Cell(id_, paper=paper, miniature=column.miniature, note=found.reason)
    numbers = tuple(number * column.scale for number in found.interval())
    value, low, high = (number(one, column.scale) for one in numbers)
    printed = paper.value if paper and not column.miniature else ""
    return Cell(
        id=id_,
        text=value,
        interval=(low, high),
        measured=numbers,
        n=found.n,
        seeds=len(found.by_run),
        paper=paper,
        miniature=column.miniature,
        difference=numbers[0] - float(printed) if printed else None,
        protocol=found.protocol,
        source=found.source,
    )


def beside(cells: Sequence[Cell]) -> Block:
    """Published cells with ours, one per line; ours is the same benchmark where that was run, else its stand-in."""
    lines: dict[str, Cell] = {}
    for cell in cells:
        if cell.paper is None:
            continue
        best = lines.setdefault(cell.id, cell)
        if cell.text and (not best.text or (best.miniature and not cell.miniature)):
            lines[cell.id] = cell
    rows = []
    for cell in lines.values():
        paper = cell.paper
        if not paper or not (cell.text or paper.value):
            continue
        theirs = Cell(text=paper.value, confidence=paper.confidence, note=paper.note)
        if cell.difference is not None:
            difference = Cell(text=f"{cell.difference:+.3g}")
        else:
            difference = Cell(text="stand-in" if cell.text and cell.miniature else "–")
        mine = Cell(text=cell.text, interval=cell.interval, note=cell.note)
        about = [Cell(text=words or "–") for words in (str(cell.n or ""), str(cell.seeds or ""), cell.source)]
        rows.append((f"{paper.row}, {paper.column}", [theirs, mine, difference, *about]))
    columns = ["paper", "ours", "difference", "n", "seeds", "model/benchmark"]
    return Block("beside", "Beside each other", columns, rows)


def publication(table: Table, published: Published) -> Block:
    """The published table."""
    cells = [cell for cell in published.values() if cell.id.startswith(f"{table.name}.")]
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows = {row: [Cell(note="not in paper/")] * len(columns) for row in dict.fromkeys(cell.row for cell in cells)}
    for cell in cells:
        rows[cell.row][columns.index(cell.column)] = Cell(
            id=cell.id,
            text=cell.value,
            n=int(cell.n or 0),
            confidence=cell.confidence,
            protocol=cell.protocol,
            source=cell.source,
            note=cell.note,
        )
    return Block("paper", "Published", columns, list(rows.items()))


def number(value: float, scale: float) -> str:
    """A number as it is printed: shares and CIDEr, times 100, with one digit, others with three."""
    return f"{value:.1f}" if scale == 100 else f"{value:.3f}"


def _header(column: Column) -> str:
    return f"{column.header} (cf. {column.paper})" if column.miniature and column.paper else column.header


def _is_setting(column: Column, table: Table) -> bool:
    return any(column.header in row.given for row in table.rows)


def _has_run(column: Column, table: Table, runs: Runs) -> bool:
    """Whether any model of the table ran the column's benchmark."""
    models = {row.model or column.model for row in table.rows}
    return any((model, column.measure.split("/")[0]) in metrics for metrics in runs.values() for model in models)

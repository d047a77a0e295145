"""Write the result tables beside the published ones, and the status of the paper's claims: `dreamllm tables`.

Every table is written three times: NAME.csv (one cell per line, measured numbers in six digits), NAME.md and NAME.tex
(for readers); then claims.csv and claims.md. An empty cell has the reason why it is empty. paper/tables.yaml says which
number goes into which cell. Runs of an experiment that differ only in their seeds are averaged.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreamllm.atomic import new_folder
from dreamllm.output_paths import folder_to_write
from dreamllm.results import claims, claims_page, render, summary
from dreamllm.results.csv_files import files_by_stage
from dreamllm.results.metrics_store import Runs, lookup, read_runs
from dreamllm.results.render import Block, Cell
from dreamllm.results.table_spec import Column, Published, Row, Table, read_published, read_tables

NOT_COMPARED = (
    "Empty, because nothing was measured on the paper's own benchmarks. Numbers of the emoji world, if there are "
    "any, are in the table of this repository alone."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm tables`."""
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics files of one or several seeds")
    parser.add_argument("--items", nargs="*", default=[], type=Path, help="folders results/items/RUN, per seed")
    parser.add_argument("--paper", required=True, type=Path, help="folder with the published numbers and the claims")
    parser.add_argument("--losses", nargs="*", default=[], metavar="STAGE=CSV", help="losses.csv of the stages")
    parser.add_argument(
        "--summary", type=folder_to_write, help="folder for what DVC compares, metrics and losses (summary.py)"
    )
    parser.add_argument("--out", required=True, type=folder_to_write, help="folder to write; an old one is replaced")


def main(args: argparse.Namespace) -> None:
    """Write all tables, the claims and an index into a folder, all or nothing, and the summary into another."""
    losses = files_by_stage(args.losses)
    tables = read_tables(args.paper / "tables.yaml")
    published = read_published(args.paper)
    runs = read_runs(args.metrics)
    results = claims.evaluate_claims(
        claims.read_claims(args.paper / "claims.yaml", tables, published),
        claims.Numbers(tables, published, runs, claims.read_items(args.items)),
    )
    with new_folder(args.out) as folder:
        for name, text in (render_tables(tables, runs, published) | render_claims(results, runs)).items():
            (folder / name).write_text(text, encoding="utf-8")
    if args.summary:
        summary.write(args.summary, runs, losses)


def render_tables(tables: Mapping[str, Table], runs: Runs, published: Published) -> dict[str, str]:
    """The text of every file of the tables and of their index, by file name."""
    files = {"README.md": render.index(tables.values(), runs)}
    for table in tables.values():
        blocks = fill(table, runs, published)
        for suffix, write in (("csv", render.to_csv), ("md", render.to_markdown), ("tex", render.to_latex)):
            files[f"{table.id}.{suffix}"] = write(table, blocks)
    return files


def render_claims(results: Sequence[claims.ClaimResult], runs: Runs) -> dict[str, str]:
    """The text of the files about the claims, by file name."""
    return {"claims.csv": claims_page.to_csv(results), "claims.md": claims_page.to_markdown(results, runs)}


def fill(table: Table, runs: Runs, published: Published) -> list[Block]:
    """The blocks of a table: measured cells; for a table of the paper also the comparison and the published cells."""
    columns = [column for column in table.columns if column.measure or _is_setting(column, table)]
    rows = [
        (row.label, [measured_cell(table, row, column, runs, published) for column in columns]) for row in table.rows
    ]
    empty = {
        _header(column): f"no run on benchmark {column.measure.split('/')[0]}"
        for column in columns
        if not _is_setting(column, table) and not _has_run(column, table, runs)
    }
    blocks = [Block("ours", "This repository", [_header(column) for column in columns], rows, empty)]
    if table.paper:
        blocks.append(comparison([cell for _, cells in rows for cell in cells]))
        blocks.append(published_block(table, published))
    return blocks


def measured_cell(table: Table, row: Row, column: Column, runs: Runs, published: Published) -> Cell:
    """A measured cell, with the published one that it is compared with."""
    id_ = table.cell_id(row, column)
    if column.header in row.given:
        return Cell(id_, row.given[column.header])
    paper = published.get(id_) if row.paper and column.paper else None
    found = lookup(row, column, runs)
    if not found.by_run:
        return Cell(id_, paper=paper, miniature=column.miniature, note=found.reason)
    numbers = tuple(number * column.scale for number in found.interval())
    value, low, high = (f"{one:.1f}" if column.scale == 100 else f"{one:.3f}" for one in numbers)
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


def comparison(cells: Sequence[Cell]) -> Block:
    """Each cell that was measured on the paper's own benchmark, with the published one; stand-ins are left out."""
    rows = []
    for cell in cells:
        if cell.paper is None or cell.miniature or not cell.text:
            continue
        paper = cell.paper
        published = Cell(text=paper.value, confidence=paper.confidence, note=paper.note)
        measured = Cell(text=cell.text, interval=cell.interval)
        difference = "–" if cell.difference is None else f"{cell.difference:+.3g}"
        about = [Cell(text=text) for text in (difference, str(cell.n), str(cell.seeds), cell.source)]
        rows.append((f"{paper.row}, {paper.column}", [published, measured, *about]))
    columns = ["paper", "ours", "difference", "n", "seeds", "model/benchmark"]
    return Block("comparison", "Paper and this repository", columns, rows, note="" if rows else NOT_COMPARED)


def published_block(table: Table, published: Published) -> Block:
    """The published table."""
    cells = [cell for cell in published.values() if cell.id.startswith(f"{table.id}.")]
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


def _header(column: Column) -> str:
    return f"{column.header} (cf. {column.paper})" if column.miniature and column.paper else column.header


def _is_setting(column: Column, table: Table) -> bool:
    return any(column.header in row.given for row in table.rows)


def _has_run(column: Column, table: Table, runs: Runs) -> bool:
    """Whether any model of the table ran the column's benchmark."""
    models = {row.model or column.model for row in table.rows}
    return any((model, column.measure.split("/")[0]) in metrics for metrics in runs.values() for model in models)

"""Result tables beside the published ones: `dreamllm tables`.

Every table is written three times: NAME.csv (one cell per line, ours to six digits), NAME.md and NAME.tex (to be read).
An empty cell says why it is empty. Which number goes where is `cells.py`.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from dreamllm.atomic import new_folder
from dreamllm.evaluate.files import BenchmarkProblem, field, read_json, read_text
from dreamllm.results.cells import TABLES, Column, Row, Table

WORLD = (
    "**The worlds differ.** Rows of this repository: miniature models on the emoji world, pictograms on plain "
    "backgrounds. Rows of the paper: a 7B model on photographs. They stand together to show which claim a number "
    "belongs to; their values must not be compared."
)
CONFIDENCE = {"C": "", "S": "†", "D": "‡"}
CONFIDENCE_NOTE = "† read in one source only. ‡ computed from other published numbers. Sources: paper/README.md."

Metrics = Mapping[tuple[str, str], dict[str, Any]]  # (model, benchmark) -> metrics file
Published = Mapping[str, Mapping[str, dict[str, str]]]  # row -> column -> line of paper/tableN.csv


@dataclass(frozen=True)
class Cell:
    """A filled cell, or an empty one (text "") with the reason in `note`.

    measured: value, low and high in the unit of the text, for numbers of ours
    """

    text: str = ""
    interval: tuple[str, str] | None = None
    measured: tuple[float, ...] = ()
    n: int = 0
    confidence: str = ""
    note: str = ""


@dataclass(frozen=True)
class Block:
    """Some rows of a table with the same columns: ours, or the published ones."""

    source: str
    heading: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm tables`."""
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics files of `dreamllm score`")
    parser.add_argument("--paper", required=True, type=Path, help="folder of the published tables")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; an old one is replaced")


def main(args: argparse.Namespace) -> None:
    """Write all tables and an index into a folder, whole or not at all."""
    metrics = read_metrics(args.metrics)
    with new_folder(args.out) as folder:
        for table in TABLES:
            published = read_published(args.paper / f"table{table.paper}.csv") if table.paper else {}
            blocks = fill(table, metrics, published)
            for suffix, render in (("csv", to_csv), ("md", to_markdown), ("tex", to_latex)):
                (folder / f"{table.name}.{suffix}").write_text(render(table, blocks), encoding="utf-8")
        (folder / "README.md").write_text(index(metrics), encoding="utf-8")


def read_metrics(paths: Sequence[Path]) -> Metrics:
    """Metrics files by model and benchmark.

    Raises BenchmarkProblem for a malformed file, two files of the same model and benchmark, and files of both splits.
    """
    metrics: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths:
        content = read_json(path)
        key = field(content, "model", str, path, ""), field(content, "benchmark", str, path, "")
        for name in ("metrics", "groups", "protocol"):
            field(content, name, dict, path, "")
        if key in metrics:
            raise BenchmarkProblem(path, "", f"is a second file of model {key[0]} on {key[1]}")
        metrics[key] = content
        first = next(iter(metrics.values()))
        if field(content, "split", str, path, "") != first["split"]:
            raise BenchmarkProblem(path, "", f"is of split {content['split']}, other files are of {first['split']}")
    return metrics


def read_published(path: Path) -> Published:
    """A published table by row and column. Raises BenchmarkProblem for wrong columns, doubled or unexplained cells."""
    table: dict[str, dict[str, dict[str, str]]] = {}
    reader = csv.DictReader(io.StringIO(read_text(path)))
    wanted = {"table", "row", "column", "value", "confidence", "source", "note"}
    if set(reader.fieldnames or []) != wanted:
        raise BenchmarkProblem(path, "line 1", f"should have the columns {', '.join(sorted(wanted))}")
    for line in reader:
        place = f"line {reader.line_num}"
        if line["column"] in table.setdefault(line["row"], {}):
            raise BenchmarkProblem(path, place, f"cell {line['row']}, {line['column']} occurs twice")
        if not line["value"] and not line["note"]:
            raise BenchmarkProblem(path, place, f"cell {line['row']}, {line['column']} is empty and does not say why")
        table[line["row"]][line["column"]] = line
    return table


def fill(table: Table, metrics: Metrics, published: Published) -> list[Block]:
    """A table's rows: ours, and for a table of the paper the published ones in the columns that the paper has."""
    settings = {header for row in table.rows for header in row.given}
    columns = [column for column in table.columns if column.metric or column.header in settings]
    rows = [(row.label, [_ours(row, column, metrics) for column in columns]) for row in table.rows]
    result = [Block("ours", "This repository, emoji world", [_header(column) for column in columns], rows)]
    if table.paper:
        columns = [column for column in table.columns if column.paper]
        rows = [(label, [_published(cells, column) for column in columns]) for label, cells in published.items()]
        result.append(Block("paper", "Published, real data", [column.paper for column in columns], rows))
    return result


def _header(column: Column) -> str:
    return f"{column.header} (cf. {column.paper})" if column.paper not in ("", column.header) else column.header


def _ours(row: Row, column: Column, metrics: Metrics) -> Cell:
    if column.header in row.given:
        return Cell(row.given[column.header])
    benchmark, name = column.metric.split("/")
    model, group = row.model or column.model, row.group or column.group
    if (model, benchmark) not in metrics:
        return Cell(note=row.lacks.get(benchmark, f"no run of model {model} on benchmark {benchmark}"))
    content = metrics[model, benchmark]
    found = content["groups"].get(group, {}) if group else content["metrics"]
    if name not in found:
        return Cell(
            note=f"the results on benchmark {benchmark} have no {name}" + (f" of group {group}" if group else "")
        )
    measured = found[name]
    if measured["value"] is None:
        return Cell(note=measured["reason"])
    numbers = tuple(measured[key] * column.scale for key in ("value", "low", "high"))
    value, low, high = (_number(number, column.scale) for number in numbers)
    return Cell(value, (low, high), numbers, measured["n"])


def _number(value: float, scale: float) -> str:
    return f"{value:.1f}" if scale == 100 else f"{value:.3f}"


def _published(cells: Mapping[str, dict[str, str]], column: Column) -> Cell:
    if column.paper not in cells:
        return Cell(note="not in paper/")
    line = cells[column.paper]
    return Cell(line["value"], confidence=line["confidence"], note=line["note"])


# ---- forms ---------------------------------------------------------------------------------------------------------


def to_csv(table: Table, blocks: Sequence[Block]) -> str:
    """One cell per line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "source", "row", "column", "value", "low", "high", "n", "confidence", "note"])
    for block in blocks:
        for label, cells in block.rows:
            for column, cell in zip(block.columns, cells, strict=True):
                numbers = [f"{number:.6g}" for number in cell.measured] or [cell.text, "", ""]
                about = [cell.n or "", cell.confidence, cell.note]
                writer.writerow([table.name, block.source, label, column, *numbers, *about])
    return text.getvalue()


def to_markdown(table: Table, blocks: Sequence[Block]) -> str:
    """GitHub tables with footnotes."""
    notes = _notes(blocks)
    lines = [f"# {_title(table)}", "", _about(table), ""]
    for block in blocks:
        lines += [
            f"**{block.heading}**",
            "",
            f"| | {' | '.join(block.columns)} |",
            "|---|" + "--:|" * len(block.columns),
        ]
        for label, cells in _with_counts(block):
            shown = [_in_words(cell, block, notes, str, " <sub>{}–{}</sub>", "<sup>{}</sup>") for cell in cells]
            lines.append(f"| {' | '.join([label, *shown])} |")
        lines.append("")
    lines += [f"<sup>{letter}</sup> {note}  " for note, letter in notes.items()]
    return "\n".join([*lines, CONFIDENCE_NOTE if table.paper else ""]).rstrip() + "\n"


def to_latex(table: Table, blocks: Sequence[Block]) -> str:
    """A `table` environment, with tabulars for booktabs."""
    notes = _notes(blocks)
    about = " ".join(_about(table).replace("*", "").split())
    lines = [
        "% needs booktabs and adjustbox",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{_escape(_title(table))}. {_escape(about)}}}",
        rf"\label{{tab:{table.name}}}",
    ]
    for block in blocks:
        columns = [_escape(column) for column in block.columns]
        lines += [
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            rf"\emph{{{_escape(block.heading)}}} & {' & '.join(columns)} \\",
            r"\midrule",
        ]
        for label, cells in _with_counts(block):
            shown = [
                _in_words(cell, block, notes, _escape, r" {{\scriptsize {}--{}}}", r"\textsuperscript{{{}}}")
                for cell in cells
            ]
            lines.append(rf"{' & '.join([_escape(label), *shown])} \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}", r"\par\medskip"]
    footnotes = [rf"\textsuperscript{{{letter}}} {_escape(note)}." for note, letter in notes.items()]
    footnotes += [_escape(CONFIDENCE_NOTE)] if table.paper else []
    return "\n".join([*lines, rf"{{\footnotesize\raggedright {' '.join(footnotes)}\par}}", r"\end{table}", ""])


def index(metrics: Metrics) -> str:
    """README.md of the folder: what there is, and how it came about."""
    split = next((content["split"] for content in metrics.values()), "none")
    rows = [f"| [{_title(t)}]({t.name}.md) | [csv]({t.name}.csv) | [tex]({t.name}.tex) |" for t in TABLES]
    runs = [
        f"| {model} | {benchmark} | {content['protocol'].get('n', '')} |"
        for (model, benchmark), content in sorted(metrics.items())
    ]
    return "\n".join(
        [
            "# Result tables",
            "",
            f"Written by `dreamllm tables` from results/metrics and paper/; do not edit. Split: {split}.",
            "",
            WORLD,
            "",
            "Intervals are 95 %: Wilson's for shares, the bootstrap's for CIDEr, F1 and FID. They cover the choice of",
            "test items, not the choice of training seed.",
            "",
            "| table | | |",
            "|---|---|---|",
            *rows,
            "",
            "## Runs behind them",
            "",
            "| model | benchmark | items |",
            "|---|---|--:|",
            *runs,
            "",
        ]
    )


def _title(table: Table) -> str:
    return f"Table {table.paper}: {table.title}" if table.paper else table.title


def _about(table: Table) -> str:
    """What to know before reading the table."""
    text = f"{table.about} Small numbers are 95 % intervals."
    missing = [
        column.paper
        for column in table.columns
        if column.paper and not column.metric and not _is_setting(column, table)
    ]
    if missing:
        text += f" Without a counterpart in the emoji world: {', '.join(missing)}."
    return f"{text}\n\n{WORLD}" if table.paper else text


def _is_setting(column: Column, table: Table) -> bool:
    return any(column.header in row.given for row in table.rows)


def _notes(blocks: Sequence[Block]) -> dict[str, str]:
    """A letter for each reason why a cell is empty, in reading order."""
    cells = [cell for block in blocks for _, row in block.rows for cell in row]
    reasons = dict.fromkeys(cell.note for cell in cells if not cell.text)
    return dict(zip(reasons, ascii_lowercase, strict=False))


def _with_counts(block: Block) -> list[tuple[str, list[Cell]]]:
    """The block's rows, ours with their numbers of items: below a column, or in its cells where they differ."""
    if block.source == "paper":
        return block.rows
    numbers = [
        sorted({cell.n for cell in cells if cell.n}) for cells in zip(*(row for _, row in block.rows), strict=True)
    ]
    rows = [
        (label, [_count_shown(cell) if len(ns) > 1 else cell for cell, ns in zip(cells, numbers, strict=True)])
        for label, cells in block.rows
    ]
    below = [Cell(str(ns[0]) if len(ns) == 1 else " ") for ns in numbers]
    return [*rows, ("number of items", below)] if any(cell.text != " " for cell in below) else rows


def _count_shown(cell: Cell) -> Cell:
    if cell.interval is None:
        return cell
    low, high = cell.interval
    return replace(cell, interval=(low, f"{high}, n={cell.n}"))


def _in_words(
    cell: Cell, block: Block, notes: Mapping[str, str], escape: Callable[[str], str], interval: str, mark: str
) -> str:
    """A cell for reading in a markup language: how it escapes text, formats an interval and a footnote's mark."""
    if not cell.text:
        return mark.format(notes[cell.note])
    text = cell.text + (CONFIDENCE[cell.confidence] if block.source == "paper" and cell.confidence else "")
    return escape(text) + (interval.format(*cell.interval) if cell.interval else "")


def _escape(text: str) -> str:
    """Text for LaTeX."""
    for plain, escaped in [
        ("\\", r"\textbackslash{}"),
        ("†", r"$^\dagger$"),
        ("‡", r"$^\ddagger$"),
        ("↓", r"$\downarrow$"),
    ]:
        text = text.replace(plain, escaped)
    for character in "%&#_":
        text = text.replace(character, f"\\{character}")
    return text.replace("–", "--")

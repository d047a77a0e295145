"""Format a table as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_lowercase

from dreamllm.results.csv_files import csv_text
from dreamllm.results.metrics_store import Runs
from dreamllm.results.table_spec import PublishedCell, Table

WORLD = (
    "**Stand-ins are not the paper's benchmarks.** A column with *cf.* is measured in the emoji world: miniature "
    "models, pictograms on plain backgrounds. It shows which claim of the paper a number belongs to. Do not compare "
    "its value with the paper's, which is of a 7B model on photographs."
)
CONFIDENCE = {"C": "", "S": "†", "D": "‡", "Q": "§"}
CONFIDENCE_NOTE = (
    "† read in one source only. ‡ computed from other published numbers. § quoted from the paper of the baseline. "
    "Sources: paper/README.md."
)
CSV_COLUMNS = ["id", "table", "source", "row", "column", "value", "low", "high", "n", "seeds", "world", "paper"]
CSV_COLUMNS += ["difference", "confidence", "protocol", "from", "note"]


@dataclass(frozen=True)
class Cell:
    """A filled cell, or an empty one (text "") with the reason in `note`.

    measured: value, low and high of a measured number, in the unit of the text.  seeds: number of runs
    paper: the published cell of the same id.  difference: measured minus published, where they are comparable
    """

    id: str = ""
    text: str = ""
    interval: tuple[str, str] | None = None
    measured: tuple[float, ...] = ()
    n: int = 0
    seeds: int = 0
    paper: PublishedCell | None = None
    miniature: bool = False
    difference: float | None = None
    confidence: str = ""
    protocol: str = ""
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Block:
    """Rows of a table with the same columns. source: "ours" (measured), "paper" (published) or "comparison" of both

    empty_columns: the headers of columns in which no row has a number, with the reason; readers do not see them
    note: why the block has no rows
    """

    source: str
    heading: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    empty_columns: dict[str, str] = field(default_factory=dict)
    note: str = ""


def to_csv(table: Table, blocks: Sequence[Block]) -> str:
    """One cell per line, measured and published ones; the comparison only repeats them and is left out.

    A line of a stand-in has no published number: that is in the published line with the same id.
    """
    lines = []
    for block in blocks:
        if block.source == "comparison":
            continue
        for label, cells in block.rows:
            for column, cell in zip(block.columns, cells, strict=True):
                numbers = [f"{number:.6g}" for number in cell.measured] or [cell.text, "", ""]
                difference = "" if cell.difference is None else f"{cell.difference:.6g}"
                counts = [cell.n or "", cell.seeds or "", "miniature" if cell.miniature else ""]
                published = cell.paper.value if cell.paper and not cell.miniature else ""
                paper = [published, difference, cell.confidence]
                about = [cell.protocol, cell.source, cell.note]
                lines.append([cell.id, table.id, block.source, label, column, *numbers, *counts, *paper, *about])
    return csv_text(lines, CSV_COLUMNS)


def to_markdown(table: Table, blocks: Sequence[Block]) -> str:
    """GitHub tables with footnotes."""
    blocks = [without_empty_columns(block) for block in blocks]
    notes = footnotes(blocks)
    lines = [f"# {table.caption}", "", _introduction(table, blocks), ""]
    for block in blocks:
        lines += [f"**{block.heading}**", ""]
        if not (block.rows and block.columns):
            lines += [block.note or "No numbers.", ""]
            continue
        lines += [f"| | {' | '.join(block.columns)} |", "|---|" + "--:|" * len(block.columns)]
        for label, cells in with_item_counts(block):
            shown = [_format(cell, notes, str, " <sub>{}–{}</sub>", "<sup>{}</sup>") for cell in cells]
            lines.append(f"| {' | '.join([label, *shown])} |")
        lines.append("")
    lines += [f"<sup>{letter}</sup> {note}  " for note, letter in notes.items()]
    return "\n".join([*lines, CONFIDENCE_NOTE if table.paper else ""]).rstrip() + "\n"


def to_latex(table: Table, blocks: Sequence[Block]) -> str:
    """A `table` environment with tabulars; needs the packages booktabs and adjustbox."""
    blocks = [without_empty_columns(block) for block in blocks]
    notes = footnotes(blocks)
    introduction = " ".join(_introduction(table, blocks).replace("*", "").split())
    lines = [
        "% needs booktabs and adjustbox",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{_escape(table.caption)}. {_escape(introduction)}}}",
        rf"\label{{tab:{table.id}}}",
    ]
    for block in blocks:
        if not (block.rows and block.columns):
            continue
        lines += [
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{l{'r' * len(block.columns)}}}",
            r"\toprule",
            rf"\emph{{{_escape(block.heading)}}} & {' & '.join(map(_escape, block.columns))} \\",
            r"\midrule",
        ]
        for label, cells in with_item_counts(block):
            shown = [
                _format(cell, notes, _escape, r" {{\scriptsize {}--{}}}", r"\textsuperscript{{{}}}") for cell in cells
            ]
            lines.append(rf"{' & '.join([_escape(label), *shown])} \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}", r"\par\medskip"]
    notes_below = [rf"\textsuperscript{{{letter}}} {_escape(note)}." for note, letter in notes.items()]
    notes_below += [_escape(CONFIDENCE_NOTE)] if table.paper else []
    return "\n".join([*lines, rf"{{\footnotesize\raggedright {' '.join(notes_below)}\par}}", r"\end{table}", ""])


def index(tables: Collection[Table], runs: Runs) -> str:
    """README.md of the folder: the tables, how to read them, and the runs that the numbers are from."""
    split = next((content["split"] for metrics in runs.values() for content in metrics.values()), "none")
    rows = [f"| [{t.caption}]({t.id}.md) | [csv]({t.id}.csv) | [tex]({t.id}.tex) |" for t in tables]
    lines = [
        f"| {run} | {model} | {benchmark} | {content['protocol'].get('n', '')} |"
        for run, metrics in runs.items()
        for (model, benchmark), content in sorted(metrics.items())
    ]
    return "\n".join(
        [
            "# Result tables",
            "",
            f"Written by `dreamllm tables` from results/metrics and paper/; do not edit. Split: {split}. "
            "Which of the paper's claims hold: [claims](claims.md).",
            "",
            WORLD,
            "",
            "Intervals are 95 %. With one run they cover the choice of test items, not the training seed: Wilson's",
            "interval for shares, the bootstrap for CIDEr and F1, the infinitesimal jackknife for FID. With several",
            "runs the spread between seeds is added, by Student's t.",
            "",
            "| table | | |",
            "|---|---|---|",
            *rows,
            "",
            "## Runs",
            "",
            "| run | model | benchmark | items |",
            "|---|---|---|--:|",
            *lines,
            "",
        ]
    )


def without_empty_columns(block: Block) -> Block:
    """The block without its empty columns."""
    keep = [index for index, column in enumerate(block.columns) if column not in block.empty_columns]
    rows = [(label, [cells[index] for index in keep]) for label, cells in block.rows]
    return replace(block, columns=[block.columns[index] for index in keep], rows=rows)


def footnotes(blocks: Sequence[Block]) -> dict[str, str]:
    """A mark for each reason why a cell is empty, in reading order: a to z, then aa to az."""
    cells = [cell for block in blocks for _, row in block.rows for cell in row]
    marks = [*ascii_lowercase, *(f"a{letter}" for letter in ascii_lowercase)]
    return dict(zip(dict.fromkeys(cell.note for cell in cells if not cell.text), marks, strict=False))


def with_item_counts(block: Block) -> list[tuple[str, list[Cell]]]:
    """The block's rows; measured ones with their numbers of items: in a last row, or in each cell where they differ."""
    if block.source != "ours":
        return block.rows
    counts = [
        sorted({cell.n for cell in cells if cell.n}) for cells in zip(*(row for _, row in block.rows), strict=True)
    ]
    rows = [
        (label, [_with_own_count(cell) if len(ns) > 1 else cell for cell, ns in zip(cells, counts, strict=True)])
        for label, cells in block.rows
    ]
    last = [Cell(text=str(ns[0]) if len(ns) == 1 else " ") for ns in counts]
    return [*rows, ("number of items", last)] if any(cell.text != " " for cell in last) else rows


def _introduction(table: Table, blocks: Sequence[Block]) -> str:
    """What to know before reading the table."""
    text = f"{table.about} Small numbers are 95 % intervals."
    reasons: dict[str, list[str]] = {}
    for header, reason in blocks[0].empty_columns.items():
        reasons.setdefault(reason, []).append(header)
    if reasons:
        text += " Not shown: " + "; ".join(f"{', '.join(headers)} ({why})" for why, headers in reasons.items()) + "."
    return f"{text}\n\n{WORLD}" if any(column.miniature for column in table.columns) else text


def _with_own_count(cell: Cell) -> Cell:
    if cell.interval is None:
        return cell
    low, high = cell.interval
    return replace(cell, interval=(low, f"{high}, n={cell.n}"))


def _format(cell: Cell, notes: Mapping[str, str], escape: Callable[[str], str], interval: str, mark: str) -> str:
    """A cell in a markup language, given by how it escapes text and formats an interval and a footnote's mark."""
    if not cell.text:
        return mark.format(notes[cell.note])
    text = cell.text + CONFIDENCE.get(cell.confidence, "")
    return escape(text) + (interval.format(*cell.interval) if cell.interval else "")


def _escape(text: str) -> str:
    """Text for LaTeX."""
    for plain, escaped in [
        ("\\", r"\textbackslash{}"),
        ("†", r"$^\dagger$"),
        ("‡", r"$^\ddagger$"),
        ("§", r"$^\S$"),
        ("↓", r"$\downarrow$"),
    ]:
        text = text.replace(plain, escaped)
    for character in "%&#_":
        text = text.replace(character, f"\\{character}")
    return text.replace("–", "--")

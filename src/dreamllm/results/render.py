"""Tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_lowercase

from dreamllm.results.metrics_store import Runs
from dreamllm.results.table_spec import PublishedCell, Table

WORLD = (
    "**Stand-ins are another world.** A column with *cf.* is of the emoji world: miniature models, pictograms on plain "
    "backgrounds. It shows which claim of the paper a number belongs to; its value must not be compared with the "
    "paper's, which is of a 7B model on photographs."
)
CONFIDENCE = {"C": "", "S": "†", "D": "‡"}
CONFIDENCE_NOTE = "† read in one source only. ‡ computed from other published numbers. Sources: paper/README.md."
CSV_COLUMNS = [
    "id",
    "table",
    "source",
    "row",
    "column",
    "value",
    "low",
    "high",
    "n",
    "seeds",
    "world",
    "paper",
    "difference",
    "confidence",
    "protocol",
    "from",
    "note",
]


@dataclass(frozen=True)
class Cell:
    """A filled cell, or an empty one (text "") with the reason in `note`.

    measured: value, low and high in the unit of the text, for numbers of ours.  seeds: runs behind them
    paper: the published cell beside it.  difference: ours minus the paper's, where they may be compared
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
    """Some rows of a table with the same columns: ours, the published ones, or both cell by cell.

    left_out: why columns of which no row has a number are not shown, by their headers
    """

    source: str
    heading: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    left_out: dict[str, str] = field(default_factory=dict)


def to_csv(table: Table, blocks: Sequence[Block]) -> str:
    """One cell per line; ours and the paper's that belong together have the same id."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for block in blocks:
        if block.source == "beside":
            continue  # the same cells once more
        for label, cells in block.rows:
            for column, cell in zip(block.columns, cells, strict=True):
                numbers = [f"{number:.6g}" for number in cell.measured] or [cell.text, "", ""]
                difference = "" if cell.difference is None else f"{cell.difference:.6g}"
                paper = cell.paper.value if cell.paper else ""
                about = [cell.n or "", cell.seeds or "", "miniature" if cell.miniature else "", paper, difference]
                more = [cell.confidence, cell.protocol, cell.source, cell.note]
                writer.writerow([cell.id, table.name, block.source, label, column, *numbers, *about, *more])
    return text.getvalue()


def to_markdown(table: Table, blocks: Sequence[Block]) -> str:
    """GitHub tables with footnotes."""
    blocks = [for_readers(block) for block in blocks]
    notes = notes_of(blocks)
    lines = [f"# {caption_of(table)}", "", _about(table, blocks), ""]
    for block in blocks:
        lines += [f"**{block.heading}**", ""]
        if not (block.rows and block.columns):
            lines += ["No numbers.", ""]
            continue
        lines += [f"| | {' | '.join(block.columns)} |", "|---|" + "--:|" * len(block.columns)]
        for label, cells in with_counts(block):
            shown = [_in_words(cell, notes, str, " <sub>{}–{}</sub>", "<sup>{}</sup>") for cell in cells]
            lines.append(f"| {' | '.join([label, *shown])} |")
        lines.append("")
    lines += [f"<sup>{letter}</sup> {note}  " for note, letter in notes.items()]
    return "\n".join([*lines, CONFIDENCE_NOTE if table.paper else ""]).rstrip() + "\n"


def to_latex(table: Table, blocks: Sequence[Block]) -> str:
    """A `table` environment, with tabulars for booktabs."""
    blocks = [for_readers(block) for block in blocks]
    notes = notes_of(blocks)
    about = " ".join(_about(table, blocks).replace("*", "").split())
    lines = [
        "% needs booktabs and adjustbox",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{_escape(caption_of(table))}. {_escape(about)}}}",
        rf"\label{{tab:{table.name}}}",
    ]
    for block in blocks:
        if not (block.rows and block.columns):
            continue
        columns = [_escape(column) for column in block.columns]
        lines += [
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            rf"\emph{{{_escape(block.heading)}}} & {' & '.join(columns)} \\",
            r"\midrule",
        ]
        for label, cells in with_counts(block):
            shown = [
                _in_words(cell, notes, _escape, r" {{\scriptsize {}--{}}}", r"\textsuperscript{{{}}}") for cell in cells
            ]
            lines.append(rf"{' & '.join([_escape(label), *shown])} \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}", r"\par\medskip"]
    footnotes = [rf"\textsuperscript{{{letter}}} {_escape(note)}." for note, letter in notes.items()]
    footnotes += [_escape(CONFIDENCE_NOTE)] if table.paper else []
    return "\n".join([*lines, rf"{{\footnotesize\raggedright {' '.join(footnotes)}\par}}", r"\end{table}", ""])


def index(tables: Collection[Table], runs: Runs) -> str:
    """README.md of the folder: what there is, and how it came about."""
    split = next((content["split"] for metrics in runs.values() for content in metrics.values()), "none")
    rows = [f"| [{caption_of(t)}]({t.name}.md) | [csv]({t.name}.csv) | [tex]({t.name}.tex) |" for t in tables]
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
            "Intervals are 95 %. Of one run: Wilson's for shares, the bootstrap's for CIDEr and F1, of FID from its",
            "derivative; they cover the choice of test items, not of the training seed. Of several runs: wider, by",
            "Student's t over them.",
            "",
            "| table | | |",
            "|---|---|---|",
            *rows,
            "",
            "## Runs behind them",
            "",
            "| run | model | benchmark | items |",
            "|---|---|---|--:|",
            *lines,
            "",
        ]
    )


def caption_of(table: Table) -> str:
    """What stands above a table."""
    return f"Table {table.paper}: {table.title}" if table.paper[:1].isdigit() else table.title


def _about(table: Table, blocks: Sequence[Block]) -> str:
    """What to know before reading the table."""
    text = f"{table.about} Small numbers are 95 % intervals."
    reasons: dict[str, list[str]] = {}
    for header, reason in blocks[0].left_out.items():
        reasons.setdefault(reason, []).append(header)
    if reasons:
        text += " Not shown: " + "; ".join(f"{', '.join(headers)} ({why})" for why, headers in reasons.items()) + "."
    return f"{text}\n\n{WORLD}" if any(column.miniature for column in table.columns) else text


def for_readers(block: Block) -> Block:
    """The block without the columns that are left out for readers."""
    keep = [index for index, column in enumerate(block.columns) if column not in block.left_out]
    rows = [(label, [cells[index] for index in keep]) for label, cells in block.rows]
    return replace(block, columns=[block.columns[index] for index in keep], rows=rows)


def notes_of(blocks: Sequence[Block]) -> dict[str, str]:
    """A mark for each reason why a cell is empty, in reading order: a to z, then aa to az."""
    cells = [cell for block in blocks for _, row in block.rows for cell in row]
    marks = [*ascii_lowercase, *(f"a{letter}" for letter in ascii_lowercase)]
    return dict(zip(dict.fromkeys(cell.note for cell in cells if not cell.text), marks, strict=False))


def with_counts(block: Block) -> list[tuple[str, list[Cell]]]:
    """The block's rows, ours with their numbers of items: below a column, or in its cells where they differ."""
    if block.source != "ours":
        return block.rows
    numbers = [
        sorted({cell.n for cell in cells if cell.n}) for cells in zip(*(row for _, row in block.rows), strict=True)
    ]
    rows = [
        (label, [_count_shown(cell) if len(ns) > 1 else cell for cell, ns in zip(cells, numbers, strict=True)])
        for label, cells in block.rows
    ]
    below = [Cell(text=str(ns[0]) if len(ns) == 1 else " ") for ns in numbers]
    return [*rows, ("number of items", below)] if any(cell.text != " " for cell in below) else rows


def _count_shown(cell: Cell) -> Cell:
    if cell.interval is None:
        return cell
    low, high = cell.interval
    return replace(cell, interval=(low, f"{high}, n={cell.n}"))


def _in_words(cell: Cell, notes: Mapping[str, str], escape: Callable[[str], str], interval: str, mark: str) -> str:
    """A cell for reading in a markup language: how it escapes text, formats an interval and a footnote's mark."""
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
        ("↓", r"$\downarrow$"),
    ]:
        text = text.replace(plain, escaped)
    for character in "%&#_":
        text = text.replace(character, f"\\{character}")
    return text.replace("–", "--")

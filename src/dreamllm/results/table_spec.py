"""Which number stands in which cell: reads paper/tables.yaml and the published numbers beside it.

A cell of ours is found by model, benchmark, metric and (optionally) group; what the row leaves open, the column says.
A cell's id is TABLE.ROW.COLUMN, and is the same for a published cell and for the one of ours that stands beside it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from dreamllm.config.base import Section
from dreamllm.config.reading import ConfigProblem, read_yaml
from dreamllm.evaluate.files import BenchmarkProblem, read_text


class Column(Section):
    """A column."""

    header: str
    """What stands above it."""
    measure: Annotated[str, Field(pattern=r"^([a-z0-9_]+/\w+)?$")] = ""
    """BENCHMARK/METRIC of our numbers; empty for a setting, which rows give."""
    paper: str = ""
    """Column of the published table; empty for one that the paper does not have."""
    miniature: bool = False
    """Whether ours is of the emoji world. Beside a published column it stands in for it, and is never subtracted."""
    model: str = ""
    group: str = ""
    scale: Literal[1, 100] = 100
    """Factor for display: 100 for shares and CIDEr."""


class Row(Section):
    """A row of our numbers."""

    label: str
    """What stands before it."""
    model: str = ""
    group: str = ""
    paper: str = ""
    """Row of the published table beside which it stands; empty for one that the paper does not have."""
    lacks: dict[str, str] = {}
    """Why the model has no numbers on a benchmark."""
    given: dict[str, str] = {}
    """Cells that are settings, by column header."""


class Table(Section):
    """A table."""

    name: str
    """Of its files, and of paper/NAME.csv."""
    paper: str = ""
    """Its number in the paper, or where the paper has the numbers; empty for a table that the paper does not have."""
    title: str
    about: str
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _cells_are_told_apart(self) -> Table:
        for what, names in (
            ("row", [slug(row.paper or row.label) for row in self.rows]),
            ("column", [slug(column.paper or column.header) for column in self.columns if not column.miniature]),
            ("miniature column", [slug(column.paper or column.header) for column in self.columns if column.miniature]),
        ):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"two cells would have the same id: {what} {twice[0]} stands twice")
        return self

    def cell_id(self, row: Row, column: Column) -> str:
        """The id of a cell of ours."""
        return f"{self.name}.{slug(row.paper or row.label)}.{slug(column.paper or column.header)}"


@dataclass(frozen=True)
class PublishedCell:
    """A number of the paper, or the reason in `note` why none is known (value "").

    confidence: C, S or D, see paper/README.md.  n: items behind it, "" where the paper does not say
    """

    id: str
    row: str
    column: str
    value: str
    n: str
    protocol: str
    confidence: str
    source: str
    note: str


Published = Mapping[str, PublishedCell]  # by id, in the order of the files


def slug(words: str) -> str:
    """A name as part of an id: DreamLLM-7B* is dreamllm_7b_star."""
    return re.sub(r"[^a-z0-9]+", "_", words.lower().replace("*", " star")).strip("_")


def read_tables(path: Path) -> dict[str, Table]:
    """The tables of paper/tables.yaml by name. Raises ConfigProblem, naming every key that is wrong."""
    tables, problems = {}, []
    for name, content in read_yaml(path).items():
        try:
            tables[name] = Table.model_validate({"name": name} | content)
        except (ValidationError, TypeError) as error:
            details = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": "is no mapping"}]
            problems += [f"{'.'.join(map(str, (name, *detail['loc'])))}: {detail['msg']}" for detail in details]
    if problems:
        raise ConfigProblem("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems]))
    return tables


def read_published(folder: Path) -> dict[str, PublishedCell]:
    """All published numbers: the CSV files of the folder `paper`.

    Raises BenchmarkProblem for wrong columns, an id that is not TABLE.ROW.COLUMN, doubled or unexplained cells.
    """
    cells: dict[str, PublishedCell] = {}
    for path in sorted(folder.glob("*.csv")):
        reader = csv.DictReader(io.StringIO(read_text(path)))
        wanted = ["id", "table", "row", "column", "value", "n", "protocol", "confidence", "source", "note"]
        if reader.fieldnames != wanted:
            raise BenchmarkProblem(path, "line 1", f"should have the columns {', '.join(wanted)}")
        for line in reader:
            place = f"line {reader.line_num}"
            right = f"{path.stem}.{slug(line['row'])}.{slug(line['column'])}"
            if line["id"] != right:
                raise BenchmarkProblem(path, place, f"has the id {line['id']}, row and column make it {right}")
            if right in cells:
                raise BenchmarkProblem(path, place, f"cell {right} occurs twice")
            if not line["value"] and not line["note"]:
                raise BenchmarkProblem(path, place, f"cell {right} is empty and does not say why")
            cells[right] = PublishedCell(**{key: value for key, value in line.items() if key != "table"})
    return cells

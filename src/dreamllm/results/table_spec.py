"""The layout of the result tables (paper/tables.yaml) and the published numbers (paper/*.csv).

A measured cell is looked up by model, benchmark, metric and (optionally) group. Row and column each give a part of
these. A cell's id is TABLE.ROW.COLUMN; a published cell and the measured cell that is compared with it share one id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from dreamllm.config.base import Section
from dreamllm.config.reading import ConfigProblem, read_yaml
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.results.csv_files import read_csv

Named = TypeVar("Named", bound=Section)


class Column(Section):
    """A column."""

    header: str
    measure: Annotated[str, Field(pattern=r"^([a-z0-9_]+/\w+)?$")] = ""
    """BENCHMARK/METRIC of the measured numbers; empty for a setting, whose values the rows give."""
    paper: str = ""
    """Column of the published table; empty for one that the paper does not have."""
    miniature: bool = False
    """Whether the numbers are of the emoji world: a stand-in for the published column, never subtracted from it."""
    model: str = ""
    group: str = ""
    scale: Literal[1, 100] = 100
    """Factor for display: 100 for shares and CIDEr."""


class Row(Section):
    """A row of measured numbers."""

    label: str
    model: str = ""
    group: str = ""
    paper: str = ""
    """Row of the published table that it is compared with; empty for one that the paper does not have."""
    lacks: dict[str, str] = {}
    """Benchmarks on which the model has no numbers, each with the reason."""
    given: dict[str, str] = {}
    """Values of settings by column header."""


class Table(Section):
    """A table."""

    id: str
    """Name of its files, and of paper/ID.csv."""
    paper: str = ""
    """Its number in the paper, or where the paper has the numbers; empty for a table that the paper does not have."""
    title: str
    about: str
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _cell_ids_are_unique(self) -> Table:
        for what, names in (
            ("row", [slug(row.paper or row.label) for row in self.rows]),
            ("column", [slug(column.paper or column.header) for column in self.columns if not column.miniature]),
            ("miniature column", [slug(column.paper or column.header) for column in self.columns if column.miniature]),
        ):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"two cells would have the same id: {what} {twice[0]} stands twice")
        return self

    @property
    def caption(self) -> str:
        """The title, with the number of the paper's table where it has one."""
        return f"Table {self.paper}: {self.title}" if self.paper[:1].isdigit() else self.title

    def cell_id(self, row: Row, column: Column) -> str:
        """The id of a measured cell."""
        return f"{self.id}.{slug(row.paper or row.label)}.{slug(column.paper or column.header)}"


@dataclass(frozen=True)
class PublishedCell:
    """A number of the paper, or the reason in `note` why none is known (value "").

    confidence: C, S, Q or D, see paper/README.md.  n: items behind it, "" where the paper does not say
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
    """The tables of paper/tables.yaml by id. Raises ConfigProblem, naming every key that is wrong."""
    tables, problems = read_sections(path, Table)
    if problems:
        raise ConfigProblem("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems]))
    return tables


def read_sections(path: Path, kind: type[Named]) -> tuple[dict[str, Named], list[str]]:
    """The entries of a YAML file as sections with their key as `id`, and a line for each key that is wrong."""
    found, problems = {}, []
    for id_, content in read_yaml(path).items():
        try:
            found[id_] = kind.model_validate({"id": id_} | content)
        except (ValidationError, TypeError) as error:
            details = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": "is no mapping"}]
            problems += [f"{'.'.join(map(str, (id_, *detail['loc'])))}: {detail['msg']}" for detail in details]
    return found, problems


def read_published(folder: Path) -> dict[str, PublishedCell]:
    """All published numbers: the CSV files of the folder `paper`.

    Raises BenchmarkProblem for wrong columns, an id that is not TABLE.ROW.COLUMN, doubled or unexplained cells.
    """
    names = [one.name for one in fields(PublishedCell)]
    columns = [names[0], "table", *names[1:]]
    cells: dict[str, PublishedCell] = {}
    for path in sorted(folder.glob("*.csv")):
        frame = read_csv(path)
        if list(frame.columns) != columns:
            raise BenchmarkProblem(path, "line 1", f"should have the columns {', '.join(columns)}")
        for line, values in enumerate(frame[names].itertuples(index=False, name=None), 2):
            cell = PublishedCell(*values)
            id_ = f"{path.stem}.{slug(cell.row)}.{slug(cell.column)}"
            if cell.id != id_:
                raise BenchmarkProblem(path, f"line {line}", f"has the id {cell.id}, row and column make it {id_}")
            if id_ in cells:
                raise BenchmarkProblem(path, f"line {line}", f"cell {id_} occurs twice")
            if not cell.value and not cell.note:
                raise BenchmarkProblem(path, f"line {line}", f"cell {id_} is empty and does not say why")
            cells[id_] = cell
    return cells

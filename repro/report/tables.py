"""The tables in results/ as the report shows them: from their CSVs, by the columns that each table declares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..tables.csv_rows import Row
from ..tables.make import TABLES
from ..tables.table import Column, Table, is_number
from ..tables.text import NOT_MEASURED

CLAIMS = "claims"


def _of_csv(name: str, title: str, absent: str = "") -> Column[Row]:
    """A column that is shown as it stands in the CSV."""
    return Column(name, title, lambda row: row[name], absent=absent)


CLAIM_COLUMNS = (
    _of_csv("claim", "Claim"),
    _of_csv("verdict", "Verdict"),
    _of_csv("reason", "Why"),
    _of_csv("printed", "Printed"),
    _of_csv("recomputed", "Recomputed"),
    _of_csv("measured", "Measured"),
    _of_csv("on_embedded_models", "On embedded models", NOT_MEASURED),
    _of_csv("command", "What would measure it"),
)


@dataclass(frozen=True)
class Cell:
    """Text that is shown, and the CSV's own value, by which rows are sorted."""

    text: str
    value: str


@dataclass(frozen=True)
class DisplayTable:
    """A table of the report; `id` is unique on the page."""

    id: str
    kind: str
    columns: Sequence[Column[Any]]
    rows: tuple[tuple[Cell, ...], ...]

    @cached_property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers and stand to the right; claims are sentences."""
        values = [[row[place].value for row in self.rows] for place in range(len(self.columns))]
        return [
            self.kind != CLAIMS and any(column) and all(is_number(value or "0") for value in column)
            for column in values
        ]


def display_table(kind: str, name: str, rows: list[Row]) -> DisplayTable:
    """Rows of a kind of table under an id; what no table declares shows every column as it stands."""
    columns = _columns(kind, rows)
    shown = tuple(tuple(Cell(column.shown(row), row[column.name]) for column in columns) for row in rows)
    return DisplayTable(name, kind, columns, shown)


def _columns(kind: str, rows: list[Row]) -> Sequence[Column[Any]]:
    if kind == CLAIMS:
        return CLAIM_COLUMNS
    if declared := _declared(kind, rows):
        return declared.shown_columns(rows)
    return [_of_csv(name, name.replace("_", " ")) for name in rows[0]]


def _declared(kind: str, rows: list[Row]) -> Table[Any] | None:
    """The table whose columns the CSV has, of several the one of most; else the table of that name.

    A file may bear another name than its table: `batch_half` is a question's.
    """
    found: dict[int, Table[Any]] = {}
    for table in TABLES.values():
        names = [column.name for column in table.columns(()) if not column.optional]
        if rows and rows[0].keys() >= set(names):
            found.setdefault(len(names), table)
    return found[max(found)] if found else TABLES.get(kind)

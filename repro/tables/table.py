"""One declaration of a table: its rows and columns. The CSV is the table; Markdown and HTML show it.

A table's values are rounded once, for the CSV. What people see is made from the CSV's text by each column's
form, so that a page needs the CSV alone and cannot say another thing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from ..measured.paired_bootstrap import Interval
from .csv_rows import Row, StoredRow, csv_text
from .text import MEASURED, number_text, table_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Entry = TypeVar("Entry")
Value = str | int | float | Interval | None
Form = Callable[[str], str]


def number(digits: int, factor: float = 1.0, sign: str = "", end: str = "") -> Form:
    """A form for numbers: times `factor`, rounded to `digits`; `sign` "+" shows it always."""

    def form(value: str) -> str:
        return f"{float(value) * factor:{sign},.{digits}f}{end}"

    return form


PERCENT = number(0, 100, end=" %")
PERCENT_1 = number(1, 100, end=" %")
MEGABYTES = number(2, 1e-6)


@dataclass(frozen=True)
class Column(Generic[Entry]):
    """A column: its name in the CSV, its title for people (empty: in the CSV alone), its value and its form."""

    name: str
    title: str
    value: Callable[[Entry], Value]
    digits: int | None = None
    """Decimals in the CSV; None: as Python prints the value."""
    form: Form = str
    bounds: bool = False
    """Whether the value is an interval: the CSV has NAME, NAME_low and NAME_high."""
    best: Literal["most", "least"] | None = None
    """Which values of a block of rows are marked in Markdown."""
    absent: str = ""
    """Text shown without a value: this, or what stands in the column of this name, which may be hidden."""
    beside: str = ""
    """Column of a text that is shown behind a value, such as of what it is the mean; it may be hidden."""
    optional: bool = False
    """Whether the column is left out of a CSV in which no row has a value."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its columns in the CSV."""
        ends = ("", "_low", "_high") if self.bounds else ("",)
        return tuple(f"{self.name}{end}" for end in ends)

    def fields(self, entry: Entry) -> dict[str, str]:
        """Text of an entry in the CSV by name; bounds are left out where there is no interval."""
        value = self.value(entry)
        if isinstance(value, Interval):
            numbers = (value.value, value.low, value.high)
            return {name: self._text(one) for name, one in zip(self.names, numbers, strict=True)}
        return {self.name: self._text(value)}

    def shown(self, row: Row) -> str:
        """Text that people see of a row of the CSV."""
        if not row[self.name]:
            absent = row.get(self.absent, self.absent)
            return "" if absent == MEASURED else absent  # its row is there, and has no such value
        value = self._formed(row, self.name)
        if self.bounds and row.get(f"{self.name}_low"):
            low, high = (self._formed(row, f"{self.name}_{end}") for end in ("low", "high"))
            value = f"{value} [{low}, {high}]"
        beside = row.get(self.beside, "")
        return f"{value}, {beside}" if beside else value

    def _formed(self, row: Row, name: str) -> str:
        try:
            return self.form(row[name])
        except ValueError as error:
            if isinstance(row, StoredRow):
                raise row.not_a_number(name) from error
            raise

    def _text(self, value: str | float | None) -> str:
        if value is None or isinstance(value, str) or self.digits is None:
            return "" if value is None else str(value)
        return number_text(value, self.digits)


def task_column(task: str, score: Callable[[Entry, str], float | None]) -> Column[Entry]:
    """The column of a task, in percent. score: of an entry and a task, a share; None where not measured."""

    def percent(entry: Entry) -> float | None:
        found = score(entry, task)
        return None if found is None else 100 * found

    return Column(task, task, percent, 3, number(1), best="most")


@dataclass(frozen=True)
class Table(Generic[Entry]):
    """A table of results/: how it is read from records, and how it is written and shown."""

    name: str
    title: str
    """Title of its section in the report."""
    command: str
    """What measures it."""
    read: Callable[..., Any]
    """Data from folders of records; raises UserError."""
    entries: Callable[[Any], Iterable[Entry]]
    columns: Callable[[Sequence[str]], Sequence[Column[Entry]]]
    """Columns in order, given the names of the tasks."""
    above: Callable[[Any], str]
    """Markdown above the table: title, settings, what the columns mean."""
    tasks: Callable[[Any], Sequence[str]] = lambda data: ()
    below: Callable[[Any], str] = lambda data: ""
    """Markdown of other sections below the table, or nothing."""
    block: Callable[[Row], object] = lambda row: None
    """What rows have in common among which the best are marked; None: nothing is marked."""
    page: Callable[[Any], str] | None = None
    """The whole Markdown, where a row that people read is several rows of the CSV; None: as `markdown` says."""
    figure: Callable[[Any], Figure] | None = None

    def csv(self, data: Any) -> str:
        """The table as CSV."""
        columns, entries = self.columns(self.tasks(data)), list(self.entries(data))
        columns = [column for column in columns if not column.optional or any(map(column.value, entries))]
        names = [name for column in columns for name in column.names]
        return csv_text(names, (_merged(columns, entry) for entry in entries))

    def markdown(self, data: Any) -> str:
        """The page of the table: what stands above, its rows, what stands below."""
        if self.page is not None:
            return self.page(data)
        rows = list(csv.DictReader(io.StringIO(self.csv(data))))
        table = markdown_table(self.shown_columns(rows), rows, self.block)
        return "\n\n".join(filter(None, [self.above(data), table, self.below(data)])) + "\n"

    def shown_columns(self, rows: Sequence[Row]) -> list[Column[Entry]]:
        """Columns that people see of a CSV's rows: a column that is not declared is a task."""
        known = {name for column in self.columns(()) for name in column.names}
        tasks = [name for name in rows[0] if name not in known] if rows else []
        return [column for column in self.columns(tasks) if column.title and rows and column.name in rows[0]]


def _merged(columns: Sequence[Column[Entry]], entry: Entry) -> dict[str, str]:
    return {name: text for column in columns for name, text in column.fields(entry).items()}


def markdown_table(
    columns: Sequence[Column[Any]], rows: Sequence[Row], block: Callable[[Row], object] = lambda row: None
) -> str:
    """Rows of a CSV as a Markdown table; the best of each block of rows are bold."""
    lines = [table_row(column.title for column in columns)]
    lines.append(table_row("---:" if _is_numeric(column, rows) else "---" for column in columns))
    for found, group in groupby(rows, block):
        members = list(group)
        best = [None if found is None else _best(column, members) for column in columns]
        for row in members:
            texts = (column.shown(row) for column in columns)
            lines.append(table_row(_marked(text, mark) for text, mark in zip(texts, best, strict=True)))
    return "\n".join(lines)


def _marked(text: str, mark: str | None) -> str:
    return f"**{text}**" if text and text == mark else text


def _best(column: Column[Any], rows: Sequence[Row]) -> str | None:
    """How the best value of a block is shown: all that are shown alike are marked. None for a single value."""
    measured = [row for row in rows if row[column.name]]
    if column.best is None or len(measured) < 2:
        return None
    choose = max if column.best == "most" else min
    return column.shown(choose(measured, key=lambda row: float(row[column.name])))


def _is_numeric(column: Column[Any], rows: Sequence[Row]) -> bool:
    return any(row[column.name] for row in rows) and all(is_number(row[column.name] or "0") for row in rows)


def is_number(text: str) -> bool:
    """Whether a text is a number as Python reads it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def entries_as_rows(columns: Sequence[Column[Entry]], entries: Iterable[Entry]) -> Iterator[Row]:
    """Entries as rows of a CSV that is not written: of a table inside another table's page."""
    names = [name for column in columns for name in column.names]
    for entry in entries:
        yield dict.fromkeys(names, "") | _merged(columns, entry)

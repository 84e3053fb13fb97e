"""Rows of the CSV tables in results/, read and written the same way everywhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...method.errors import UserError
from ..records import write_text

AGAIN = "make it again (results/README.md has the command)"
Row = dict[str, str]


class StoredRow(Row):
    """A row that knows its file: a column that it lacks is a damaged or old file, and said so."""

    def __init__(self, path: Path, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, column: str) -> str:
        raise UserError(f"{self._path} has no column '{column}'; {AGAIN}")

    def not_a_number(self, column: str) -> UserError:
        """What is wrong where a column of numbers holds something else."""
        return UserError(f"{self._path} has {self[column]!r} for the number '{column}'; {AGAIN}")


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV; none where there is no file.

    Raises UserError that names the file for one that is empty, cut off, or no CSV in UTF-8; and where a row is
    asked for a column that it does not have.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no readable CSV ({error}); {AGAIN}") from error
    if not text.endswith("\n") or any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path} is empty or cut off; {AGAIN}")
    return [StoredRow(path, row) for row in rows]


def renewed(
    rows: Iterable[Mapping[str, Any]],
    found: Iterable[Mapping[str, Any]],
    place: Callable[[Mapping[str, Any]], Hashable],
) -> list[Mapping[str, Any]]:
    """A table's rows without those that were measured anew, which follow them. place: tells rows apart."""
    found = list(found)
    new = {place(row) for row in found}
    return [*(row for row in rows if place(row) not in new), *found]


def place_by(columns: Sequence[str]) -> Callable[[Mapping[str, Any]], Hashable]:
    """A `place` of `renewed`: the text of these columns."""
    return lambda row: tuple(str(row[name]) for name in columns)


def csv_path(output: Path) -> Path:
    """OUTPUT.csv."""
    return output.with_name(f"{output.name}.csv")


def write_table(output: Path, table: str, page: str) -> None:
    """Write OUTPUT.csv and OUTPUT.md."""
    write_text(csv_path(output), table)
    write_text(output.with_name(f"{output.name}.md"), page)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows under these columns, empty where a row has none; raises ValueError for a column not named."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

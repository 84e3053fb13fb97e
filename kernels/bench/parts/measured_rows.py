"""Rows of measured times: printed as they come, and added to a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...errors import KernelError


def print_rows(rows: Iterable[Mapping[str, object]], table: Path | None = None) -> None:
    """Print each row as a line of JSON once it is there, and append it to a CSV, if one is named.

    Raises KernelError as `append` does.
    """
    for row in rows:
        print(json.dumps(row), flush=True)
        if table:
            append(row, table)


def append(row: Mapping[str, object], path: Path) -> None:
    """Add a row to a CSV, whose first line names the columns. Raises KernelError for one with other columns."""
    begins = not path.exists()
    with path.open("a+", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if begins:
            writer.writeheader()
        else:
            file.seek(0)
            if (known := next(csv.reader(file), [])) != list(row):
                raise KernelError(f"{path} has the columns {', '.join(known)}, not {', '.join(row)}")
        writer.writerow(row)

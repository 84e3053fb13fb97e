"""What the tables of accuracy have in common: an entry is a place, with its cell where it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from ..measured.cells import Key, MeasuredCell
from ..measured.paired_bootstrap import Interval
from .table import MEGABYTES, PERCENT_1, Column, number
from .table_data import TableData
from .text import MEASURED, unmeasured_text


@dataclass(frozen=True)
class AccuracyEntry:
    """A model, method and sparsity of a table, its cell, and the cell that it is compared with."""

    data: TableData
    key: Key
    other: MeasuredCell | None
    """None: compared with nothing."""

    @property
    def cell(self) -> MeasuredCell | None:
        """The cell; None where it was not measured."""
        return self.data.cells.get(self.key)

    @property
    def status(self) -> str:
        """Whether it was measured, and if not, whether it can be."""
        if self.cell is not None:
            return MEASURED
        return unmeasured_text(self.data.unreachable.get(self.key))

    def of_record(self, *path: str) -> float | None:
        """A number of the record by its place there; None where it was not measured."""
        value = None if self.cell is None else self.cell.record
        for part in path:
            value = None if value is None else value[part]
        return value

    @property
    def quantisation(self) -> str | None:
        """Name of how the weights were quantised; None where they were not, or nothing was measured."""
        found = None if self.cell is None else self.cell.record.get("quantisation")
        return None if found is None else found["name"]

    @property
    def average_difference(self) -> Interval | None:
        """Average minus that of the other cell, in points."""
        if self.cell is None or self.other is None:
            return None
        return self.data.average_difference(self.cell, self.other)

    @property
    def perplexity_ratio(self) -> Interval | None:
        """Perplexity over that of the other cell."""
        if self.cell is None or self.other is None:
            return None
        return self.data.perplexity_ratio(self.cell, self.other)


Entry = TypeVar("Entry", bound=AccuracyEntry)

QUANTISATION = Column[AccuracyEntry]("quantisation", "Weights", lambda entry: entry.quantisation, optional=True)
REALISED = Column[AccuracyEntry](
    "realised_sparsity",
    "Realised",
    lambda entry: entry.of_record("realised", "realised_sparsity"),
    5,
    PERCENT_1,
)
BYTES = Column[AccuracyEntry](
    "bytes_per_token", "MB/token", lambda entry: entry.of_record("realised", "bytes_per_token"), 0, MEGABYTES
)
PERPLEXITY = Column[AccuracyEntry](
    "perplexity", "Perplexity", lambda entry: entry.of_record("perplexity"), 4, number(3), best="least"
)
AVERAGE = Column[AccuracyEntry](
    "average", "Average", lambda entry: entry.of_record("average"), 3, number(2), best="most", absent="status"
)
KEPT = Column[AccuracyEntry](
    "kept", "Kept %", lambda entry: None if entry.cell is None else entry.data.kept(entry.cell), 3, number(1),
    best="most",
)  # fmt: skip
STATUS = Column[AccuracyEntry]("status", "", lambda entry: entry.status)


def against(average: tuple[str, str], perplexity: tuple[str, str]) -> tuple[Column[AccuracyEntry], ...]:
    """Columns that compare with another cell, by their name and title."""
    return (
        Column(*average, lambda entry: entry.average_difference, 4, number(2, sign="+"), bounds=True),
        Column(*perplexity, lambda entry: entry.perplexity_ratio, 4, number(3), bounds=True),
    )


def score(entry: AccuracyEntry, task: str) -> float | None:
    """Score of a task as a share."""
    return entry.of_record("tasks", task, "value")

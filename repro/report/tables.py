"""The tables in results/ as the report shows them: which columns of a CSV, and in what form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ..tables.csv_rows import Row

Form = Callable[[str], str]


@dataclass(frozen=True)
class Column:
    """A column of a CSV: its name there, its title, and how a value is shown; bounds as name_low, name_high."""

    name: str
    title: str
    form: Form = str
    bounds: bool = False
    absent: str = ""
    """Text shown without a value: this, or what stands in the column of this name."""

    def text(self, row: Row) -> str:
        """Text that is shown of a row."""
        if not row[self.name]:
            return row.get(self.absent, self.absent)
        value = self.form(row[self.name])
        if not self.bounds or not row[f"{self.name}_low"]:
            return value
        low, high = (self.form(row[f"{self.name}_{end}"]) for end in ("low", "high"))
        return f"{value} [{low}, {high}]"


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
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @cached_property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers and stand to the right; claims are sentences."""
        values = [[row[place].value for row in self.rows] for place in range(len(self.columns))]
        return [self.kind != "claims" and any(column) and all(map(_is_number, column)) for column in values]


def number(digits: int, factor: float = 1.0, sign: str = "", end: str = "") -> Form:
    """A form for numbers: times `factor`, rounded to `digits`; `sign` "+" shows it always."""

    def form(value: str) -> str:
        return f"{float(value) * factor:{sign},.{digits}f}{end}"

    return form


PERCENT = number(0, 100, end=" %")
RATIO = number(3)
TASK = number(1)
MODEL = (Column("model", "Model"), Column("method", "Method"), Column("sparsity", "Sparsity", PERCENT))

TABLE1 = (
    *MODEL,
    Column("average", "Average", number(2), absent="status"),
    Column("kept", "Kept %", number(1)),
    Column("average_minus_dense", "Average − dense", number(2, sign="+"), bounds=True),
    Column("perplexity", "Perplexity", number(3)),
    Column("perplexity_ratio", "÷ dense", RATIO, bounds=True),
    Column("realised_sparsity", "Realised", number(1, 100, end=" %")),
    Column("bytes_per_token", "MB/token", number(2, 1e-6)),
)
TABLE2 = (
    Column("model", "Model"),
    Column("configuration", "Configuration"),
    Column("sparsity", "Sparsity", PERCENT),
    Column("average", "Average", number(2), absent="status"),
    Column("step", "Step", number(2, sign="+"), bounds=True),
    Column("kept", "Kept %", number(1)),
    Column("perplexity", "Perplexity", number(3)),
    Column("step_perplexity_ratio", "Step of perplexity", RATIO),
    Column("realised_sparsity", "Realised", number(1, 100, end=" %")),
)
SPEED = (
    Column("device", "Device"),
    *MODEL,
    Column("realised_sparsity", "Realised", number(1, 100, end=" %")),
    Column("batch", "Batch"),
    Column("prompt", "Prompt"),
    Column("tok_s", "tok/s", number(1)),
    Column("baseline", "Against"),
    Column("baseline_tok_s", "Its tok/s", number(1)),
    Column("speedup", "Speed-up", number(2, end="×")),
    Column("byte_limit_speedup", "Byte limit", number(2, end="×")),
    Column("bandwidth_gb_s", "GB/s", number(1)),
    Column("share_of_bandwidth", "Of peak", PERCENT),
)
FRONTIER = (
    *MODEL,
    Column("seed", "Seed"),
    Column("realised_sparsity", "Realised", number(1, 100, end=" %")),
    Column("bytes_per_token", "MB/token", number(2, 1e-6)),
    Column("perplexity", "Perplexity", number(3)),
    Column("average", "Average", number(2)),
    Column("search_seconds", "Search s", number(1)),
    Column("search_evaluations", "Evaluations"),
    Column("search_budget", "Budget"),
    Column("device", "Device"),
)
QUESTION = (
    *MODEL,
    Column("level", "What is varied"),
    Column("seeds", "Seeds"),
    Column("realised_sparsity", "Realised", number(1, 100, end=" %")),
    Column("bytes_per_token", "MB/token", number(2, 1e-6)),
    Column("perplexity", "Perplexity", number(3)),
    Column("perplexity_ratio", "÷ reference", RATIO, bounds=True),
    Column("average", "Average", number(2)),
    Column("average_difference", "− reference", number(2, sign="+"), bounds=True),
    Column("search_evaluations", "Evaluations", number(0)),
    Column("search_seconds", "Seconds", number(1)),
)
CLAIMS = (
    Column("claim", "Claim"),
    Column("verdict", "Verdict"),
    Column("reason", "Why"),
    Column("printed", "Printed"),
    Column("recomputed", "Recomputed"),
    Column("measured", "Measured"),
    Column("on_embedded_models", "On embedded models", absent="not measured"),
    Column("command", "What would measure it"),
)
KNOWN = {
    "table1": TABLE1,
    "table2": TABLE2,
    "frontier": FRONTIER,
    "frontier_long": FRONTIER,
    "question": QUESTION,
    "speed": SPEED,
    "claims": CLAIMS,
}
OWN_COLUMNS = frozenset(
    [
        "model",
        "method",
        "configuration",
        "sparsity",
        "realised_sparsity",
        "bytes_per_token",
        "dense_bytes_per_token",
        "perplexity",
        "average",
        "kept",
        "bits_per_byte",
        "step",
        "step_low",
        "step_high",
        "step_perplexity_ratio",
        "average_minus_dense",
        "average_minus_dense_low",
        "average_minus_dense_high",
        "perplexity_ratio",
        "perplexity_ratio_low",
        "perplexity_ratio_high",
        "status",
    ]
)
"""Columns of table1.csv and table2.csv that are no tasks."""


def display_table(kind: str, name: str, rows: list[Row]) -> DisplayTable:
    """Rows of a kind of table under an id; a kind that is not known shows every column as it stands."""
    names = list(rows[0])
    columns = KNOWN.get(kind) or tuple(Column(column, column.replace("_", " ")) for column in names)
    if kind in ("table1", "table2"):
        tasks = tuple(Column(task, task, TASK) for task in names if task not in OWN_COLUMNS)
        columns = (*columns, *tasks)
    shown = tuple(tuple(Cell(column.text(row), row[column.name]) for column in columns) for row in rows)
    return DisplayTable(name, kind, columns, shown)


def _is_number(value: str) -> bool:
    try:
        float(value or "0")
    except ValueError:
        return False
    return True

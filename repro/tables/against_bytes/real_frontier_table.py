r"""The frontier on a real model: every method against the bytes it reads, by protocol and calibration text.

python -m wisparse.repro.tables real_frontier \
    --records results/real/records/table1 results/real/records/method results/real/records/method_text \
    results/real/records/pruned \
    --where suite=wikitext search=medium --output results/real/frontier
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...measured.cells import is_trained
from ...measured.frontier import FrontierData
from ...measured.pruned_cells import pruned_lines
from ...measured.real_cells import RealData, Section, read_real_frontier
from ..table import MEGABYTES, PERCENT, Column, Table, Value, entries_as_rows, markdown_table, number
from ..text import headed, introduced
from .frontier_table import FRONTIER, Entry, columns, entries
from .real_rows import RealEntry, rows
from .real_table import HOW_READ


@dataclass(frozen=True)
class Placed:
    """A cell of a frontier, and the part of the page that it stands in."""

    entry: Entry
    section: Section

    @property
    def trained(self) -> bool:
        """Whether anything of its plan was trained."""
        return is_trained(self.entry[2])


def frontier_of(data: RealData, section: Section) -> FrontierData:
    """Cells of a section with a perplexity, the dense one of the suite among them."""
    dense = data.dense(section)
    cells = {} if dense is None else {(section.model, "dense", 0.0, dense.record["seed"]): dense}
    for (_, method, sparsity, seed), cell in data.cells_of(section).items():
        if method != "dense" and cell.record["perplexity"] is not None:
            cells[section.model, method, sparsity, seed] = cell
    return FrontierData(cells)


def placed_entries(data: RealData) -> Iterator[Placed]:
    """Cells of every section in the order of the table; the dense one stands in each."""
    for section in data.sections:
        for entry in entries(frontier_of(data, section)):
            yield Placed(entry, section)


def placed_columns(tasks: Sequence[str]) -> list[Column[Placed]]:
    """Columns of every frontier, then protocol, calibration text, and whether anything was trained."""

    def of_entry(column: Column[Entry]) -> Column[Placed]:
        def value(placed: Placed) -> Value:
            return column.value(placed.entry)

        return replace(column, value=value)

    return [
        *map(of_entry, columns(tasks)),
        Column("protocol", "Protocol", lambda placed: placed.section.protocol),
        Column("calibration", "Calibration", lambda placed: placed.section.text),
        Column("trained", "Trained", lambda placed: placed.trained),
    ]


COMPARED: list[Column[RealEntry]] = [
    Column("calibration", "Calibration", lambda entry: entry.section.text),
    Column("protocol", "Protocol", lambda entry: entry.section.protocol),
    Column("sparsity", "Sparsity", lambda entry: entry.sparsity, form=PERCENT),
    Column("method", "Method", lambda entry: entry.method),
    Column("trained", "Trained", lambda entry: "yes" if entry.trained else ""),
    Column("seeds", "Seeds", lambda entry: entry.comparison_text),
    Column("bytes", "MB/token", lambda entry: entry.of_record("realised", "bytes_per_token"), 0, MEGABYTES),
    Column("rise", "Rise ÷ TEAL's", lambda entry: entry.rise_share, 4, number(2), bounds=True),
]


def above(data: RealData) -> str:
    """How it is read, and each method against TEAL at the bytes that the method reads."""
    head = headed("# The frontier on a real model", data.cells.values())
    lines = [
        "A row of the first table is the mean over the seeds that can be compared. Trained: something of the "
        "plan was fitted by gradients, the model's weights as they are.",
        *(line.format(reference=data.reference) for line in HOW_READ[1:]),
        "What methods are compared with is of their own calibration text.",
        *pruned_lines(cell.record for cell in data.cells.values()),
    ]
    compared = [entry for section in data.sections for entry in rows(data, section) if entry.compared]
    shown = list(entries_as_rows(COMPARED, compared))
    sections = [introduced(head, lines), "## At the bytes that a method reads"]
    return "\n\n".join([*sections, markdown_table(COMPARED, shown), "## Every cell"])


REAL_FRONTIER: Table[Any] = replace(
    FRONTIER,
    name="real_frontier",
    title="The frontier on a real model",
    command="python repro/run.py experiment=method_real",
    read=read_real_frontier,
    entries=placed_entries,
    columns=placed_columns,
    above=above,
)

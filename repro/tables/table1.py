"""Table 1: every method at every sparsity, then WiSparse against the best baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..measured.cells import MeasuredCell
from ..measured.paired_bootstrap import RESAMPLES
from .accuracy import (
    AVERAGE,
    BYTES,
    KEPT,
    PERPLEXITY,
    QUANTISATION,
    REALISED,
    STATUS,
    AccuracyEntry,
    against,
    score,
)
from .csv_rows import Row
from .table import PERCENT, Column, Table, entries_as_rows, markdown_table, number, task_column
from .table_data import OURS, TableData, read_table
from .text import NOT_MEASURED, headed, introduced, settings_lines


def entries(data: TableData) -> Iterator[AccuracyEntry]:
    """Entries by model: the dense one, then every method at every sparsity, compared with the dense one."""
    for model in data.models:
        dense = data.dense(model)
        yield AccuracyEntry(data, (model, "dense", 0.0), dense)
        for sparsity in data.sparsities:
            for method in data.methods:
                yield AccuracyEntry(data, (model, method, sparsity), dense)


def columns(tasks: Sequence[str]) -> list[Column[AccuracyEntry]]:
    """Columns in the order of the CSV."""
    return [
        Column("model", "Model", lambda entry: entry.key[0]),
        Column("method", "Method", lambda entry: entry.key[1]),
        Column("sparsity", "Sparsity", lambda entry: entry.key[2], form=PERCENT),
        QUANTISATION,
        REALISED,
        BYTES,
        PERPLEXITY,
        AVERAGE,
        KEPT,
        *(task_column(task, score) for task in tasks),
        Column("bits_per_byte", "", lambda entry: entry.of_record("bits_per_byte"), 5),
        *against(("average_minus_dense", "Average − dense"), ("perplexity_ratio", "Perplexity ÷ dense")),
        Column(
            "dense_bytes_per_token", "", lambda entry: entry.of_record("realised", "dense_bytes_per_token"), 0
        ),
        STATUS,
    ]  # fmt: skip


def above(data: TableData) -> str:
    """Title, settings, and what the columns mean."""
    lines = [
        *settings_lines(data.cells.values()),
        "Realised: block weights not read, weighted by bytes, over the sparsely computed tokens. "
        "MB/token: weights read for such a token, lm_head and low-rank factors included.",
        f"Brackets: 95 % bootstrap intervals from {RESAMPLES:,} resamples, paired by item (averages) and by "
        "document (perplexity). Bold: best of its block.",
    ]
    head = headed("# Table 1", data.cells.values(), named="# Table 1 on the embedded models")
    return introduced(head, lines)


def block(row: Row) -> object:
    """Rows of one model and sparsity; the dense row is marked with none."""
    return None if row["method"] == "dense" else (row["model"], row["sparsity"])


@dataclass(frozen=True)
class Lead:
    """WiSparse against the best baseline at one model and sparsity; None where one is lacking."""

    data: TableData
    model: str
    sparsity: float
    ours: MeasuredCell | None
    rival: MeasuredCell | None

    @property
    def pair(self) -> tuple[MeasuredCell, MeasuredCell] | None:
        """Both cells."""
        return None if self.ours is None or self.rival is None else (self.ours, self.rival)


LEAD_COLUMNS: list[Column[Lead]] = [
    Column("model", "Model", lambda lead: lead.model),
    Column("sparsity", "Sparsity", lambda lead: lead.sparsity, form=PERCENT),
    Column("ours", "WiSparse", lambda lead: lead.pair and lead.pair[0].record["average"], 3, number(2),
           absent=NOT_MEASURED),
    Column("rival", "Best baseline", lambda lead: lead.pair and lead.pair[1].key[1]),
    Column("average", "Its average", lambda lead: lead.pair and lead.pair[1].record["average"], 3, number(2)),
    Column("difference", "Difference", lambda lead: lead.pair and lead.data.average_difference(*lead.pair), 4,
           number(2, sign="+"), bounds=True),
    Column("ratio", "Perplexity ratio", lambda lead: lead.pair and lead.data.perplexity_ratio(*lead.pair), 4,
           number(3), bounds=True),
]  # fmt: skip


def below(data: TableData) -> str:
    """WiSparse against the best baseline of each row, where there is one."""
    if OURS not in data.methods or len(data.methods) < 2:
        return ""
    leads = [
        Lead(
            data, model, sparsity, data.cells.get((model, OURS, sparsity)), data.best_baseline(model, sparsity)
        )
        for model in data.models
        for sparsity in data.sparsities
    ]
    return (
        "## WiSparse against the best baseline\n\n"
        "The best baseline of a row is the one with the highest average, chosen on these very items: "
        "the comparison favours it.\n\n"
    ) + markdown_table(LEAD_COLUMNS, list(entries_as_rows(LEAD_COLUMNS, leads)))


TABLE1 = Table(
    name="table1",
    title="Table 1: accuracy on the embedded models",
    command="make reproduce-table1 PROFILE=full",
    read=read_table,
    entries=entries,
    columns=columns,
    tasks=lambda data: data.tasks,
    above=above,
    below=below,
    block=block,
)

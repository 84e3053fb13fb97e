"""Table 2, the ablation: WiSparse stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...method.errors import UserError
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
from .table import PERCENT, Column, Table, task_column
from .table_data import TableData, read_table
from .text import headed, introduced, settings_lines

STAGES = {
    "dense": "dense",
    "wisparse_activation_only": "activation only",
    "wisparse_weight": "+ weight",
    "wisparse_coarse": "+ weight + coarse",
    "wisparse": "+ weight + coarse + fine",
}
"""Configurations by method, in the paper's order; each is compared with the one before it."""

FIRST_STAGE = "wisparse_activation_only"


def read_ablation(folder: Path) -> TableData:
    """Read every cell below a folder. Raises UserError when there are others than the stages'."""
    data = read_table(folder)
    if others := sorted({cell.key[1] for cell in data.cells.values()} - STAGES.keys()):
        raise UserError(
            f"{folder} holds {', '.join(others)}, which Table 2 has no row for; keep its records apart"
        )
    return data


def entries(data: TableData) -> Iterator[AccuracyEntry]:
    """Entries by model and sparsity, each compared with the stage before."""
    for model in data.models:
        for sparsity in data.sparsities:
            before = None
            for method in STAGES:
                key = (model, method, 0.0 if method == "dense" else sparsity)
                yield AccuracyEntry(data, key, None if method == FIRST_STAGE else before)
                before = data.cells.get(key)


def columns(tasks: Sequence[str]) -> list[Column[AccuracyEntry]]:
    """Columns in the order of the CSV; `step` is the average minus that of the stage before."""
    return [
        Column("model", "Model", lambda entry: entry.key[0]),
        Column("method", "", lambda entry: entry.key[1]),
        Column("configuration", "Configuration", lambda entry: STAGES[entry.key[1]]),
        Column("sparsity", "Sparsity", lambda entry: entry.key[2], form=PERCENT),
        QUANTISATION,
        REALISED,
        BYTES,
        PERPLEXITY,
        AVERAGE,
        KEPT,
        *(task_column(task, score) for task in tasks),
        *against(("step", "Step"), ("step_perplexity_ratio", "Step of perplexity")),
        STATUS,
    ]  # fmt: skip


def above(data: TableData) -> str:
    """Title, settings, and what the rows and columns mean."""
    lines = [
        *settings_lines(data.cells.values()),
        "Activation only: |x|, every projection at the same sparsity. Weight: |x|·c^α with α by layer. Coarse: "
        "sparsity over blocks. Fine: greedy inside them. α is searched last, after the stages that are on.",
        f"Step: against the row above; 95 % bootstrap intervals from {RESAMPLES:,} resamples, paired by item "
        "(average) and by document (perplexity).",
    ]
    stages = "WiSparse stage by stage"
    named = f"# Table 2 on the embedded models: {stages}"
    head = headed(f"# Table 2: {stages}", data.cells.values(), named=named)
    return introduced(head, lines)


TABLE2 = Table(
    name="table2",
    title="Table 2: WiSparse stage by stage",
    command="make reproduce-table2 PROFILE=full",
    read=read_ablation,
    entries=entries,
    columns=columns,
    tasks=lambda data: data.tasks,
    above=above,
)

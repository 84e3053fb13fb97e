"""The whole suite at full size with random weights: what each part of a cell takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...method.errors import UserError
from ..measured.cells import MeasuredCell, method_rank
from ..record_facts import hardware, has_random_weights
from .table import PERCENT_1, Column, Table, number, task_column
from .table_data import TableData, read_table
from .text import NOT_MEASURED, introduced, settings_lines

PARTS = {"load": "Load s", "plan": "Plan s", "evaluation": "Tasks s", "latency": "Speed s"}
"""Parts of a cell, in order; load is next to nothing where the cell before had the same model."""


def read_full_size(folder: Path) -> TableData:
    """Every cell below a folder. Raises UserError for one of a trained model: its scores belong in Table 1."""
    data = read_table(folder)
    for cell in data.cells.values():
        if not has_random_weights(cell.record["config"]):
            raise UserError(
                f"{cell.folder} has trained weights; this table is of random ones, Table 1 of its kind"
            )
    return data


def entries(data: TableData) -> Iterator[MeasuredCell]:
    """Cells by model, method and sparsity."""
    for key in sorted(data.cells, key=lambda key: (key[0], method_rank(key[1]), key[2])):
        yield data.cells[key]


def columns(tasks: Sequence[str]) -> list[Column[MeasuredCell]]:
    """Columns in the order of the CSV."""

    def seconds(part: str) -> Column[MeasuredCell]:
        return Column(f"{part}_s", PARTS[part], lambda cell: cell.record["seconds"][part], 3, number(1))

    return [
        Column("model", "Model", lambda cell: cell.key[0]),
        Column("method", "Method", lambda cell: cell.key[1]),
        Column("sparsity", "Sparsity", lambda cell: f"{cell.key[2]:g}", form=PERCENT_1),
        Column("realised_sparsity", "Realised", lambda cell: cell.record["realised"]["realised_sparsity"], 5,
               PERCENT_1),
        Column("items", "Items", lambda cell: sum(task["n"] for task in cell.record["tasks"].values())),
        *map(seconds, PARTS),
        Column("peak_gpu_bytes", "Peak GB", lambda cell: cell.record["memory"].get("cuda_bytes"),
               form=number(1, 1e-9), absent=NOT_MEASURED),
        Column("tok_s", "tok/s", lambda cell: cell.record["latency"]["tok_s"], 3, number(1)),
        Column("dense_tok_s", "Dense tok/s",
               lambda cell: cell.record["latency"]["timings"]["engine-dense"]["tok_s"], 3, number(1)),
        Column("average", "Average", lambda cell: cell.record["average"], 3, number(1)),
        Column("chance", "Chance", _chance, 3, number(1)),
        *(task_column(task, lambda cell, name: cell.record["tasks"][name]["value"]) for task in tasks),
        Column("device", "", lambda cell: hardware(cell.record["model"])),
        Column("commit", "", lambda cell: cell.record["git"]["commit"] if cell.record["git"] else ""),
    ]  # fmt: skip


def _chance(cell: MeasuredCell) -> float:
    """Mean over the tasks of what guessing reaches, in percent."""
    tasks = cell.record["tasks"]
    return 100 * sum(task["chance"] for task in tasks.values()) / len(tasks)


def above(data: TableData) -> str:
    """Title, settings, and what the columns mean."""
    latency = data.any_record["latency"]
    lines = [
        "**Random weights: every score is chance, give or take its few items, and says nothing of a method.**",
        *settings_lines(data.cells.values()),
        f"Speed: the decode engine, batch {latency['batch']}, a prompt of {latency['prompt']} tokens and "
        f"{latency['new_tokens']} new ones, default tiles; dense is its own dense path, timed in turn.",
        "Plan: calibration and search. Peak: highest GPU memory of the cell.",
    ]
    return introduced("# The whole suite at full size", lines)


FULL_SIZE = Table(
    name="full_size",
    title="The whole suite at full size",
    command="python repro/run.py experiment=full_size",
    read=read_full_size,
    entries=entries,
    columns=columns,
    tasks=lambda data: data.tasks,
    above=above,
)

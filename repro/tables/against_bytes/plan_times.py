"""What a plan takes where one process has a GPU to itself, beside WiSparse's search at its paper's budget.

python -m wisparse.repro.tables plan_times --records outputs/plan_times --output results/real/plan_times
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...measured.cells import MeasuredCell
from ...measured.frontier import search_seconds
from ...measured.real_cells import RealData, read_tried
from ..table import PERCENT, Column, Table, number
from ..text import device_text, headed, introduced, settings_lines

COMPARED = "wisparse"
BY_GENERATION = "coarse"
"""The stage of WiSparse whose time is that of its generations."""


def entries(data: RealData) -> list[tuple[RealData, MeasuredCell]]:
    """Cells in the order of the table, each with all that it is compared with."""
    return [(data, cell) for cell in data.cells.values()]


def whole_seconds(record: dict[str, Any]) -> float:
    """Seconds of a plan with as many generations as the search's budget has, where fewer were run."""
    times, asked = record["plan"]["seconds_by_stage"], record["config"]["search"]["generations"]
    return search_seconds(record) + times.get(BY_GENERATION, 0.0) * (asked / _generations(record) - 1)


def _generations(record: dict[str, Any]) -> int:
    return record["config"]["allocation"]["generations"]


def _stages(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {took:.1f}" for name, took in record["plan"]["seconds_by_stage"].items())


def _share(entry: tuple[RealData, MeasuredCell]) -> float | None:
    """Seconds over WiSparse's of the same model and sparsity on the same device; None without."""
    data, cell = entry
    if cell.record["method"]["name"] == COMPARED:
        return None
    for other in data.cells.values():
        if other.record["method"]["name"] == COMPARED and _setting(other.record) == _setting(cell.record):
            return whole_seconds(cell.record) / whole_seconds(other.record)
    return None


def _setting(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["model"]["name"], record["sparsity"], device_text(record)


def columns(_: Sequence[str]) -> list[Column[tuple[RealData, MeasuredCell]]]:
    """Columns in the order of the CSV."""
    return [
        Column("method", "Method", lambda entry: entry[1].record["method"]["name"]),
        Column("search", "Budget", lambda entry: entry[1].record["config"]["search"]["name"]),
        Column("sparsity", "Sparsity", lambda entry: entry[1].record["sparsity"], form=PERCENT),
        Column("text", "Calibration",
               lambda entry: "{sequences} × {length} {name}".format_map(entry[1].record["calibration"])),
        Column("stages", "Stages, s", lambda entry: _stages(entry[1].record)),
        Column("seconds", "Measured, s", lambda entry: search_seconds(entry[1].record), 2, number(0)),
        Column("whole_seconds", "At the whole budget, s", lambda entry: whole_seconds(entry[1].record), 2,
               number(0)),
        Column("share", "÷ WiSparse's", _share, 4, number(2)),
    ]  # fmt: skip


def above(data: RealData) -> str:
    """How the columns are read, and the settings."""
    cells: Iterable[MeasuredCell] = list(data.cells.values())
    fewer = [
        f"{_generations(cell.record)} of {cell.record['config']['search']['generations']}"
        for cell in cells
        if cell.record["method"]["name"] == COMPARED
    ]
    lines = (
        "One process had the GPU to itself, one plan each, from nothing.",
        f"WiSparse ran {' and '.join(fewer) or 'none'} generations: the time of that stage is taken as many "
        "times as the whole budget has more; its other stages are whole.",
        *settings_lines(cells),
    )
    return introduced(headed("# What a plan takes", cells), lines)


PLAN_TIMES = Table(
    name="plan_times",
    title="What a plan takes",
    command="python repro/run.py experiment=plan_times",
    read=read_tried,
    entries=entries,
    columns=columns,
    above=above,
)

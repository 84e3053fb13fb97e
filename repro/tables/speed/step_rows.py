"""Rows of whole decode steps in results/*.csv: which of several measurements counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..csv_rows import Row


class StepSetting(NamedTuple):
    """What a step was timed for, but for its weights' bits and sparsity."""

    shape: str
    dtype: str
    context: int
    batch: int


class StepPlace(NamedTuple):
    """What a step was timed for."""

    setting: StepSetting
    bits: int
    sparsity: float


def fastest_steps(rows: Iterable[Row]) -> dict[StepPlace, Row]:
    """The row of each place of steps.csv; of several the fastest of those at the newest commit."""
    found: dict[StepPlace, Row] = {}
    for row in rows:  # in the order in which they were measured
        setting = StepSetting(row["shape"], row["dtype"], int(row["context"]), int(row["batch"]))
        place = StepPlace(setting, int(row["bits"]), float(row["sparsity"]))
        known = found.get(place)
        if known is None or row["commit"] != known["commit"] or float(row["ms"]) < float(known["ms"]):
            found[place] = row
    return found


def newest_runs(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows of steps that took turns, by device, shape and blocks; of several runs of a place the last counts.

    A run begins with its dense step. Times of two runs do not belong beside each other.
    """
    runs: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:  # in the order in which they were measured
        place = row["device"], row["shape"], row["blocks"]
        if row["kind"] == "dense":
            runs[place] = []
        runs.setdefault(place, []).append(row)
    return runs

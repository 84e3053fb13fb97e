"""Rows of results/steps.csv, whole decode steps on a GPU: which of several measurements counts."""

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
    """The row of each place; of several, with other tiles, the fastest of those at the newest commit."""
    found: dict[StepPlace, Row] = {}
    for row in rows:  # in the order in which they were measured
        setting = StepSetting(row["shape"], row["dtype"], int(row["context"]), int(row["batch"]))
        place = StepPlace(setting, int(row["bits"]), float(row["sparsity"]))
        known = found.get(place)
        if known is None or row["commit"] != known["commit"] or float(row["ms"]) < float(known["ms"]):
            found[place] = row
    return found

"""The cells of a table: records read from a folder, checked to belong together, with paired intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...method.errors import UserError
from ..record import RecordError, comparable
from ..records import RECORD, UNREACHABLE, load_items, load_note, load_record
from .paired_bootstrap import Interval, PairedResamples, interval

METHOD_ORDER = ("dense", "teal", "wina", "rsparse", "cats", "chess", "wisparse")
"""Baselines first, the paper's method last; others in between, by name."""

OURS = "wisparse"
Key = tuple[str, str, float]
"""Model, method, nominal sparsity."""


@dataclass(frozen=True, eq=False)
class MeasuredCell:
    """A finished cell with its per-item outcomes."""

    record: dict[str, Any]
    items: dict[str, Any]
    folder: Path

    @property
    def key(self) -> Key:
        """Where it stands in the table."""
        return _key(self.record)


@dataclass
class TableData:
    """All cells of one table and their paired resamples."""

    cells: dict[Key, MeasuredCell]
    unreachable: dict[Key, float] = field(default_factory=dict)
    """Largest sparsity that the method reaches on the model, for cells beyond it."""
    _resampled_averages: dict[Key, np.ndarray] = field(default_factory=dict, repr=False)
    _resampled_log_perplexities: dict[Key, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def models(self) -> list[str]:
        """Names of the models, sorted."""
        return sorted({model for model, _, _ in self.cells})

    @cached_property
    def sparsities(self) -> list[float]:
        """Sparsities in rising order, without that of the dense cells."""
        keys = (*self.cells, *self.unreachable)
        return sorted({sparsity for _, method, sparsity in keys if method != "dense"})

    @cached_property
    def methods(self) -> list[str]:
        """Names of the methods without dense, in the order of the table."""
        found = {method for _, method, _ in (*self.cells, *self.unreachable)} - {"dense"}
        return sorted(found, key=method_rank)

    @cached_property
    def tasks(self) -> list[str]:
        """The same in every cell."""
        return list(next(iter(self.cells.values())).record["tasks"])

    @property
    def any_record(self) -> dict[str, Any]:
        """Record of one cell, for the settings that all cells share."""
        return next(iter(self.cells.values())).record

    def dense(self, model: str) -> MeasuredCell | None:
        """The model without sparsity, where it was measured."""
        return self.cells.get((model, "dense", 0.0))

    def kept(self, cell: MeasuredCell) -> float | None:
        """Average as a percentage of the dense average."""
        dense = self.dense(cell.key[0])
        if dense is None or not dense.record["average"] or cell.record["average"] is None:
            return None
        return 100.0 * cell.record["average"] / dense.record["average"]

    def kept_interval(self, cell: MeasuredCell) -> Interval | None:
        """Average as a percentage of the dense average, paired by item."""
        kept, dense = self.kept(cell), self.dense(cell.key[0])
        if kept is None or dense is None:
            return None
        return interval(kept, 100.0 * self._averages(cell) / self._averages(dense))

    def best_baseline(self, model: str, sparsity: float) -> MeasuredCell | None:
        """The method with the highest average besides dense and WiSparse at one model and sparsity."""
        rivals = [self.cells.get((model, method, sparsity)) for method in self.methods if method != OURS]
        measured = [cell for cell in rivals if cell is not None and cell.record["average"] is not None]
        return max(measured, key=lambda cell: cell.record["average"], default=None)

    def average_difference(self, cell: MeasuredCell, other: MeasuredCell) -> Interval | None:
        """Average of `cell` minus that of `other` in points, paired by item."""
        if cell.record["average"] is None:
            return None
        mine, theirs = self._averages(cell), self._averages(other)
        return interval(cell.record["average"] - other.record["average"], mine - theirs)

    def perplexity_ratio(self, cell: MeasuredCell, other: MeasuredCell) -> Interval | None:
        """Perplexity of `cell` over that of `other`, paired by document."""
        if cell.record["perplexity"] is None:
            return None
        ratios = np.exp(self._log_perplexities(cell) - self._log_perplexities(other))
        return interval(cell.record["perplexity"] / other.record["perplexity"], ratios)

    def _averages(self, cell: MeasuredCell) -> np.ndarray:
        known = self._resampled_averages
        if cell.key not in known:
            known[cell.key] = self._resamples.averages(cell.items["items"])
        return known[cell.key]

    def _log_perplexities(self, cell: MeasuredCell) -> np.ndarray:
        known = self._resampled_log_perplexities
        if cell.key not in known:
            documents = cell.items["documents"]
            nats, tokens = ([document[part] for document in documents] for part in ("nats", "tokens"))
            known[cell.key] = self._resamples.log_perplexities(nats, tokens)
        return known[cell.key]

    @cached_property
    def _resamples(self) -> PairedResamples:
        items = next(iter(self.cells.values())).items
        return PairedResamples(_counts(items), len(items["documents"]))


def read_table(folder: Path) -> TableData:
    """Read every cell below a folder; of several records of one cell the newest counts.

    Raises UserError when there is none, when one is damaged, or when they do not belong in one table.
    """
    cells: dict[Key, MeasuredCell] = {}
    notes: dict[Key, dict[str, Any]] = {}
    try:
        for path in sorted(folder.rglob(RECORD)):
            cell = MeasuredCell(load_record(path.parent), load_items(path.parent), path.parent)
            if cell.key not in cells or cells[cell.key].record["utc"] < cell.record["utc"]:
                cells[cell.key] = cell
        for path in sorted(folder.rglob(UNREACHABLE)):
            note = load_note(path)
            notes[_key(note)] = note
    except RecordError as error:
        raise UserError(f"{error}; delete that folder, or compute the cell again with force=true") from error
    if not cells:
        raise UserError(f"{folder} holds no records; run `python repro/run.py experiment=table1` first")
    check_comparable(cells.values())
    unreachable = {key: note["maximum"] for key, note in notes.items() if key not in cells}
    return TableData(cells, unreachable)


def check_comparable(cells: Iterable[MeasuredCell]) -> None:
    """Raises UserError unless all cells share protocol, suite, limits, calibration, seed and items."""
    first, *others = cells
    for other in others:
        for name, find in SHARED_SETTINGS.items():
            expected, found = find(first), find(other)
            if expected != found:
                raise UserError(
                    f"records of different {name} do not belong in one table: {first.folder.name} has "
                    f"{_short(expected)}, {other.folder.name} has {_short(found)}; delete those not wanted, or "
                    "keep them apart with experiment_name=NAME"
                )
    _check_one_configuration_a_method((first, *others))


def _check_one_configuration_a_method(cells: Iterable[MeasuredCell]) -> None:
    seen: dict[str, MeasuredCell] = {}
    for cell in cells:
        method = cell.record["method"]
        other = seen.setdefault(method["name"], cell)
        if comparable(other.record["method"]["config"]) != comparable(method["config"]):
            raise UserError(
                f"{other.folder.name} and {cell.folder.name} are both '{method['name']}' with different "
                "settings; delete one of them, or give it a method.name of its own"
            )


SHARED_SETTINGS = {
    "protocol": lambda cell: comparable(cell.record["config"]["protocol"]),
    "suite": lambda cell: _without_machine(cell.record["config"]["suite"]),
    "task data": lambda cell: _task_settings(cell.record),
    "search": lambda cell: search_settings(cell.record),
    "calibration": lambda cell: _without_machine(cell.record["config"]["calibration"]),
    "seed": lambda cell: cell.record["seed"],
    "items": lambda cell: (_counts(cell.items), len(cell.items["documents"])),
}


def search_settings(record: dict[str, Any]) -> str:
    """Search budget and which tokens were sparse while methods searched."""
    search = record["config"]["search"]
    return f"{search['name']}, {search.get('sparse_tokens', 'all')} tokens sparse"


def _without_machine(settings: dict[str, Any]) -> dict[str, Any]:
    """Batch sizes, which change results by rounding alone, and the place of a mirror follow the machine."""
    return {
        name: value
        for name, value in comparable(settings).items()
        if not name.startswith("batch_") and name != "data_root"
    }


def _task_settings(record: dict[str, Any]) -> dict[str, Any]:
    """How each task was asked, and the hash of its data; chat templates are a matter of the model."""
    return {
        name: {key: value for key, value in task.get("settings", {}).items() if key != "chat_template"}
        for name, task in record["tasks"].items()
    }


def _counts(items: dict[str, Any]) -> dict[str, int]:
    return {task: len(outcomes) for task, outcomes in items["items"].items()}


def _key(record: dict[str, Any]) -> Key:
    return record["model"]["name"], record["method"]["name"], float(record["sparsity"])


def method_rank(method: str) -> tuple[float, str]:
    """Where a method stands among others."""
    if method in METHOD_ORDER:
        return METHOD_ORDER.index(method), method
    # Variants (teal-uniform, wina-rotated, ...) stand with the method they are named after.
    family = next((known for known in METHOD_ORDER if method.startswith(known)), None)
    return (METHOD_ORDER.index(family) + 0.5 if family else len(METHOD_ORDER) - 1.5), method


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: entry for key, entry in value.items() if not key.startswith("_")}
    text = str(value)
    return text if len(text) <= 160 else f"{text[:160]}…"

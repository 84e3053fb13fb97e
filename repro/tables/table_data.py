"""What a table of models, methods and sparsities is made of: cells that belong together, and comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...method.errors import UserError
from ..archive import stored_files
from ..measured.cells import AGAIN, Key, MeasuredCell, method_rank, place_of, stored_cells
from ..measured.comparison import Comparison
from ..measured.paired_bootstrap import Interval, interval
from ..record import RecordError, comparable
from ..records import UNREACHABLE, load_note

OURS = "wisparse"


@dataclass
class TableData:
    """All cells of one table and their paired resamples."""

    cells: dict[Key, MeasuredCell]
    unreachable: dict[Key, float] = field(default_factory=dict)
    """Largest sparsity that the method reaches on the model, for cells beyond it."""

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
        return interval(kept, 100.0 * self.comparison.averages(cell) / self.comparison.averages(dense))

    def best_baseline(self, model: str, sparsity: float) -> MeasuredCell | None:
        """The method with the highest average besides dense and WiSparse at one model and sparsity."""
        rivals = [self.cells.get((model, method, sparsity)) for method in self.methods if method != OURS]
        measured = [cell for cell in rivals if cell is not None and cell.record["average"] is not None]
        return max(measured, key=lambda cell: cell.record["average"], default=None)

    @cached_property
    def comparison(self) -> Comparison:
        """Paired comparisons of the table's cells."""
        return Comparison(self.cells.values())

    def average_difference(self, cell: MeasuredCell, other: MeasuredCell) -> Interval | None:
        """Average of `cell` minus that of `other` in points, paired by item."""
        return self.comparison.average_difference([(cell, other)])

    def perplexity_ratio(self, cell: MeasuredCell, other: MeasuredCell) -> Interval | None:
        """Perplexity of `cell` over that of `other`, paired by document."""
        return self.comparison.perplexity_ratio([(cell, other)])


def read_table(folder: Path) -> TableData:
    """Read every cell below a folder; of several records of one cell the newest counts.

    Raises UserError when there is none, when one is damaged, or when they do not belong in one table.
    """
    cells = stored_cells([folder], place_of, command="`python repro/run.py experiment=table1`")
    notes = _notes(folder)
    check_comparable(cells.values())
    unreachable = {key: note["maximum"] for key, note in notes.items() if key not in cells}
    return TableData(cells, unreachable)


def _notes(folder: Path) -> dict[Key, dict[str, Any]]:
    """Notes on cells that a method cannot reach."""
    try:
        notes = [load_note(path) for path in stored_files(folder, UNREACHABLE)]
    except RecordError as error:
        raise UserError(f"{error}; {AGAIN}") from error
    return {place_of(note): note for note in notes}


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


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: entry for key, entry in value.items() if not key.startswith("_")}
    text = str(value)
    return text if len(text) <= 160 else f"{text[:160]}…"

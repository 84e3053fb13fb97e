"""What a table of models, methods and sparsities is made of: cells that belong together, and comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..measured.cells import (
    Key,
    MeasuredCell,
    method_rank,
    place_of,
    stored_cells,
    unreachable_sparsities,
)
from ..measured.comparable import check_comparable
from ..measured.comparison import Comparison
from ..measured.paired_bootstrap import Interval, interval

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
    """Read every cell below a folder; of a cell that was measured again the newest record counts.

    Raises UserError when there is none, when one is damaged, or when they do not belong in one table.
    """
    cells = stored_cells([folder], place_of, command="`python repro/run.py experiment=table1`")
    check_comparable(cells.values())
    maxima = unreachable_sparsities([folder], cells.values())
    return TableData(cells, {key: maximum for key, maximum in maxima.items() if key not in cells})

"""Quality against the share of key-value groups that attention looks at.

python -m wisparse.repro.tables heads --records outputs/heads --output results/heads
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..measured.cells import MeasuredCell, tasks_of
from ..measured.comparison import Comparison, Pair
from ..measured.head_cells import HeadData, read_heads
from ..measured.paired_bootstrap import RESAMPLES, Interval
from ..measured.seeds import SeedMeans
from .table import MEGABYTES, PERCENT, PERCENT_1, Column, Table, number, task_column
from .text import headed, introduced, settings_lines


@dataclass(frozen=True)
class HeadEntry(SeedMeans):
    """A model, method and density: the mean over the seeds that were measured."""

    data: HeadData
    method: str
    sparsity: float
    density: float

    @cached_property
    def cells(self) -> list[MeasuredCell]:
        """Cells, one a seed."""
        return list(self.data.seeds(self.model, self.method, self.sparsity, self.density).values())

    @property
    def comparison(self) -> Comparison:
        """Paired comparisons of the model's cells."""
        return self.data.comparison(self.model)

    @property
    def key_value_share(self) -> float:
        """Share of keys and values that sparse tokens looked at, dense blocks included."""
        return self.mean("realised", "key_value_share") or 1.0

    def ratio(self, method: str, sparsity: float) -> Interval | None:
        """Perplexity over that of a method that looks at all groups; None for that one itself."""
        return self.perplexity_ratio(self._beside(method, sparsity))

    @property
    def average_difference(self) -> Interval | None:
        """Average minus that of the dense model with all groups, in points."""
        return self.average_minus(self._beside("dense", 0.0))

    def _beside(self, method: str, sparsity: float) -> list[Pair]:
        others = [self.data.beside(self.model, method, sparsity, cell.record["seed"]) for cell in self.cells]
        pairs = zip(self.cells, others, strict=True)
        return [(cell, other) for cell, other in pairs if other is not None and other is not cell]


def entries(data: HeadData) -> Iterator[HeadEntry]:
    """Rows in the order of the table."""
    for model, method, sparsity, density in dict.fromkeys(place[:4] for place in data.cells):
        yield HeadEntry(model, data, method, sparsity, density)


def columns(tasks: Sequence[str]) -> list[Column[HeadEntry]]:
    """Columns in the order of the CSV."""
    found = ("plan", "provenance", "heads", "groups_found")
    return [
        Column("model", "Model", lambda entry: entry.model),
        Column("method", "Method", lambda entry: entry.method),
        Column("sparsity", "Sparsity", lambda entry: entry.sparsity, form=PERCENT),
        Column("density", "Groups kept", lambda entry: entry.density, 4, PERCENT_1),
        Column("seeds", "Seeds", lambda entry: len(entry.cells)),
        Column("key_value_share", "Keys and values read", lambda entry: entry.key_value_share, 4, PERCENT_1),
        Column("bytes_per_token", "MB/token", lambda entry: entry.mean("realised", "bytes_per_token"), 0,
               MEGABYTES),
        Column("groups_found", "Best groups chosen", lambda entry: entry.mean(*found), 4, PERCENT_1),
        Column("perplexity", "Perplexity", lambda entry: entry.mean("perplexity"), 4, number(3)),
        Column("perplexity_ratio", "÷ dense", lambda entry: entry.ratio("dense", 0.0), 4, number(3),
               bounds=True),
        Column("ratio_in_method", "÷ method, all groups",
               lambda entry: entry.ratio(entry.method, entry.sparsity), 4, number(3), bounds=True),
        Column("average", "Average", lambda entry: entry.mean("average"), 3, number(2)),
        Column("average_minus_dense", "Average − dense", lambda entry: entry.average_difference, 4,
               number(2, sign="+"), bounds=True),
        *(task_column(task, lambda entry, name: entry.mean("tasks", name, "value")) for task in tasks),
    ]  # fmt: skip


HOW_READ = (
    "Groups kept: key-value groups that a sparse token looks at in blocks that are not dense; keys and values "
    "read: the share over all blocks. MB/token: weights that a sparse token reads, routers included.",
    "Best groups chosen: by the routers, on text that they were not trained on; mean over the blocks. As many "
    "groups chosen at random find the share that is kept.",
    "÷ dense: perplexity over that of the dense model with all groups; ÷ method, all groups: over that of the "
    "same method with all groups, which says what choosing costs there. Means over the seeds.",
    f"Brackets: 95 % intervals from {RESAMPLES:,} resamples of the mean over the seeds, paired by document.",
)


def above(data: HeadData) -> str:
    """Settings, and how the columns are read."""
    records = data.cells.values()
    chosen = [cell for cell in records if cell.record.get("heads")]
    head = headed("# Quality against head density", records)
    return introduced(head, (*HOW_READ, *settings_lines(chosen or records)))


HEADS = Table(
    name="heads",
    title="Quality against head density",
    command="python repro/run.py experiment=heads",
    read=read_heads,
    entries=entries,
    columns=columns,
    tasks=lambda data: tasks_of(data.cells.values()),
    above=above,
)

"""Rows of a real model's tables: a method at a sparsity, beside the reference at the bytes that it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...measured.cells import MeasuredCell, is_trained, mean_of_records, method_rank
from ...measured.comparison import Between, Comparison, at_equal_bytes, bytes_of
from ...measured.frontier import search_seconds
from ...measured.paired_bootstrap import Interval
from ...measured.real_cells import RealData, Section
from ...measured.rise import Rises, mean_of
from ..text import MEASURED, unmeasured_text

INCOMPARABLE = "not comparable at equal bytes"


@dataclass(frozen=True)
class RealEntry:
    """A method at a sparsity: the mean over those of some seeds that were measured."""

    data: RealData
    section: Section
    method: str
    sparsity: float
    seeds: tuple[int, ...]

    @cached_property
    def cells(self) -> dict[int, MeasuredCell]:
        """Cells by seed; the dense one, which all seeds share, by its own."""
        if self.method == "dense":
            dense = self.data.dense(self.section)
            return {} if dense is None else {dense.record["seed"]: dense}
        places = {seed: (self.section, self.method, self.sparsity, seed) for seed in self.seeds}
        return {seed: self.data.cells[place] for seed, place in places.items() if place in self.data.cells}

    @property
    def seeds_text(self) -> str:
        """Seeds that were measured."""
        return ", ".join(map(str, self.cells))

    @property
    def status(self) -> str:
        """Whether it was measured, and if not, whether it can be."""
        if self.cells:
            return MEASURED
        return unmeasured_text(self.data.unreachable.get((self.section.model, self.method, self.sparsity)))

    def of_record(self, *path: str) -> float | None:
        """The mean of a number of the records by its place there; None where it is in none."""
        return mean_of_records(self.cells.values(), *path)

    @property
    def trained(self) -> bool:
        """Whether anything of its plan was trained."""
        return any(map(is_trained, self.cells.values()))

    @property
    def plan_seconds(self) -> float | None:
        """Seconds of everything that making the plan took, mean over the seeds."""
        found = [search_seconds(cell.record) for cell in self.cells.values()]
        return float(np.mean(found)) if found else None

    @property
    def kept(self) -> float | None:
        """Average as a percentage of the dense average."""
        average, dense = self.of_record("average"), self.data.dense(self.section)
        if average is None or dense is None or not dense.record["average"]:
            return None
        return 100 * average / dense.record["average"]

    def against_dense(self, compare: Callable[[Comparison, list[Any]], Interval | None]) -> Interval | None:
        """What `compare` says of the cells beside the dense one; None without either."""
        dense = self.data.dense(self.section)
        if not self.cells or dense is None or self.method == "dense":
            return None
        return compare(self.data.comparison(self.section), [(cell, dense) for cell in self.cells.values()])

    @cached_property
    def compared(self) -> list[tuple[MeasuredCell, Between]]:
        """Cells, each with the reference at the bytes that it reads, under the same seed; nothing beyond it."""
        if self.method in ("dense", self.data.reference):
            return []
        curves = ((cell, self.data.curve(self.section, self.data.reference, seed))
                  for seed, cell in self.cells.items())  # fmt: skip
        found = ((cell, at_equal_bytes(curve, bytes_of(cell))) for cell, curve in curves if curve)
        return [(cell, point) for cell, point in found if isinstance(point, Between)]

    @property
    def rise_share(self) -> Interval | None:
        """Rise of perplexity over dense as a share of the reference's, paired by document.

        None where the reference loses nothing.
        """
        dense = self.data.dense(self.section)
        if not self.compared or dense is None or dense.record["perplexity"] is None:
            return None
        rises = Rises(self.data.comparison(self.section), dense)
        if any(rises.at(theirs)[0] <= 0 for _, theirs in self.compared):
            return None
        return mean_of([rises.share(mine, theirs) for mine, theirs in self.compared])

    @property
    def minus_reference(self) -> Interval | None:
        """Average minus the reference's in points, paired by item."""
        if not self.compared:
            return None
        return self.data.comparison(self.section).average_difference(self.compared)

    @property
    def comparison_text(self) -> str:
        """Seeds that are compared at equal bytes, or that none is; empty where nothing is to be compared."""
        if not self.cells or self.method in ("dense", self.data.reference):
            return ""
        if not self.compared:
            return INCOMPARABLE
        return f"{len(self.compared)} of {len(self.cells)}"


def rows(data: RealData, section: Section) -> Iterator[RealEntry]:
    """Rows of a section: the dense one, then every method at every sparsity, over all seeds.

    Where the reference alone was measured, to compare others at the bytes they read, no others are listed. A
    method that was measured at less than half of the section's sparsities is listed there, and where it is out
    of reach.
    """
    places = [place for place in data.cells_of(section) if place[1] != "dense"]
    lost = [place for place in data.unreachable if place[0] == section.model]
    found = {(method, sparsity) for _, method, sparsity, _ in places}
    sparsities = sorted({sparsity for _, sparsity in found})
    often = Counter(method for method, _ in found)
    methods = {method for method, count in often.items() if 2 * count >= len(sparsities)}
    seeds = tuple(sorted({seed for *_, seed in places}))
    yield RealEntry(data, section, "dense", 0.0, seeds)
    for sparsity in sparsities:
        here = {method for method, of in found if of == sparsity}
        alone = here == {data.reference}
        named = methods | here | {name for _, name, of in lost if of == sparsity}
        for method in [data.reference] if alone else sorted(named, key=method_rank):
            yield RealEntry(data, section, method, sparsity, seeds)


def entries(data: RealData) -> Iterator[RealEntry]:
    """Rows of the CSV: those of every section, a seed each."""
    for section in data.sections:
        for entry in rows(data, section):
            seeds = tuple(entry.cells)[:1] if entry.method == "dense" else entry.seeds
            yield from (replace(entry, seeds=(seed,)) for seed in seeds)

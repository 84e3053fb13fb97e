"""Comparisons of cells: paired by item and by document, and at equal bytes without extrapolating.

Frontier, questions and tables all compare through this module.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .cells import MeasuredCell
from .paired_bootstrap import Interval, PairedResamples, interval

Numbers = NDArray[np.float64]
Pair = tuple[MeasuredCell, MeasuredCell]
"""A cell and the one that it is compared with."""

REACH = 0.1
"""Share of the distance between the last two cells that a comparison may lie beyond; marked where shown."""


@dataclass(frozen=True)
class Between:
    """A curve at some bytes a token: `share` of the way from a cell that reads less to one that reads more."""

    below: MeasuredCell
    above: MeasuredCell
    share: float
    beyond: float = 0.0
    """How far outside of the two cells, as a share of their distance; at most the reach allowed."""

    def linear(self, below: Numbers, above: Numbers) -> Numbers:
        """The value in between of what the two cells have, linear in the bytes."""
        return (1 - self.share) * below + self.share * above


Point = MeasuredCell | Between
"""A cell, or a curve between two cells."""


@dataclass(frozen=True)
class Outside:
    """Bytes that a curve does not reach: nothing is extrapolated to them."""

    by: float | None
    """Distance from the curve's nearer end as a share of that between its last two cells; None for one cell."""


def bytes_of(cell: MeasuredCell) -> float:
    """Bytes that a sparse token reads."""
    return float(cell.record["realised"]["bytes_per_token"])


def at_equal_bytes(curve: Sequence[MeasuredCell], wanted: float, reach: float = 0.0) -> Between | Outside:
    """Where the two cells of a curve that enclose some bytes a token lie around them.

    reach: how far beyond its ends the line through the last two cells may go on, as a share of their distance.
    Raises ValueError for a curve without cells.
    """
    if not curve:
        raise ValueError("a curve needs at least one cell")
    ordered = sorted(curve, key=bytes_of)
    below = max((cell for cell in ordered if bytes_of(cell) <= wanted), key=bytes_of, default=None)
    above = min((cell for cell in ordered if bytes_of(cell) >= wanted), key=bytes_of, default=None)
    if below is not None and above is not None:
        return _between(below, above, wanted)
    ends = ordered[:2] if above is not None else ordered[-2:]
    width = bytes_of(ends[-1]) - bytes_of(ends[0])
    if not width:
        return Outside(None)
    by = min(abs(bytes_of(cell) - wanted) for cell in ends) / width
    return Outside(by) if by > reach else _between(*ends, wanted, beyond=by)


def _between(below: MeasuredCell, above: MeasuredCell, wanted: float, beyond: float = 0.0) -> Between:
    width = bytes_of(above) - bytes_of(below)
    return Between(below, above, (wanted - bytes_of(below)) / width if width else 0.0, beyond)


class Comparison:
    """Paired comparisons of cells that were measured on the same items and documents.

    The resamples are drawn once and are the same for every cell; what a cell has in each is kept.
    """

    def __init__(self, cells: Iterable[MeasuredCell]) -> None:
        items = max((cell.items for cell in cells), key=lambda found: len(found["items"]))
        counts = {task: len(outcomes) for task, outcomes in items["items"].items()}
        self._resamples = PairedResamples(counts, len(items["documents"]))
        self._kept: dict[tuple[str, int], tuple[MeasuredCell, Numbers]] = {}

    def average_difference(self, pairs: Sequence[tuple[Point, Point]]) -> Interval | None:
        """Mean over the pairs of the first's average minus the second's, in points, paired by item.

        Between two cells the outcome of every item is linear in the bytes. None where a cell has no average.
        """
        found = [(self._average(mine), self._average(theirs)) for mine, theirs in pairs]
        if not found or any(average is None for pair in found for average in pair):
            return None
        values = [mine[0] - theirs[0] for mine, theirs in found]
        return interval(
            float(np.mean(values)), np.mean([mine[1] - theirs[1] for mine, theirs in found], axis=0)
        )

    def perplexity_ratio(self, pairs: Sequence[Pair]) -> Interval | None:
        """Geometric mean over the pairs of the first's perplexity over the second's, paired by document.

        None where a cell has no perplexity.
        """
        if any(cell.record["perplexity"] is None for pair in pairs for cell in pair):
            return None
        return self._ratio([(Between(mine, mine, 0.0), theirs) for mine, theirs in pairs])

    def perplexity_ratio_at_equal_bytes(self, pairs: Sequence[tuple[Between, MeasuredCell]]) -> Interval:
        """The same where the first is between two cells: log-perplexity is linear in the bytes."""
        return self._ratio(pairs)

    def averages(self, cell: MeasuredCell) -> Numbers:
        """(resamples,) mean over tasks in percent."""
        return self._once("average", cell, lambda: self._resamples.averages(cell.items["items"]))

    def _average(self, point: Point) -> tuple[float, Numbers] | None:
        """The average in percent, and in every resample; None where there is none."""
        if not isinstance(point, Between):
            average = point.record["average"]
            return None if average is None else (average, self.averages(point))
        below, above = self._average(point.below), self._average(point.above)
        if below is None or above is None:
            return None
        return point.linear(below[0], above[0]), point.linear(below[1], above[1])

    def log_perplexities(self, cell: MeasuredCell) -> Numbers:
        """(resamples,) nats a token."""

        def resampled() -> Numbers:
            documents = cell.items["documents"]
            nats, tokens = ([document[part] for document in documents] for part in ("nats", "tokens"))
            return self._resamples.log_perplexities(nats, tokens)

        return self._once("perplexity", cell, resampled)

    def _ratio(self, pairs: Sequence[tuple[Between, MeasuredCell]]) -> Interval:
        values, drawn = [], []
        for between, theirs in pairs:
            logs = [np.log(cell.record["perplexity"]) for cell in (between.below, between.above, theirs)]
            values.append(between.linear(logs[0], logs[1]) - logs[2])
            mine = between.linear(self.log_perplexities(between.below), self.log_perplexities(between.above))
            drawn.append(mine - self.log_perplexities(theirs))
        return interval(float(np.exp(np.mean(values))), np.exp(np.mean(drawn, axis=0)))

    def _once(self, kind: str, cell: MeasuredCell, make: Callable[[], Numbers]) -> Numbers:
        # The cell is kept with its numbers, so that no other object can come to have its id.
        known = self._kept.get((kind, id(cell)))
        if known is None:
            known = self._kept[kind, id(cell)] = cell, make()
        return known[1]


@dataclass(eq=False)
class LatestComparison:
    """The comparison of one group of cells at a time: each is up to a gigabyte, and groups come in turn."""

    _kept: dict[Hashable, Comparison] = field(default_factory=dict, repr=False)

    def of(self, group: Hashable, cells: Callable[[], Iterable[MeasuredCell]]) -> Comparison:
        """The comparison of a group's cells, made where it is not the one before."""
        if group not in self._kept:
            self._kept.clear()
            self._kept[group] = Comparison(cells())
        return self._kept[group]

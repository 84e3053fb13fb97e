"""Rises of perplexity over the dense model, and outcomes, at points of curves: shares and differences.

A point is a cell, or `Between` two cells of a curve at some bytes a token. Values come with their resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cells import MeasuredCell
from .comparison import Between, Comparison, Numbers, Point
from .paired_bootstrap import Interval, interval

Resampled = tuple[float, Numbers]
"""A value, and the same in every resample."""


@dataclass(frozen=True, eq=False)
class Rises:
    """Rises over one dense cell, all resampled alike."""

    comparison: Comparison
    dense: MeasuredCell

    def at(self, point: Point) -> Resampled:
        """Perplexity minus the dense model's."""
        if isinstance(point, Between):
            (below, drawn_below), (above, drawn_above) = self.at(point.below), self.at(point.above)
            value = rise_between(point, below, above)
            return float(value), rise_between(point, drawn_below, drawn_above)
        logs, dense = (self.comparison.log_perplexities(cell) for cell in (point, self.dense))
        return exact_perplexity(point) - exact_perplexity(self.dense), np.exp(logs) - np.exp(dense)

    def share(self, mine: Point, theirs: Point) -> Resampled:
        """The rise of one as a share of another's."""
        (value, drawn), (of, of_drawn) = self.at(mine), self.at(theirs)
        return float(np.float64(value) / of), drawn / of_drawn


def mean_of(found: Sequence[Resampled]) -> Interval:
    """The mean of values that were resampled alike, with the bounds of that mean."""
    values, drawn = zip(*found, strict=True)
    return interval(float(np.mean(values)), np.mean(drawn, axis=0))


def rise_between(between: Between, below: Any, above: Any) -> Any:
    """Rise of perplexity over dense from those of the two cells: its logarithm is linear in the bytes.

    Linear in itself towards the dense model, whose rise is 0.
    """
    positive = (np.asarray(below) > 0) & (np.asarray(above) > 0)
    lowest = np.finfo(float).tiny
    logs = [np.log(np.maximum(found, lowest)) for found in (below, above)]
    return np.where(positive, np.exp(between.linear(*logs)), between.linear(below, above))


def exact_perplexity(cell: MeasuredCell) -> float:
    """Perplexity over all documents, unrounded."""
    documents = cell.items["documents"]
    nats, tokens = (np.sum([document[part] for document in documents]) for part in ("nats", "tokens"))
    return float(np.exp(nats / tokens))

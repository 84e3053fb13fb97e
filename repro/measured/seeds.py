"""Cells by where they stand in a table, and its rows: means over seeds, compared by pairs of cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .cells import MeasuredCell, mean_of_records
from .comparison import Comparison, LatestComparison, Pair
from .paired_bootstrap import Interval


class SeededPlace(Protocol):
    """A tuple that says where a cell stands, its seed last."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def seed(self) -> int:
        """The seed."""
        ...

    def __getitem__(self, parts: slice, /) -> tuple[object, ...]:
        """Some of its parts."""
        ...


AnyPlace = TypeVar("AnyPlace", bound=SeededPlace)


@dataclass(frozen=True)
class PlacedCells(Generic[AnyPlace]):
    """Cells with a perplexity, in the order of the table."""

    cells: dict[AnyPlace, MeasuredCell]
    _comparisons: LatestComparison = field(default_factory=LatestComparison, repr=False)

    def seeds(self, *wanted: object) -> dict[int, MeasuredCell]:
        """Cells by seed of a place, all of whose other parts are given."""
        return {place.seed: cell for place, cell in self.cells.items() if place[:-1] == wanted}

    def comparison(self, model: str) -> Comparison:
        """Paired comparisons of a model's cells."""
        return self._comparisons.of(
            model, lambda: (cell for place, cell in self.cells.items() if place.model == model)
        )


@dataclass(frozen=True)
class SeedMeans(ABC):
    """A row of a table: the mean over the seeds that were measured."""

    model: str

    @property
    @abstractmethod
    def cells(self) -> list[MeasuredCell]:
        """Cells, one a seed."""

    @property
    @abstractmethod
    def comparison(self) -> Comparison:
        """Paired comparisons of the model's cells."""

    def mean(self, *path: str) -> float | None:
        """Mean over the seeds of a number of the records by its place there; None where it is in none."""
        return mean_of_records(self.cells, *path)

    def perplexity_ratio(self, pairs: Sequence[Pair]) -> Interval | None:
        """Perplexity over that of the others; None without pairs."""
        return self.comparison.perplexity_ratio(pairs) if pairs else None

    def average_minus(self, pairs: Sequence[Pair]) -> Interval | None:
        """Average minus that of the others, in points; None without pairs."""
        return self.comparison.average_difference(pairs) if pairs else None

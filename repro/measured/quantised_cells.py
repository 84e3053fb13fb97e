"""Cells of sparse and quantised weights: what each model, format and method reaches at some bytes a token."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...method.errors import UserError
from .cells import MeasuredCell, method_rank, place_of, stored_cells
from .comparable import check_comparable, check_one_format, check_same_items, without_seed
from .comparison import Between, at_equal_bytes, bytes_of
from .deciding import check_names, quantisation_of
from .paired_bootstrap import Interval
from .seeds import PlacedCells

OWN = "none"
"""How weights that were not quantised are named."""
FORMATS = (OWN, "int8", "int4_calibrated", "int4")
"""Order of the formats in tables; others follow by name."""


class Place(NamedTuple):
    """Where a cell stands."""

    model: str
    quantisation: str
    method: str
    sparsity: float
    seed: int


class AtBytes(NamedTuple):
    """What a method in a format reaches within some bytes a token."""

    quantisation: str
    method: str
    sparsity: float
    """Nominal, between the two cells around the bytes; mean over the seeds."""
    ratio: Interval
    """Perplexity over that of the dense model in its own weights, paired by document."""


class QuantisedData(PlacedCells[Place]):
    """Cells with a perplexity, in the order of the table."""

    @cached_property
    def models(self) -> list[str]:
        """Models whose own dense cell was measured: all others have nothing to be compared with."""
        return [
            model
            for model in dict.fromkeys(place.model for place in self.cells)
            if self.dense(model, OWN) is not None
        ]

    def formats(self, model: str) -> list[str]:
        """Formats of a model's cells, in order."""
        found = {place.quantisation for place in self.cells if place.model == model}
        return sorted(found, key=_format_rank)

    def dense(self, model: str, quantisation: str, seed: int | None = None) -> MeasuredCell | None:
        """The model in a format without sparsity; of a seed where that was measured.

        Seeds change nothing about it unless the format is calibrated.
        """
        wanted = (model, quantisation, "dense")
        found = {place.seed: cell for place, cell in self.cells.items() if place[:3] == wanted}
        return found.get(seed, next(iter(found.values()), None))

    def within(self, model: str, quantisation: str, method: str, budget: float) -> AtBytes | None:
        """What a method in a format reaches at `budget` bytes a token; nothing is extrapolated.

        Where the dense model in that format reads no more, it is taken as it is, under the name `dense`: to
        drop anything saves what nobody asked for. None where some seed's cells do not enclose the bytes.
        """
        own, dense = self.dense(model, OWN), self.dense(model, quantisation)
        if own is None or dense is None:
            return None
        if bytes_of(dense) <= budget:
            return AtBytes(quantisation, "dense", 0.0, self._ratio(model, [Between(dense, dense, 0.0)], own))
        found = [
            at_equal_bytes([*curve, self.dense(model, quantisation, seed)], budget)
            for seed, curve in self._curves(model, quantisation, method).items()
        ]
        points = [point for point in found if isinstance(point, Between)]
        if not points or len(points) < len(found):
            return None
        sparsities = [
            float(point.linear(*(cell.record["sparsity"] for cell in (point.below, point.above))))
            for point in points
        ]
        return AtBytes(quantisation, method, float(np.mean(sparsities)), self._ratio(model, points, own))

    def _ratio(self, model: str, points: list[Between], own: MeasuredCell) -> Interval:
        pairs = [(point, own) for point in points]
        return self.comparison(model).perplexity_ratio_at_equal_bytes(pairs)

    def _curves(self, model: str, quantisation: str, method: str) -> dict[int, list[MeasuredCell]]:
        """Sparse cells by seed."""
        wanted, curves = (model, quantisation, method), {}
        for place, cell in self.cells.items():
            if place[:3] == wanted:
                curves.setdefault(place.seed, []).append(cell)
        return curves

    def best_within(self, model: str, quantisation: str, budget: float) -> AtBytes | None:
        """The method of the lowest perplexity in a format at `budget` bytes a token; None without any."""
        methods = {place.method for place in self.cells if place[:2] == (model, quantisation)} - {"dense"}
        found = [
            self.within(model, quantisation, method, budget) for method in sorted(methods, key=method_rank)
        ]
        return min((one for one in found if one), key=lambda one: one.ratio.value, default=None)


def read_quantised(
    *folders: Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True
) -> QuantisedData:
    """Read every record with a perplexity below the folders; of a cell measured again the newest counts.

    keep: which of them, of folders that hold several suites or protocols. Raises UserError when there is none,
    when one is damaged, or when they are not on the same text under the same settings but for format and seed.
    """

    def place(record: dict[str, Any]) -> Place:
        model, method, sparsity = place_of(record)
        return Place(model, quantisation_of(record)["name"], method, sparsity, record["seed"])

    found = stored_cells(
        folders,
        place,
        keep=lambda record: record["perplexity"] is not None and keep(record),
        command="`python repro/run.py experiment=quantised`",
    )
    cells = dict(sorted(found.items(), key=lambda pair: _order(pair[0])))
    check_names(((cell.folder, cell.record) for cell in map(without_seed, cells.values())), ("quantisation",))
    for model in {place.model for place in cells}:
        mine = {place: cell for place, cell in cells.items() if place.model == model}
        check_same_items(map(without_seed, mine.values()))
        if sparse := [without_seed(cell) for place, cell in mine.items() if place.method != "dense"]:
            check_comparable(sparse, ("quantisation",))
        for name in {place.quantisation for place in mine}:
            check_one_format(cell for place, cell in mine.items() if place.quantisation == name)
    data = QuantisedData(cells)
    if not data.models:
        raise UserError(
            f"{', '.join(map(str, folders))} holds no dense model in its own weights, which the others are "
            "compared with; run method=dense quantisation=none of the same model and suite"
        )
    return data


def _format_rank(quantisation: str) -> tuple[int, str]:
    return (FORMATS.index(quantisation) if quantisation in FORMATS else len(FORMATS)), quantisation


def _order(place: Place) -> tuple[Any, ...]:
    return place.model, _format_rank(place.quantisation), place.sparsity, *method_rank(place.method), place.seed

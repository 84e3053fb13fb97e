"""Cells on one model in three sizes that were trained alike, and what sparsity costs each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...method.errors import UserError
from ..measured.cells import Key, MeasuredCell, method_rank, place_of, stored_cells
from ..measured.comparable import check_comparable
from ..measured.comparison import Between, Comparison, at_equal_bytes, bytes_of
from ..measured.given_loss import net_sparsity
from ..measured.paired_bootstrap import Interval, interval
from ..measured.rise import Resampled, Rises, exact_perplexity
from .cards import CARD, check_trained_alike, read_cards

DENSE = "dense"
NEAREST = 0.05
"""Farthest that a method's nearest cell may lie from a share not read at which it is compared."""


@dataclass(frozen=True)
class ScalingData:
    """Cards of the sizes, smallest first, and cells measured on them by model, method and nominal sparsity."""

    cards: dict[str, dict[str, Any]]
    cells: dict[Key, MeasuredCell]

    @cached_property
    def methods(self) -> list[str]:
        """Methods other than the dense model, in the order of the tables."""
        return sorted({method for _, method, _ in self.cells} - {DENSE}, key=method_rank)

    def dense(self, model: str) -> MeasuredCell | None:
        """The model without sparsity, where it was measured."""
        return self.cells.get((model, DENSE, 0.0))

    def sparse(self, model: str, method: str) -> list[MeasuredCell]:
        """Cells of a method on a model."""
        return [cell for (of, by, _), cell in self.cells.items() if (of, by) == (model, method)]

    @cached_property
    def comparison(self) -> Comparison:
        """Paired comparisons of all cells: every size reads the same documents."""
        return Comparison(self.cells.values())

    def rise(self, model: str, method: str, sparsity: float) -> Resampled | None:
        """Perplexity over the dense model's, less 1, where a share of the block weights is not read.

        None without a dense cell, without a cell near that share, or without cells on both sides of it, of
        which the dense model may be one.
        """
        dense, sparse = self.dense(model), self.sparse(model, method)
        if dense is None or not any(abs(net_sparsity(cell) - sparsity) <= NEAREST for cell in sparse):
            return None
        between = at_equal_bytes([dense, *sparse], bytes_of(dense) - sparsity * block_bytes(dense, sparse[0]))
        if not isinstance(between, Between):
            return None
        value, drawn = Rises(self.comparison, dense).at(between)
        return value / exact_perplexity(dense), drawn / np.exp(self.comparison.log_perplexities(dense))


def block_bytes(dense: MeasuredCell, sparse: MeasuredCell) -> float:
    """Bytes of the weights in blocks: what a sparse cell does not read, over its share of them."""
    return (bytes_of(dense) - bytes_of(sparse)) / net_sparsity(sparse)


@dataclass(frozen=True)
class AtSize:
    """A method on one size at one sparsity."""

    data: ScalingData
    model: str
    method: str
    sparsity: float

    @cached_property
    def rise(self) -> Interval | None:
        """Perplexity over the dense model's, less 1."""
        found = self.data.rise(self.model, self.method, self.sparsity)
        return None if found is None else interval(*found)

    @cached_property
    def over_smallest(self) -> Interval | None:
        """The same over the smallest size's; None for that one itself, and where that has no sure rise."""
        smallest = next(iter(self.data.cards))
        mine, least = (self.data.rise(model, self.method, self.sparsity) for model in (self.model, smallest))
        if mine is None or least is None or self.model == smallest or min(least[0], least[1].min()) <= 0.0:
            return None
        return interval(mine[0] / least[0], mine[1] / least[1])


def read_scaling(cards: Path, *records: Path) -> ScalingData:
    """Read the cards below a folder, a folder each, and the cells below others.

    Raises UserError without two sizes, where they were trained otherwise, where cells are not of the models of
    the cards, or not measured alike.
    """
    found = read_cards(cards, (path.parent.name for path in cards.glob(f"*/{CARD}")))
    found = dict(sorted(found.items(), key=lambda pair: pair[1]["parameters"]))
    if len(found) < 2:
        raise UserError(f"{cards} holds {CARD} of fewer than two sizes; run `make train-scaling` first")
    check_trained_alike(found)
    cells = stored_cells(
        records,
        place_of,
        keep=lambda record: record["model"]["name"] in found,
        command="`python repro/run.py experiment=scaling`",
    )
    check_comparable(cells.values())
    for (model, *_), cell in cells.items():
        if cell.record["model"]["parameters"] != found[model]["parameters"]:
            raise UserError(f"{cell.folder} is of another {model} than its card; measure it again")
    return ScalingData(found, cells)

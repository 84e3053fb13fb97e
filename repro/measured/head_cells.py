"""Cells by the share of key-value groups that attention looks at, beside those that look at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .cells import MeasuredCell, method_rank, place_of, stored_cells
from .comparable import check_comparable, check_one_training, check_same_items, without_seed
from .deciding import check_names
from .seeds import PlacedCells

ALL = 1.0
"""Density where attention looks at all groups."""


class Place(NamedTuple):
    """Where a cell stands."""

    model: str
    method: str
    sparsity: float
    density: float
    seed: int


class HeadData(PlacedCells[Place]):
    """Cells with a perplexity, in the order of the table."""

    def beside(self, model: str, method: str, sparsity: float, seed: int) -> MeasuredCell | None:
        """The cell of a method that looks at all groups; of the dense model any seed's, for it is one."""
        found = self.seeds(model, method, sparsity, ALL)
        return next(iter(found.values()), None) if method == "dense" else found.get(seed)


def density_of(record: dict[str, Any]) -> float:
    """Share of the groups that a sparse token looks at in blocks that are not dense."""
    found = record.get("heads")
    return ALL if found is None else found["kept"] / found["groups"]


def key_values_left_out(record: dict[str, Any]) -> float:
    """Share of all keys and values that a sparse token does not read, of attention over chosen groups."""
    return 1.0 - float(record["realised"]["key_value_share"])


def read_heads(*folders: Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True) -> HeadData:
    """Read every record with a perplexity below the folders; of a cell measured again the newest counts.

    keep: which of them, of folders that hold several suites or protocols. Methods whose attention looks at all
    groups in every record are left out beside others, so that a folder of theirs can be given whole.

    Raises UserError when there is none, when one is damaged, or when they are not on the same text under the
    same settings but for density and seed.
    """

    def place(record: dict[str, Any]) -> Place:
        return Place(*place_of(record), density_of(record), record["seed"])

    found = stored_cells(
        folders,
        place,
        keep=lambda record: record["perplexity"] is not None and keep(record),
        command="`python repro/run.py experiment=heads`",
    )
    routed = {place[:3] for place in found if place.density != ALL}
    found = {
        place: cell
        for place, cell in found.items()
        if not routed or place.method == "dense" or place[:3] in routed
    }
    cells = dict(sorted(found.items(), key=lambda pair: _order(pair[0])))
    check_names(((cell.folder, cell.record) for cell in map(without_seed, cells.values())), ("heads",))
    for model in {place.model for place in cells}:
        mine = {place: without_seed(cell) for place, cell in cells.items() if place.model == model}
        check_same_items(mine.values())
        chosen = [cell for place, cell in mine.items() if place.method != "dense" or place.density != ALL]
        if chosen:
            check_comparable(chosen, ("heads",))
        if routed := [cell for cell in mine.values() if cell.record.get("heads")]:
            check_one_training(routed)
    return HeadData(cells)


def _order(place: Place) -> tuple[Any, ...]:
    return place.model, place.sparsity, *method_rank(place.method), -place.density, place.seed

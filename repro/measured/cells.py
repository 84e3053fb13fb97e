"""Finished cells as they are stored: every one below some folders, or the newest of each place in a table."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...method.errors import UserError
from ..archive import stored_files
from ..record import RecordError
from ..records import UNREACHABLE, load_items, load_note, load_record, read_record
from .deciding import APART, check_one_cell

METHOD_ORDER = ("dense", "teal", "wina", "rsparse", "cats", "chess", "wisparse")
"""Baselines first, the paper's method last; others in between, by name."""

Key = tuple[str, str, float]
"""Model, method, nominal sparsity."""
AGAIN = "delete that folder, or compute the cell again with force=true"
"""Ways out for whoever has a damaged record."""

Place = TypeVar("Place", bound=Hashable)
Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class MeasuredCell:
    """A finished cell with its per-item outcomes."""

    record: Record
    items: dict[str, Any]
    folder: Path

    @property
    def key(self) -> Key:
        """Where it stands in a table of models, methods and sparsities."""
        return place_of(self.record)


def place_of(record: Record) -> Key:
    """Model, method and nominal sparsity of a record."""
    return record["model"]["name"], record["method"]["name"], float(record["sparsity"])


def mean_of_records(cells: Iterable[MeasuredCell], *path: str) -> float | None:
    """Mean of a number of the records by its place there, or of a list of them; None where it is in none."""
    found: list[Any] = [cell.record for cell in cells]
    for part in path:
        found = [None if value is None else value.get(part) for value in found]
    numbers = [np.mean(value) for value in found if value is not None]
    return float(np.mean(numbers)) if numbers else None


def is_trained(cell: MeasuredCell) -> bool:
    """Whether anything of a cell's plan was trained."""
    return "training" in cell.record["plan"]["seconds_by_stage"]


def tasks_of(cells: Iterable[MeasuredCell]) -> list[str]:
    """Tasks of all cells, each once."""
    return list(dict.fromkeys(task for cell in cells for task in cell.record["tasks"]))


def every_cell(
    folders: Iterable[Path], keep: Callable[[Record], bool] = lambda record: True
) -> Iterator[MeasuredCell]:
    """Every finished cell below the folders, or in archives of them, in the order of their paths.

    keep: which records to look at, asked before their items are read. Raises UserError when one is damaged.
    """
    for path in sorted(path for folder in folders for path in stored_files(folder)):
        try:
            if keep(read_record(path.parent)):
                yield MeasuredCell(load_record(path.parent), load_items(path.parent), path.parent)
        except RecordError as error:
            raise UserError(f"{error}; {AGAIN}") from error


def stored_cells(
    folders: Iterable[Path],
    place: Callable[[Record], Place],
    *,
    keep: Callable[[Record], bool] = lambda record: True,
    command: str,
) -> dict[Place, MeasuredCell]:
    """The cell of each place below the folders; of one that was measured again the newest record.

    place: where a record stands in the table. keep: which records belong in it. command: what would make
    them, for the error. Raises UserError when there is none, one is damaged, or two records of a place differ
    in what decides their numbers.
    """
    folders = list(folders)
    cells: dict[Place, MeasuredCell] = {}
    for cell in every_cell(folders, keep):
        where = place(cell.record)
        known = cells.setdefault(where, cell)
        check_one_cell((known.folder, known.record), (cell.folder, cell.record))
        if known.record["utc"] < cell.record["utc"]:
            cells[where] = cell
    if not cells:
        raise UserError(f"{', '.join(map(str, folders))} holds no records of this table; run {command} first")
    return cells


def unreachable_sparsities(folders: Iterable[Path], cells: Iterable[MeasuredCell]) -> dict[Key, float]:
    """Largest sparsity that a method reaches on a model, of every cell noted to be beyond it.

    cells: those of the same table. Raises UserError for a damaged note, and for one of another model than those
    or other notes of the model's name are of.
    """
    fingerprints = {cell.record["model"]["name"]: cell.record["model"]["fingerprint"] for cell in cells}
    maxima: dict[Key, float] = {}
    for path in [path for folder in folders for path in stored_files(folder, UNREACHABLE)]:
        try:
            note = load_note(path)
        except RecordError as error:
            raise UserError(f"{error}; {AGAIN}") from error
        model, found = note["model"], maxima.setdefault(place_of(note), note["maximum"])
        known = fingerprints.setdefault(model["name"], model.get("fingerprint"))
        # Older notes do not say of which model they are.
        other = None not in (known, model.get("fingerprint")) and known != model["fingerprint"]
        if other or found != note["maximum"]:
            differs = "model fingerprint" if other else "largest sparsity"
            raise UserError(f"{path} is of another {differs} than others called '{model['name']}'; {APART}")
    return maxima


def method_rank(method: str) -> tuple[float, str]:
    """Where a method stands among others."""
    if method in METHOD_ORDER:
        return METHOD_ORDER.index(method), method
    # Variants (teal-uniform, wina-rotated, ...) stand with the method they are named after.
    family = next((known for known in METHOD_ORDER if method.startswith(known)), None)
    return (METHOD_ORDER.index(family) + 0.5 if family else len(METHOD_ORDER) - 1.5), method

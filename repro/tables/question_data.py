"""Records of one question: what was varied, at which model, sparsity and seed, compared item by item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...method.errors import UserError
from ..record import RecordError, comparable
from ..records import RECORD, load_items, load_record
from .cells import MeasuredCell, method_rank
from .paired_bootstrap import Interval, PairedResamples, interval

METHOD = "method.name"
"""The factor of a question that compares methods."""


class Place(NamedTuple):
    """A row of the table: all of its cells differ in their seed alone."""

    model: str
    method: str
    sparsity: float
    level: str | float


@dataclass
class QuestionData:
    """Cells by place and seed. `question` as in conf/experiment: title, factor, reference."""

    question: dict[str, Any]
    cells: dict[tuple[Place, int], MeasuredCell]
    _log_perplexities: dict[tuple[Place, int], np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def levels(self) -> list[str | float]:
        """Values of the factor: numbers in order, methods and names as the table has them."""
        found = {place.level for place, _ in self.cells if place.method != "dense"}
        if all(isinstance(level, int | float) for level in found):
            return sorted(found)
        if self.question["factor"] == METHOD:
            return sorted(found, key=method_rank)
        return sorted(found, key=lambda level: (level != self.question["reference"], str(level)))

    @cached_property
    def places(self) -> list[Place]:
        """Rows in order, the dense model first."""

        def order(place: Place) -> tuple[Any, ...]:
            level = self.levels.index(place.level) if place.level in self.levels else -1
            return place.model, place.method != "dense", method_rank(place.method), place.sparsity, level

        if self.question["factor"] == METHOD:
            return sorted({place for place, _ in self.cells}, key=lambda p: (p.model, p.sparsity, order(p)))
        return sorted({place for place, _ in self.cells}, key=order)

    def seeds(self, place: Place) -> list[int]:
        """Seeds that were measured there."""
        return sorted(seed for where, seed in self.cells if where == place)

    def values(self, place: Place, find: Callable[[dict[str, Any]], float | None]) -> list[float]:
        """A number of each seed's record; without those that have none."""
        found = [find(self.cells[place, seed].record) for seed in self.seeds(place)]
        return [value for value in found if value is not None]

    def reference(self, place: Place) -> Place:
        """The row that this one is compared with."""
        level = self.question["reference"]
        return place._replace(level=level, method=level if self.question["factor"] == METHOD else place.method)

    def perplexity_ratio(self, place: Place) -> Interval | None:
        """Perplexity over the reference's, both at its bytes a token, paired by document; mean of the seeds.

        Log-perplexity is taken as linear in bytes between the two nearest sparsities measured, or, where there
        is one alone, as it is. None for the reference itself, and where either was not measured.
        """
        other = self.reference(place)
        seeds = [seed for seed in self.seeds(place) if (other, seed) in self.cells]
        if place == other or place.method == "dense" or not seeds:
            return None
        pairs = [self._at_equal_bytes(place, other, seed) for seed in seeds]
        value = float(np.exp(np.mean([exact for exact, _ in pairs])))
        return interval(value, np.exp(np.mean([resampled for _, resampled in pairs], axis=0)))

    def _at_equal_bytes(self, place: Place, other: Place, seed: int) -> tuple[float, np.ndarray]:
        """Log-perplexity minus the reference's at its bytes: exact, and resampled."""
        wanted = self._bytes(other, seed)
        siblings = [p for p, s in self.cells if s == seed and p._replace(sparsity=place.sparsity) == place]
        nearest = sorted(siblings, key=lambda p: (p != place, abs(self._bytes(p, seed) - wanted)))[:2]
        weights = [1.0]
        if len(nearest) == 2:
            first, second = (self._bytes(p, seed) for p in nearest)
            share = (wanted - first) / (second - first)
            weights = [1.0 - share, share]
        cells = [(p, seed) for p in nearest]
        exact = sum(w * np.log(self.cells[c].record["perplexity"]) for w, c in zip(weights, cells, strict=True))
        resampled = sum(w * self._resampled(c) for w, c in zip(weights, cells, strict=True))
        reference = np.log(self.cells[other, seed].record["perplexity"])
        return exact - reference, resampled - self._resampled((other, seed))

    def average_difference(self, place: Place) -> Interval | None:
        """Average accuracy minus the reference's in points, paired by item; mean of the seeds."""
        other = self.reference(place)
        seeds = [seed for seed in self.seeds(place) if (other, seed) in self.cells]
        if place == other or place.method == "dense" or not seeds or not self._has_tasks:
            return None
        mine, theirs = ([self.cells[p, seed] for seed in seeds] for p in (place, other))
        value = np.mean([a.record["average"] - b.record["average"] for a, b in zip(mine, theirs, strict=True)])
        resamples = self._resamples
        resampled = [
            resamples.averages(a.items["items"]) - resamples.averages(b.items["items"])
            for a, b in zip(mine, theirs, strict=True)
        ]
        return interval(float(value), np.mean(resampled, axis=0))

    def _bytes(self, place: Place, seed: int) -> float:
        return self.cells[place, seed].record["realised"]["bytes_per_token"]

    def _resampled(self, cell: tuple[Place, int]) -> np.ndarray:
        if cell not in self._log_perplexities:
            documents = self.cells[cell].items["documents"]
            nats, tokens = ([document[part] for document in documents] for part in ("nats", "tokens"))
            self._log_perplexities[cell] = self._resamples.log_perplexities(nats, tokens)
        return self._log_perplexities[cell]

    @cached_property
    def _has_tasks(self) -> bool:
        return bool(self._any_items["items"])

    @property
    def _any_items(self) -> dict[str, Any]:
        return next(iter(self.cells.values())).items

    @cached_property
    def _resamples(self) -> PairedResamples:
        items = self._any_items
        counts = {task: len(outcomes) for task, outcomes in items["items"].items()}
        return PairedResamples(counts, len(items["documents"]), resamples=2000)


def read_question(folder: Path) -> QuestionData:
    """Read every cell below a folder; all must be of one question, on the same items, at one search budget.

    Raises UserError when there is none, when one is damaged, or when they are not.
    """
    cells: dict[tuple[Place, int], MeasuredCell] = {}
    shared: dict[str, Any] = {}
    try:
        for path in sorted(folder.rglob(RECORD)):
            cell = MeasuredCell(load_record(path.parent), load_items(path.parent), path.parent)
            record = cell.record
            for name, find in SHARED.items():
                if shared.setdefault(name, find(cell)) != find(cell):
                    raise UserError(f"{path.parent.name} is of another {name} than the others; keep them apart")
            place = _place(record, record["config"]["question"]["factor"])
            older = cells.get((place, record["seed"]))
            if older is None or older.record["utc"] < record["utc"]:
                cells[place, record["seed"]] = cell
    except RecordError as error:
        raise UserError(f"{error}; delete that folder, or compute the cell again with force=true") from error
    if not cells:
        raise UserError(f"{folder} holds no records; run `python repro/run.py experiment=question_alpha` first")
    return QuestionData(shared["question"], cells)


SHARED: dict[str, Callable[[MeasuredCell], Any]] = {
    "question": lambda cell: cell.record["config"].get("question") or _no_question(cell),
    "suite": lambda cell: {
        k: v for k, v in comparable(cell.record["config"]["suite"]).items() if not k.startswith("batch_")
    },
    "search budget": lambda cell: cell.record["config"]["search"],
    "number of items": lambda cell: (
        {task: len(outcomes) for task, outcomes in cell.items["items"].items()},
        len(cell.items["documents"]),
    ),
}


def _no_question(cell: MeasuredCell) -> None:
    raise UserError(f"{cell.folder.name} belongs to no question; its experiment has none in its configuration")


def _place(record: dict[str, Any], factor: str) -> Place:
    level: Any = record["config"]
    for part in factor.split("."):
        level = level.get(part) if isinstance(level, dict) else None
    if isinstance(level, str):
        level = level.rpartition(".")[2]  # of a class its own name
    name = record["method"]["name"]
    return Place(
        record["model"]["name"], name, record["sparsity"], "" if name == "dense" and level is None else level
    )

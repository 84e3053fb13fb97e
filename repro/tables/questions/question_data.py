"""Records of one question: what was varied, at which model, sparsity and seed, compared item by item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ....method.errors import UserError
from ...measured.cells import MeasuredCell, method_rank, stored_cells
from ...measured.comparable import without_seed
from ...measured.comparison import REACH, Between, Comparison, Outside, at_equal_bytes, bytes_of
from ...measured.deciding import check_names, protocol_of, search_of, without_machine
from ...measured.paired_bootstrap import Interval

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

    def at_equal_bytes(self, place: Place) -> list[tuple[Between, MeasuredCell]] | Outside | None:
        """The row at its reference's bytes a token with the reference, one pair a seed.

        A row's curve is that of its cells at every sparsity that was measured. Outside, where that of a seed
        does not come within REACH of those bytes. None for the reference itself, and where either is lacking.
        """
        found: list[tuple[Between, MeasuredCell]] = []
        for seed, _, other in self._pairs(place):
            curve = [
                cell
                for (where, of_seed), cell in self.cells.items()
                if of_seed == seed and where._replace(sparsity=place.sparsity) == place
            ]
            between = at_equal_bytes(curve, bytes_of(other), REACH)
            if isinstance(between, Outside):
                return between
            found.append((between, other))
        return found or None

    def perplexity_ratio(self, place: Place) -> Interval | None:
        """Perplexity over the reference's at its bytes a token; mean of the seeds.

        None where the two are not comparable at equal bytes, and as for `at_equal_bytes`.
        """
        found = self.at_equal_bytes(place)
        return self.comparison.perplexity_ratio_at_equal_bytes(found) if isinstance(found, list) else None

    def nominal_perplexity_ratio(self, place: Place) -> Interval | None:
        """Perplexity over the reference's at the same nominal sparsity, whatever each reads."""
        pairs = [(mine, theirs) for _, mine, theirs in self._pairs(place)]
        return self.comparison.perplexity_ratio(pairs) if pairs else None

    def average_difference(self, place: Place) -> Interval | None:
        """Average accuracy minus the reference's in points, paired by item; mean of the seeds."""
        pairs = [(mine, theirs) for _, mine, theirs in self._pairs(place)]
        return self.comparison.average_difference(pairs) if pairs else None

    def _pairs(self, place: Place) -> list[tuple[int, MeasuredCell, MeasuredCell]]:
        """Seed, the row's cell and its reference's; none for the reference itself and for the dense model."""
        other = self.reference(place)
        if place == other or place.method == "dense":
            return []
        seeds = [seed for seed in self.seeds(place) if (other, seed) in self.cells]
        return [(seed, self.cells[place, seed], self.cells[other, seed]) for seed in seeds]

    @cached_property
    def comparison(self) -> Comparison:
        """Paired comparisons of the question's cells."""
        return Comparison(self.cells.values())


def read_question(folder: Path) -> QuestionData:
    """Read every cell below a folder; all must be of one question, on the same items, at one search budget.

    Raises UserError when there is none, when one is damaged, or when they are not.
    """

    def place(record: dict[str, Any]) -> tuple[Place, int]:
        question = record["config"].get("question")
        if not question:
            name = record["cell"]["name"]
            raise UserError(f"{name} belongs to no question; its experiment has none in its configuration")
        return _place(record, question["factor"]), record["seed"]

    cells = stored_cells([folder], place, command="`python repro/run.py experiment=question_alpha`")
    first, *others = cells.values()
    factor = str((first.record["config"]["question"] or {}).get("factor"))
    check_names(
        ((cell.folder, cell.record) for cell in cells.values()), VARIED.get(factor.partition(".")[0], ())
    )
    shared = {name: find for name, find in SHARED.items() if name != factor.partition(".")[0]}
    for cell in others:
        for name, find in shared.items():
            if find(cell) != find(first):
                raise UserError(f"{cell.folder.name} is of another {name} than the others; keep them apart")
    return QuestionData(first.record["config"]["question"], cells)


VARIED = {"model": ("model fingerprint",), "protocol": ("protocol",), "search": ("search budget",)}
"""What a factor of each group makes different under one name."""
SHARED: dict[str, Callable[[MeasuredCell], Any]] = {
    "question": lambda cell: cell.record["config"].get("question"),
    "suite": lambda cell: without_machine(cell.record["config"]["suite"]),
    "search budget": lambda cell: search_of(cell.record),
    "protocol": lambda cell: protocol_of(cell.record),
    "calibration": lambda cell: without_machine(without_seed(cell).record["config"]["calibration"]),
    "number of items": lambda cell: (
        {task: len(outcomes) for task, outcomes in cell.items["items"].items()},
        len(cell.items["documents"]),
    ),
}


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

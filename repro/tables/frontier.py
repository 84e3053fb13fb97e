"""Every method's cells against the bytes a token reads, compared with WiSparse's at the very bytes it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...method.errors import UserError
from ..record import RecordError
from ..records import RECORD, load_items, load_record
from .cells import MeasuredCell, method_rank
from .paired_bootstrap import Interval, PairedResamples, interval

REFERENCE = "wisparse"
STEP = 0.1
"""Distance between the nominal sparsities of a frontier's cells."""
Key = tuple[str, str, float, int]
"""Model, method, nominal sparsity, seed."""


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of a model on each item, in [0, 1] by task, and its nats and tokens on each document."""

    items: dict[str, NDArray[np.float64]]
    nats: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @classmethod
    def of(cls, cell: MeasuredCell) -> Outcomes:
        """Outcomes of a finished cell."""
        documents = cell.items["documents"]
        return cls(
            {task: np.asarray(found, float) for task, found in cell.items["items"].items()},
            np.asarray([document["nats"] for document in documents], float),
            np.asarray([document["tokens"] for document in documents], float),
        )

    @property
    def perplexity(self) -> float:
        """Perplexity over all documents."""
        return float(np.exp(self.nats.sum() / self.tokens.sum()))


@dataclass(frozen=True)
class Between:
    """A method at some bytes a token: `share` of the way from a cell that reads less to one that reads more."""

    below: Outcomes
    above: Outcomes
    share: float

    @property
    def items(self) -> dict[str, NDArray[np.float64]]:
        """Outcomes by task, linear in the bytes; empty where one of the cells has no tasks."""
        tasks = self.below.items.keys() & self.above.items.keys()
        return {
            task: (1 - self.share) * self.below.items[task] + self.share * self.above.items[task]
            for task in self.below.items
            if task in tasks
        }

    def rise(self, below: Any, above: Any) -> Any:
        """Rise of perplexity from those of the two cells: its logarithm is linear in the bytes.

        Linear in itself towards the dense model, whose rise is 0.
        """
        positive = (np.asarray(below) > 0) & (np.asarray(above) > 0)
        lowest = np.finfo(float).tiny
        logs = [np.log(np.maximum(found, lowest)) for found in (below, above)]
        geometric = np.exp((1 - self.share) * logs[0] + self.share * logs[1])
        return np.where(positive, geometric, (1 - self.share) * below + self.share * above)


@dataclass(frozen=True)
class Comparison:
    """A method against WiSparse on one model, at the bytes that WiSparse reads at a nominal sparsity."""

    model: str
    method: str
    sparsity: float
    seeds: tuple[int, ...]
    bridged: tuple[int, ...]
    """Seeds without a cell of the method at this sparsity, compared between its cells a `STEP` away."""
    budget: str
    """WiSparse's search budget."""
    bytes_per_token: float
    """WiSparse's, mean over the seeds."""
    rise_share: Interval
    """Rise of perplexity over dense as a share of WiSparse's, mean over the seeds, paired by document."""
    rise_share_by_seed: tuple[float, ...]
    average_difference: Interval | None
    """Average accuracy minus WiSparse's in points, mean over the seeds, paired by item."""
    time_share: float | None
    """Seconds of calibration and search as a share of WiSparse's, on the same device; None without."""

    @property
    def seeds_text(self) -> str:
        """How many, and how many of them bridged."""
        return f"{len(self.seeds)} ({len(self.bridged)} bridged)" if self.bridged else str(len(self.seeds))


@dataclass(frozen=True)
class FrontierData:
    """Cells with a perplexity, in the order of the table."""

    cells: dict[Key, MeasuredCell]
    _resamples: dict[str, PairedResamples] = field(default_factory=dict, repr=False)

    @cached_property
    def groups(self) -> dict[tuple[str, float, str], list[MeasuredCell]]:
        """Cells by model, sparsity and method: one a seed."""
        found: dict[tuple[str, float, str], list[MeasuredCell]] = {}
        for (model, method, sparsity, _), cell in self.cells.items():
            found.setdefault((model, sparsity, method), []).append(cell)
        return found

    def dense(self, model: str) -> MeasuredCell | None:
        """The model without sparsity, where it was measured; seeds change nothing about it."""
        return next(iter(self.groups.get((model, 0.0, "dense"), [])), None)

    def comparison(self, model: str, method: str, sparsity: float) -> Comparison | None:
        """None without a dense cell, or without a seed with both methods' cells around WiSparse's bytes."""
        dense = self.dense(model)
        pairs: dict[int, tuple[MeasuredCell | None, MeasuredCell, Between]] = {}
        for reference in self.groups.get((model, sparsity, REFERENCE), []):
            seed = reference.record["seed"]
            own = self.cells.get((model, method, sparsity, seed))
            around = [(model, method, round(sparsity + step, 6), seed) in self.cells for step in (-STEP, STEP)]
            between = self._at_bytes(model, method, seed, _bytes(reference))
            if between is not None and (own is not None or all(around)):
                pairs[seed] = own, reference, between
        if dense is None or not pairs:
            return None
        compared = [(between, Outcomes.of(theirs)) for _, theirs, between in pairs.values()]
        shares = [self._rise_share(model, between, theirs, dense) for between, theirs in compared]
        return Comparison(
            model, method, sparsity, tuple(pairs),
            bridged=tuple(seed for seed, (own, *_) in pairs.items() if own is None),
            budget=", ".join(sorted({search_budget(theirs.record) for _, theirs, _ in pairs.values()})),
            bytes_per_token=float(np.mean([_bytes(theirs) for _, theirs, _ in pairs.values()])),
            rise_share=interval(
                float(np.mean([share for share, _ in shares])), np.mean([drawn for _, drawn in shares], axis=0)
            ),
            rise_share_by_seed=tuple(share for share, _ in shares),
            average_difference=self._average_difference(model, compared),
            time_share=_time_share([(own, theirs) for own, theirs, _ in pairs.values() if own is not None]),
        )  # fmt: skip

    def _at_bytes(self, model: str, method: str, seed: int, wanted: float) -> Between | None:
        """Where a method's two nearest cells lie around some bytes a token; dense is the last of every method.

        None outside of what was measured: nothing is extrapolated.
        """
        curve = [
            cell
            for (of_model, of_method, _, of_seed), cell in self.cells.items()
            if of_model == model and (of_method == "dense" or (of_method, of_seed) == (method, seed))
        ]
        below = max((cell for cell in curve if _bytes(cell) <= wanted), key=_bytes, default=None)
        above = min((cell for cell in curve if _bytes(cell) >= wanted), key=_bytes, default=None)
        if below is None or above is None:
            return None
        width = _bytes(above) - _bytes(below)
        share = (wanted - _bytes(below)) / width if width else 0.0
        return Between(Outcomes.of(below), Outcomes.of(above), share)

    def _resampled(self, model: str) -> PairedResamples:
        """The same for every cell of a model, whether it has tasks or not."""
        if model not in self._resamples:
            self._resamples.clear()  # half a gigabyte each, and the table goes through one model after another
            cells = [cell for (of_model, *_), cell in self.cells.items() if of_model == model]
            items = max((cell.items["items"] for cell in cells), key=len)
            counts = {task: len(found) for task, found in items.items()}
            self._resamples[model] = PairedResamples(counts, len(cells[0].items["documents"]))
        return self._resamples[model]

    def _rise_share(
        self, model: str, between: Between, theirs: Outcomes, dense: MeasuredCell
    ) -> tuple[float, NDArray[np.float64]]:
        """The share and its resamples."""
        base, resamples = Outcomes.of(dense), self._resampled(model)

        def drawn(outcomes: Outcomes) -> NDArray[np.float64]:
            return np.exp(resamples.log_perplexities(outcomes.nats, outcomes.tokens))

        below, above, reference = (
            (of.perplexity - base.perplexity, drawn(of) - drawn(base))
            for of in (between.below, between.above, theirs)
        )
        value, resampled = (between.rise(below[i], above[i]) / reference[i] for i in (0, 1))
        return float(value), resampled

    def _average_difference(self, model: str, compared: list[tuple[Between, Outcomes]]) -> Interval | None:
        pairs = [(between.items, theirs.items) for between, theirs in compared]
        if not all(mine and mine.keys() == theirs.keys() for mine, theirs in pairs):
            return None
        differences = {
            task: np.mean([mine[task] - theirs[task] for mine, theirs in pairs], axis=0) for task in pairs[0][0]
        }
        value = 100 * float(np.mean([found.mean() for found in differences.values()]))
        return interval(value, self._resampled(model).averages(differences))


def _bytes(cell: MeasuredCell) -> float:
    return float(cell.record["realised"]["bytes_per_token"])


def search_budget(record: dict[str, Any]) -> str:
    """Name of the search budget that a plan was made under."""
    return str(record["config"]["search"]["name"])


def search_seconds(record: dict[str, Any]) -> float:
    """Seconds of everything that making the plan took: calibration, search, thresholds."""
    return float(sum(record["plan"]["seconds_by_stage"].values()))


def _time_share(pairs: list[tuple[MeasuredCell, MeasuredCell]]) -> float | None:
    """Share of time over the seeds whose two cells are of one device; None without any."""
    alike = [pair for pair in pairs if len({cell.record["model"]["device_name"] for cell in pair}) == 1]
    if not alike:
        return None
    mine, theirs = (sum(search_seconds(pair[side].record) for pair in alike) for side in (0, 1))
    return mine / theirs


def read_frontier(*folders: Path) -> FrontierData:
    """Read every record with a perplexity below the folders; of several of one cell the newest counts.

    Raises UserError when there is none, when one is damaged, or when they are not all on the same
    text under the same protocol.
    """
    cells: dict[Key, MeasuredCell] = {}
    try:
        for path in sorted(path for folder in folders for path in folder.rglob(RECORD)):
            record = load_record(path.parent)
            key = (record["model"]["name"], record["method"]["name"], float(record["sparsity"]), record["seed"])
            older = cells.get(key)
            if record["perplexity"] is not None and (older is None or older.record["utc"] < record["utc"]):
                cells[key] = MeasuredCell(record, load_items(path.parent), path.parent)
    except RecordError as error:
        raise UserError(f"{error}; delete that folder, or compute the cell again with force=true") from error
    if not cells:
        raise UserError(f"{', '.join(map(str, folders))} holds no record with a perplexity")
    texts: dict[str, tuple[Any, ...]] = {}
    for cell in cells.values():
        record = cell.record
        text = (record["n_documents"], record["n_tokens"], record["protocol"]["name"])
        if texts.setdefault(record["model"]["name"], text) != text:
            raise UserError(f"{cell.folder.name} is on another text or under another protocol than the others")
    return FrontierData(dict(sorted(cells.items(), key=lambda pair: _place(pair[0]))))


def _place(key: Key) -> tuple[Any, ...]:
    model, method, sparsity, seed = key
    return model, sparsity, *method_rank(method), seed

"""Every method's cells against the bytes a token reads, compared with WiSparse's at the very bytes it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..record_facts import hardware
from .cells import MeasuredCell, method_rank, stored_cells
from .comparable import check_one_text
from .comparison import Between, Comparison, LatestComparison, Outside, at_equal_bytes, bytes_of
from .deciding import check_names
from .paired_bootstrap import Interval
from .pruned_cells import pruned_or_method
from .rise import Rises, mean_of

REFERENCE = "wisparse"
STEP = 0.1
"""Distance between the nominal sparsities of a frontier's cells."""
Key = tuple[str, str, float, int]
"""Model, method, nominal sparsity, seed."""


@dataclass(frozen=True)
class AtEqualBytes:
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
    def spread_text(self) -> str:
        """Least and most of the rise by seed; nothing for one seed."""
        shares = self.rise_share_by_seed
        return f"{min(shares):.2f} to {max(shares):.2f}" if len(shares) > 1 else ""

    @property
    def seeds_text(self) -> str:
        """How many, and how many of them bridged."""
        return f"{len(self.seeds)} ({len(self.bridged)} bridged)" if self.bridged else str(len(self.seeds))


@dataclass(frozen=True)
class FrontierData:
    """Cells with a perplexity, in the order of the table."""

    cells: dict[Key, MeasuredCell]
    _comparisons: LatestComparison = field(default_factory=LatestComparison, repr=False)

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

    def comparison(self, model: str, method: str, sparsity: float) -> AtEqualBytes | None:
        """None without a dense cell, or without a seed with both methods' cells around WiSparse's bytes."""
        dense = self.dense(model)
        pairs: dict[int, tuple[MeasuredCell | None, MeasuredCell, Between]] = {}
        for reference in self.groups.get((model, sparsity, REFERENCE), []):
            seed = reference.record["seed"]
            own = self.cells.get((model, method, sparsity, seed))
            around = [(model, method, round(sparsity + step, 6), seed) in self.cells for step in (-STEP, STEP)]
            between = self._at_bytes(model, method, seed, bytes_of(reference))
            if isinstance(between, Between) and (own is not None or all(around)):
                pairs[seed] = own, reference, between
        if dense is None or not pairs:
            return None
        compared = [(between, theirs) for _, theirs, between in pairs.values()]
        comparison = self._compared(model)
        shares = [Rises(comparison, dense).share(between, theirs) for between, theirs in compared]
        return AtEqualBytes(
            model, method, sparsity, tuple(pairs),
            bridged=tuple(seed for seed, (own, *_) in pairs.items() if own is None),
            budget=", ".join(sorted({search_budget(theirs.record) for _, theirs, _ in pairs.values()})),
            bytes_per_token=float(np.mean([bytes_of(theirs) for _, theirs, _ in pairs.values()])),
            rise_share=mean_of(shares),
            rise_share_by_seed=tuple(share for share, _ in shares),
            average_difference=comparison.average_difference(compared),
            time_share=_time_share([(own, theirs) for own, theirs, _ in pairs.values() if own is not None]),
        )  # fmt: skip

    def _at_bytes(self, model: str, method: str, seed: int, wanted: float) -> Between | Outside:
        """Where a method's two nearest cells lie around some bytes; dense is the last of every method."""
        curve = [
            cell
            for (of_model, of_method, _, of_seed), cell in self.cells.items()
            if of_model == model and (of_method == "dense" or (of_method, of_seed) == (method, seed))
        ]
        return at_equal_bytes(curve, wanted) if curve else Outside(None)

    def _compared(self, model: str) -> Comparison:
        """Paired comparisons of a model's cells."""
        return self._comparisons.of(
            model, lambda: (cell for (of_model, *_), cell in self.cells.items() if of_model == model)
        )


def search_budget(record: dict[str, Any]) -> str:
    """Name of the search budget that a plan was made under."""
    return str(record["config"]["search"]["name"])


def search_seconds(record: dict[str, Any]) -> float:
    """Seconds of everything that making the plan took, calibration, search, thresholds, or pruning weights."""
    stages = record["plan"]["seconds_by_stage"].values()
    return float(sum(stages) + record["seconds"].get("quantisation", 0.0))


def _time_share(pairs: list[tuple[MeasuredCell, MeasuredCell]]) -> float | None:
    """Share of time over the seeds whose two cells are of one device; None without any."""
    alike = [pair for pair in pairs if len({hardware(cell.record["model"]) for cell in pair}) == 1]
    if not alike:
        return None
    mine, theirs = (sum(search_seconds(pair[side].record) for pair in alike) for side in (0, 1))
    return mine / theirs


def read_frontier(*folders: Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True) -> FrontierData:
    """Read every record with a perplexity below the folders; of a cell measured again the newest counts.

    keep: which of them, of folders that hold several suites or protocols. Raises UserError when there is none,
    when one is damaged, of weights in few bits, or when they are not all on the same text under the same
    protocol.
    """
    cells = stored_cells(
        folders,
        lambda record: (*pruned_or_method(record), record["seed"]),
        keep=lambda record: record["perplexity"] is not None and keep(record),
        command="`python repro/run.py experiment=frontier`",
    )
    check_names(((cell.folder, cell.record) for cell in cells.values()), varied=("quantisation",))
    check_one_text(cells.values())
    return FrontierData(dict(sorted(cells.items(), key=lambda pair: _place(pair[0]))))


def _place(key: Key) -> tuple[Any, ...]:
    model, method, sparsity, seed = key
    return model, sparsity, *method_rank(method), seed

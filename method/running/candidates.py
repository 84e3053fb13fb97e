"""Rules of one projection side by side, for a search to compare; a plan holds the one that was chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..plan import ProjectionRule


@dataclass(frozen=True)
class CandidateRules:
    """Several rules for one projection, all with static thresholds or all with per-token top-k.

    Exactly one of `thresholds` and `top_k` is given. One candidate serves every row of a batch; of several each
    serves its own.
    """

    thresholds: Tensor | None = None
    """(candidates, 1, in) float32."""
    top_k: Tensor | None = None
    """(candidates, 1, 1) int64, on the CPU."""
    weights: Tensor | None = None
    """Channel weights of the top-k score: (in,) of all candidates, or (candidates, 1, in)."""
    shared: str | None = None
    """How rows share the rule that is chosen; see `ProjectionRule`. In a search each row has its own."""
    left: ClassVar[None] = None
    bias: ClassVar[None] = None
    bounds: ClassVar[None] = None
    """No low-rank path, no bias and no bounds on k: searches compare thresholds or top-k alone."""

    def __post_init__(self) -> None:
        if (self.thresholds is None) == (self.top_k is None):
            raise ValueError("candidate rules need either thresholds or top_k")
        if (self.top_k is None) != (self.weights is None):
            raise ValueError("top-k candidates need the channel weights of their score")

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.top_k if self.thresholds is None else self.thresholds)

    def select(self, index: Tensor) -> CandidateRules:
        """The candidates at `index` (candidates,), in that order."""
        return self._each(lambda value: value[index.to(value.device)])

    def for_rows(self, rows: int) -> CandidateRules:
        """Each candidate repeated for its `rows` sequences; one alone stays one, which serves all."""
        return self if len(self) == 1 else self._each(lambda value: value.repeat_interleave(rows, dim=0))

    def only(self) -> ProjectionRule:
        """The rule of the one candidate there is, as a plan holds it."""
        if len(self) != 1:
            raise ValueError(f"there are {len(self)} candidates; select one first")
        if self.thresholds is not None:
            return ProjectionRule(thresholds=self.thresholds[0, 0])
        weights = self.weights if self.weights.ndim == 1 else self.weights[0, 0]
        return ProjectionRule(top_k=int(self.top_k.item()), weights=weights, shared=self.shared)

    def _each(self, change: Callable[[Tensor], Tensor]) -> CandidateRules:
        """Change what every candidate has its own of."""
        own = {n: value for n, value in vars(self).items() if isinstance(value, Tensor) and value.ndim == 3}
        return replace(self, **{name: change(value) for name, value in own.items()})

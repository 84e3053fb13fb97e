"""The dense model: an empty plan."""

from __future__ import annotations

from dataclasses import dataclass

from ..method.base import Method
from ..method.calibration import Calibration
from ..method.plan import SparsityPlan
from ..method.provenance import SearchCost


@dataclass(frozen=True)
class Dense(Method):
    """No projection is sparse, whatever the sparsity asked for."""

    name: str = "dense"
    needs = frozenset()

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        return SparsityPlan(calibration.shapes)

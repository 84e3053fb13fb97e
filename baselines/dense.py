"""The dense model: an empty plan."""

from __future__ import annotations

from dataclasses import dataclass

from ..method.base import Method
from ..method.calibration import Calibration
from ..method.plan import SparsityPlan


@dataclass(frozen=True)
class Dense(Method):
    """No projection is sparse, whatever the sparsity asked for."""

    def _plan(self, calibration: Calibration, sparsity: float) -> SparsityPlan:
        return SparsityPlan(shapes=calibration.shapes, provenance={"stages": {}, "evaluations": 0})

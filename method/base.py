"""Base of all methods: a named recipe that turns a calibration and a sparsity into a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from .calibration import Calibration
from .errors import UserError
from .plan import SparsityPlan


@dataclass(frozen=True)
class Method(ABC):
    """A method; its fields are its configuration, `conf/method/*.yaml` documents them."""

    name: str
    """Name in tables and records."""

    def plan(self, calibration: Calibration, sparsity: float) -> SparsityPlan:
        """The plan for a block sparsity: share of the block projections' weights not read, in [0, 1).

        Raises UserError for a sparsity out of range or out of the method's reach.
        """
        if not 0.0 <= sparsity < 1.0:
            raise UserError(f"sparsity must be at least 0 and below 1, not {sparsity}; try sparsity=0.5")
        plan = self._plan(calibration, sparsity)
        plan.provenance |= {"method": self.name, "sparsity": sparsity}
        return plan

    @abstractmethod
    def _plan(self, calibration: Calibration, sparsity: float) -> SparsityPlan:
        """Build the plan; the sparsity is in range."""

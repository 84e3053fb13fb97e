"""What a method is: a named recipe that turns a calibration and a sparsity into a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from numbers import Real

from ..kernels.plan.mechanism import OF_DROPPING, Mechanism
from .calibration import Calibration
from .errors import UserError
from .passes.dense_pass import Need
from .passes.progress import Progress
from .plan import SparsityPlan
from .provenance import SearchCost
from .quantised_model import description_of
from .running.precision import own_precision
from .seal import seal_of
from .settings import Settings


@dataclass(frozen=True)
class Method(Settings, ABC):
    """A method; its fields are its configuration, `conf/method/*.yaml` documents them.

    A new method defines `_plan`. Its other members are for methods that need other measurements than most, or
    that cannot reach every sparsity.
    """

    name: str
    """Name in tables and records."""

    @own_precision()
    def plan(self, calibration: Calibration, sparsity: float, progress: Progress | None = None) -> SparsityPlan:
        """The plan for a block sparsity: share of the block projections' weights not read, in [0, 1).

        `progress`: what an earlier search for this very plan has found, and what this one finds.
        Raises UserError for a sparsity out of range, OutOfReachError for one out of the method's reach, and
        UserError where the calibration is of other weights or what was found is no number.
        """
        if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
            raise UserError(f"sparsity={sparsity!r} is no number; try sparsity=0.5")
        if not 0.0 <= sparsity < 1.0:
            raise UserError(f"sparsity must be at least 0 and below 1, not {sparsity}; try sparsity=0.5")
        calibration.check_same_weights()
        self.check_reach(calibration, sparsity)
        cost = SearchCost(progress=progress or Progress())
        of = {"method": repr(self), "sparsity": sparsity, "calibration": calibration.identity}
        cost.progress.begin(seal_of(of, {}))
        if self.needs:
            with cost.stage("calibration"):
                calibration.prepare(self.needs, cost.progress.calibration)
            cost.stages["calibration"] += cost.progress.calibration.seconds  # of the part that was cut off
        plan = self._plan(calibration, sparsity, cost)
        if broken := plan.not_a_number():
            raise UserError(
                f"{self.name}: {broken} of the plan is not a number; lower an exponent or a rate that was "
                "raised, load the model in float32 (model.dtype), and look at the checkpoint where that does "
                "not help"
            )
        made = replace(plan.provenance, method=self.name, sparsity=sparsity, search=cost)
        return replace(
            plan,
            quantisation=description_of(calibration.model),
            weight_samples=calibration.weight_samples,
            provenance=made,
        )

    @property
    def needs(self) -> frozenset[Need]:
        """What `_plan` reads of the calibration; collected in one pass before it is called."""
        return frozenset({"statistics"})

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """What every plan of it is made of besides masks: a runtime without it refuses before one is made."""
        return frozenset()

    def mechanisms_at(self, sparsity: float) -> frozenset[Mechanism]:
        """Mechanisms of every plan at this sparsity; at 0 those that skip exact zeros, and none for rules."""
        return self.mechanisms if sparsity else self.mechanisms - OF_DROPPING

    def check_reach(self, calibration: Calibration, sparsity: float) -> None:
        """Raises OutOfReachError where the method cannot reach the sparsity on this model."""

    @abstractmethod
    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        """Build the plan; the sparsity is in range and what the method needs has been measured.

        Whoever searches times its stages with `cost.stage`, counts its evaluations with `cost.count`, and finds
        what takes long with `cost.step`: cut off, the search goes on from there.
        """


@dataclass(frozen=True)
class AroundAnother(Method):
    """A method that changes what another one plans, or what it plans from; it reaches what that one reaches."""

    inner: Method
    """The other one."""

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """What the inner method's plans are made of."""
        return self.inner.mechanisms

    def check_reach(self, calibration: Calibration, sparsity: float) -> None:
        """See `Method`."""
        self.inner.check_reach(calibration, sparsity)

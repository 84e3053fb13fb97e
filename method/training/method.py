"""A plan of static thresholds whose thresholds and biases are then trained, the model's weights as they are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...kernels.plan.bases import FoldedBases
from ...kernels.plan.mechanism import Mechanism, in_words
from ..base import AroundAnother
from ..calibration import Calibration
from ..errors import UserError
from ..passes.dense_pass import Need
from ..plan import SparsityPlan
from ..provenance import SearchCost
from .distillation import Distillation


@dataclass(frozen=True)
class Trained(AroundAnother):
    """The inner method's thresholds, trained further, with one trained bias a projection.

    What counts is the divergence of the predictions from the dense model's on the calibration text, with those
    tokens sparse that are so while methods search. A bias is as many numbers to read as a projection has rows.
    """

    training: Distillation = field(default_factory=Distillation)

    def __post_init__(self) -> None:
        super().__post_init__()
        if others := self.inner.mechanisms:
            raise UserError(
                f"{self.name}: {self.inner.name} has {in_words(others)}, and trained are plans of static "
                "thresholds alone; folded bases go around the training, not into it"
            )

    @property
    def needs(self) -> frozenset[Need]:
        """The dense predictions, beside what the inner method needs."""
        return self.inner.needs | {"final_states"}

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """Biases, beside what the inner method's plans are made of."""
        return self.inner.mechanisms | {Mechanism.BIAS}

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        plan = self.inner._plan(calibration, sparsity, cost)
        if sparsity == 0.0:
            return plan
        if any(rule.thresholds is None or rule.rank for rule in plan.rules.values()):
            raise UserError(f"{self.name}: trained are plans of static thresholds on channels alone")
        with cost.stage("training"):
            trained = self.training.run(calibration, plan.rules, sparsity)
            cost.count("training", self.training.steps)
        details = {**plan.provenance.details, "divergence_by_ten_steps": trained.losses}
        if self.training.threshold_rate and "sparsities" in details:  # they were those of the inner method
            details["sparsities_before_training"] = details.pop("sparsities")
        provenance = replace(plan.provenance, details=details)
        folded = None if trained.stream is None else FoldedBases(trained.stream)
        return replace(plan, rules=trained.rules, folded=folded, provenance=provenance)

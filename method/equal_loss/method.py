"""Equal loss: one threshold for the whole model, on the loss that a dropped weight is expected to cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Method
from ..calibration import Calibration
from ..passes.dense_pass import Need
from ..plan import ProjectionRule, SparsityPlan
from ..provenance import PlanProvenance, SearchCost
from .loss_threshold import LossThreshold
from .marginal_loss import MarginalLosses, marginal_losses
from .sensitivity import channel_sensitivities, sensitivities_at


@dataclass(frozen=True)
class EqualLoss(Method):
    """Channel i of a projection with `out` rows is dropped where c·x_i²·h_i / out < τ, one τ for the model.

    h_i is the channel's sensitivity: ½·x_i²·h_i is the divergence that dropping it alone costs to second order,
    and `out` the weights that are not read. Where every dropped weight costs less than every kept one, no other
    allocation over blocks, projections and channels drops as many at less expected loss: nothing is searched.
    What dropping others at the same time does to that cost is one correction c a channel, measured at the
    sparse model itself in `correction_rounds`.
    It is a plan of static thresholds, t_i = √(τ·out / (c·h_i)), and runs on every kernel as it is.
    """

    name: str = "equal_loss"
    sensitivity_sequences: int = 16
    """Calibration sequences that h is measured on, where there are as many."""
    sensitivity_rounds: int = 0
    """Times that h is then measured again, at the sparse model."""
    correction_rounds: int = 8
    """0: c is 1 everywhere."""
    correction_sequences: int = 32
    """Calibration sequences of one round; the next takes others where there are more."""
    correction_exponent: float = 0.3
    """Each round multiplies c by (channel's marginal loss / that of all weights) to this power."""
    correction_bound: float = 3.0
    """Largest ratio of a projection to all weights, and of a channel to its projection; least: its inverse."""
    seed: int = 0
    """Seed of the labels that gradients are drawn for."""

    @property
    def needs(self) -> frozenset[Need]:
        """Corrections compare with the dense model's predictions."""
        return super().needs | ({"final_states"} if self.correction_rounds else set())

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        with cost.stage("sensitivity"):
            sensitivities = channel_sensitivities(calibration, self.seed, self.sensitivity_sequences)
            cost.count(
                "sensitivity", len(calibration.input_ids[calibration.spread(self.sensitivity_sequences)])
            )
        with cost.stage("thresholds"):
            threshold = LossThreshold(calibration)
            curvature = threshold.together(sensitivities)
            corrections = torch.ones_like(curvature)
            thresholds = threshold.thresholds(curvature, sparsity)
        for _ in range(self.sensitivity_rounds if sparsity > 0.0 else 0):
            with cost.stage("sensitivity"):
                by_key = threshold.by_key(thresholds)
                sensitivities = sensitivities_at(calibration, by_key, self.seed, self.sensitivity_sequences)
                curvature = threshold.together(sensitivities)
                thresholds = threshold.thresholds(curvature, sparsity)
        for number in range(self.correction_rounds if sparsity > 0.0 else 0):
            with cost.stage("correction"):
                which = calibration.spread(self.correction_sequences, number)
                by_key = threshold.by_key(thresholds)
                losses = marginal_losses(calibration, by_key, sensitivities, which)
                corrections *= threshold.together(self._factors(losses, calibration))
                cost.count("correction", len(calibration.input_ids[which]))
            with cost.stage("thresholds"):
                thresholds = threshold.thresholds(corrections * curvature, sparsity)
        with cost.stage("thresholds"):
            sparsities, typical = threshold.sparsities(thresholds), threshold.means(corrections.log())
        rules = {name: ProjectionRule(thresholds=found) for name, found in threshold.by_key(thresholds).items()}
        corrected = {name: math.exp(found) for name, found in typical.items()}
        provenance = PlanProvenance(details={"sparsities": sparsities, "corrections": corrected})
        return SparsityPlan(calibration.shapes, rules, provenance=provenance)

    def _factors(self, losses: MarginalLosses, calibration: Calibration) -> dict[str, Tensor]:
        """Factors of one round on the corrections, (in,) by key.

        Projection against all weights, then channel against projection, each within the bound.
        """
        shapes, bound = calibration.shapes, self.correction_bound
        weights = [float(out * inner) for out, inner in shapes.values()]
        sizes = torch.tensor(weights, device=calibration.device, dtype=torch.float64)
        mean = (losses.mean * sizes).sum() / sizes.sum()
        ratios = (losses.mean / mean).clamp(1.0 / bound, bound)[:, None]
        own = losses.mean[:, None]
        inside = 1.0 + (losses.by_channel - own) / own.clamp_min(mean / bound)
        factors = (ratios * inside.clamp(1.0 / bound, bound)) ** self.correction_exponent
        # At a mean of 0 or less dropping more costs nothing at this sparsity that could be measured.
        factors = torch.where(mean > 0.0, factors, 1.0)
        return {name: row[:inner] for row, (name, (_, inner)) in zip(factors, shapes.items(), strict=True)}

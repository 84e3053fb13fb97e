"""Equal loss: one threshold for the whole model, on the loss that a dropped weight is expected to cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Method
from .calibration import Calibration
from .errors import UserError
from .histogram import narrowed
from .marginal_loss import MarginalLoss, marginal_losses
from .plan import ProjectionRule, SparsityPlan
from .projections import SITE_OF_PROJECTION, split_key
from .sensitivity import channel_sensitivities
from .stages import SearchCost

SMALLEST_SENSITIVITY = 1e-30
"""So that a channel that nothing depends on has a finite, if huge, threshold."""
LOSS_ROUNDS = 13
"""Of `narrowed`: as fine as forty bisections, in a third of the steps."""
LARGEST_OCTAVES = 100.0
"""Octaves around 0 that the threshold on the loss is searched in."""


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

    sensitivity_sequences: int
    """Calibration sequences that h is measured on, where there are as many."""
    correction_rounds: int
    """0: c is 1 everywhere."""
    correction_sequences: int
    """Calibration sequences of one round; the next takes others where there are more."""
    correction_exponent: float
    """Each round multiplies c by (channel's marginal loss / that of all weights) to this power."""
    correction_bound: float
    """Largest ratio of a projection to all weights, and of a channel to its projection; least: its inverse."""
    seed: int
    """Of the labels that gradients are drawn for."""

    def __post_init__(self) -> None:
        at_least_1 = self.sensitivity_sequences, self.correction_sequences, self.correction_bound
        if self.correction_rounds < 0 or min(at_least_1) < 1:
            raise UserError(
                "method.correction_rounds must be at least 0, method.sensitivity_sequences, "
                "method.correction_sequences and method.correction_bound at least 1"
            )

    def _plan(self, calibration: Calibration, sparsity: float) -> SparsityPlan:
        cost = SearchCost()
        with cost.stage("calibration"):
            _ = calibration.statistics
        with cost.stage("sensitivity"):
            sensitivities = channel_sensitivities(calibration, self.seed, self.sensitivity_sequences)
            cost.count("sensitivity", len(calibration.spread_sequences(self.sensitivity_sequences)))
        corrections = {name: torch.ones_like(found) for name, found in sensitivities.items()}
        with cost.stage("thresholds"):
            thresholds, sparsities = equal_loss_thresholds(calibration, sensitivities, sparsity)
        for number in range(self.correction_rounds if sparsity > 0.0 else 0):
            with cost.stage("correction"):
                factors = self._measured_factors(calibration, sensitivities, thresholds, number, cost)
                for name, factor in factors.items():
                    corrections[name] *= factor
            with cost.stage("thresholds"):
                corrected = {name: corrections[name] * found for name, found in sensitivities.items()}
                thresholds, sparsities = equal_loss_thresholds(calibration, corrected, sparsity)
        rules = {name: ProjectionRule(thresholds=found) for name, found in thresholds.items()}
        means = {name: float(found.log().mean().exp()) for name, found in corrections.items()}
        provenance = {"sparsities": sparsities, "corrections": means, **cost.to_dict()}
        return SparsityPlan(calibration.shapes, rules, provenance=provenance)

    def _measured_factors(
        self,
        calibration: Calibration,
        sensitivities: dict[str, Tensor],
        thresholds: dict[str, Tensor],
        number: int,
        cost: SearchCost,
    ) -> dict[str, Tensor]:
        """What one round multiplies the corrections by, (in,) by key."""
        input_ids = calibration.spread_sequences(self.correction_sequences, number)
        losses = marginal_losses(calibration, thresholds, sensitivities, input_ids)
        cost.count("correction", len(input_ids))
        sizes = {name: out * inner for name, (out, inner) in calibration.shapes.items()}
        mean = sum(losses[name].mean * size for name, size in sizes.items()) / sum(sizes.values())
        if mean <= 0.0:  # at this sparsity dropping more costs nothing that could be measured
            return {name: torch.ones_like(found) for name, found in sensitivities.items()}
        return {name: self._factor(loss, mean) for name, loss in losses.items()}

    def _factor(self, loss: MarginalLoss, mean: float) -> Tensor:
        """Projection against all weights, then channel against projection, each within the bound; (in,)."""
        bound = self.correction_bound
        ratio = min(max(loss.mean / mean, 1.0 / bound), bound)
        inside = 1.0 + (loss.by_channel - loss.mean) / max(loss.mean, mean / bound)
        return (ratio * inside.clamp(1.0 / bound, bound)) ** self.correction_exponent


def equal_loss_thresholds(
    calibration: Calibration, sensitivities: dict[str, Tensor], sparsity: float
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Thresholds (in,) by key for the τ that drops `sparsity` of the weights, and the shares dropped."""
    sizes = {name: out * inner for name, (out, inner) in calibration.shapes.items()}
    # log2 of t_i at τ = 1.
    unit = {
        name: 0.5 * (torch.tensor(float(out)).log2() - found.clamp_min(SMALLEST_SENSITIVITY).log2())
        for (name, found), (out, _) in zip(sensitivities.items(), calibration.shapes.values(), strict=True)
    }

    def shares(octaves: Tensor) -> Tensor:
        """(candidates, projections) float64, at candidate octaves that all thresholds are moved by."""
        found = []
        for name, log2_thresholds in unit.items():
            block, projection = split_key(name)
            histogram = calibration.statistics[block].magnitudes[SITE_OF_PROJECTION[projection]]
            found.append(histogram.sparsity_below(log2_thresholds + octaves[:, None]))
        return torch.stack(found, dim=1)

    if sparsity == 0.0:
        return {name: torch.zeros_like(of).float() for name, of in unit.items()}, dict.fromkeys(unit, 0.0)
    weights = torch.tensor(list(sizes.values()), device=calibration.device).double()
    weights /= weights.sum()
    low, high = torch.tensor([[-LARGEST_OCTAVES], [LARGEST_OCTAVES]], device=calibration.device).double()
    high = narrowed(low, high, lambda tried: (shares(tried[0]) @ weights < sparsity)[None], LOSS_ROUNDS)
    found = dict(zip(unit, shares(high)[0].tolist(), strict=True))
    return {name: (of + high).exp2().float() for name, of in unit.items()}, found

"""Equal loss: one threshold for the whole model, on the loss that a dropped weight is expected to cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Method
from .calibration import Calibration
from .plan import ProjectionRule, SparsityPlan
from .projections import SITE_OF_PROJECTION, split_key
from .sensitivity import channel_sensitivities
from .stages import SearchCost

SMALLEST_SENSITIVITY = 1e-30
"""So that a channel that nothing depends on has a finite, if huge, threshold."""
BISECTIONS = 40
LARGEST_OCTAVES = 100.0
"""Octaves around 0 that the threshold on the loss is searched in."""


@dataclass(frozen=True)
class EqualLoss(Method):
    """Channel i of a projection with `out` rows is dropped where x_i²·h_i / out < τ, with one τ for the model.

    h_i is the channel's sensitivity: ½·x_i²·h_i is the divergence that dropping it costs to second order, and
    `out` the weights that are not read. Where every dropped weight costs less than every kept one, no other
    allocation over blocks, projections and channels drops as many at less expected loss: nothing is searched.
    It is a plan of static thresholds, t_i = √(τ·out / h_i), and runs on every kernel as it is.
    """

    seed: int
    """Of the labels that gradients are drawn for."""

    def _plan(self, calibration: Calibration, sparsity: float) -> SparsityPlan:
        cost = SearchCost()
        with cost.stage("calibration"):
            _ = calibration.statistics
        with cost.stage("sensitivity"):
            sensitivities = channel_sensitivities(calibration, self.seed)
            cost.count("sensitivity", len(calibration.input_ids))
        with cost.stage("thresholds"):
            thresholds, sparsities = self._thresholds(calibration, sensitivities, sparsity)
        rules = {name: ProjectionRule(thresholds=found) for name, found in thresholds.items()}
        provenance = {"sparsities": sparsities, **cost.to_dict()}
        return SparsityPlan(calibration.shapes, rules, provenance=provenance)

    @staticmethod
    def _thresholds(
        calibration: Calibration, sensitivities: dict[str, Tensor], sparsity: float
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Thresholds (in,) by key for the τ that drops `sparsity` of the weights, and the shares dropped."""
        sizes = {name: out * inner for name, (out, inner) in calibration.shapes.items()}
        # log2 of t_i at τ = 1.
        unit = {
            name: 0.5 * (torch.tensor(float(out)).log2() - found.clamp_min(SMALLEST_SENSITIVITY).log2())
            for (name, found), (out, _) in zip(sensitivities.items(), calibration.shapes.values(), strict=True)
        }

        def shares(octaves: float) -> dict[str, float]:
            found = {}
            for name, log2_thresholds in unit.items():
                block, projection = split_key(name)
                histogram = calibration.statistics[block].magnitudes[SITE_OF_PROJECTION[projection]]
                found[name] = float(histogram.sparsity_below((log2_thresholds + octaves)[None]))
            return found

        low, high = -LARGEST_OCTAVES, LARGEST_OCTAVES
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            found = shares(middle)
            dropped = sum(found[name] * size for name, size in sizes.items()) / sum(sizes.values())
            low, high = (middle, high) if dropped < sparsity else (low, middle)
        if sparsity == 0.0:
            return {name: torch.zeros_like(of).float() for name, of in unit.items()}, dict.fromkeys(unit, 0.0)
        return {name: (of + high).exp2().float() for name, of in unit.items()}, shares(high)

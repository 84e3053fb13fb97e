"""WINA as its code has it (arXiv 2505.19427), in rotated bases; and its control, TEAL in the same bases."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..method.calibration import Calibration
from ..method.errors import OutOfReachError
from ..method.plan import SparsityPlan
from ..method.rotation import orthogonal_column_bases, rotated
from .teal import TEAL

ROTATED_FOR = {"attention_input": "k", "mlp_input": "gate"}
"""Projection whose columns become orthogonal, by site."""


@dataclass(frozen=True)
class RotatedTEAL(TEAL):
    """|x_i| ≥ t after a rotation that gives k and gate orthogonal columns; o and down keep their own inputs."""

    rotation_counted: bool
    """Whether the two dense products a block come out of the budget; the published figures leave them out."""

    def _plan(self, calibration: Calibration, sparsity: float) -> SparsityPlan:
        if sparsity == 0.0:
            return super()._plan(calibration, sparsity)  # nothing is dropped in any basis
        model = calibration.model
        bases = orthogonal_column_bases(model, ROTATED_FOR)
        weights = sum(math.prod(shape) for shape in calibration.shapes.values())
        share = sum(basis.numel() for basis in bases.values()) / weights if self.rotation_counted else 0.0
        if sparsity + share >= 1.0:
            raise OutOfReachError(
                f"{self.name} reads rotations of {share:.3f} of the blocks' weights and cannot reach block "
                f"sparsity {sparsity} on this model; the maximum is below {1.0 - share:.3f}",
                maximum=1.0 - share,
            )
        with rotated(model, bases):
            inside = Calibration(
                model, calibration.input_ids, calibration.batch_size, calibration.search_protocol
            )
            plan = super()._plan(inside, sparsity + share)
        plan.rotations = bases
        return plan


@dataclass(frozen=True)
class RotatedWINA(RotatedTEAL):
    """The k highest scores of each token: |x_i|·c_i on k and gate, whose columns are orthogonal, else |x_i|."""

    def _alpha(self, projection: str) -> float:
        return 1.0 if projection in ROTATED_FOR.values() else 0.0

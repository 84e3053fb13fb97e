"""Methods in rotated bases: their frame, WINA as its code has it (arXiv 2505.19427), and its control, TEAL."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ..kernels.plan.mechanism import Mechanism
from ..method.base import Method
from ..method.calibration import Calibration
from ..method.errors import OutOfReachError
from ..method.plan import SparsityPlan
from ..method.projections import key
from ..method.provenance import SearchCost
from ..method.rotation import orthogonal_column_bases, rotated
from ..method.rules import MaskRule, TopK
from ..method.search.budget import QUICK
from .teal import TEAL

ROTATED_FOR = {"attention_input": "k", "mlp_input": "gate"}
"""Projection whose columns become orthogonal, by site."""


@dataclass(frozen=True)
class Rotated(Method):
    """Frame of methods whose rules are on rotated channels: dense products leave less for the rules to keep."""

    rotation_counted: bool = True
    """Whether the dense products of a block come out of the budget; published figures leave them out."""

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """Dense bases."""
        return frozenset({Mechanism.ROTATION})

    @property
    def products(self) -> int:
        """Dense products of a block with matrices of (hidden, hidden)."""
        return len(ROTATED_FOR)

    def reach(self, calibration: Calibration) -> float:
        """Block sparsity that the rules stay below, whatever rotations read."""
        return 1.0

    def check_reach(self, calibration: Calibration, sparsity: float) -> None:
        """What rotations read is not there to be dropped."""
        share, reach = self.rotation_share(calibration, sparsity), self.reach(calibration)
        if sparsity + share >= reach:
            raise OutOfReachError(
                f"{self.name} reads rotations of {share:.3f} of the blocks' weights and cannot reach block "
                f"sparsity {sparsity} on this model; the maximum is below {reach - share:.3f}",
                maximum=reach - share,
            )

    def rotation_share(self, calibration: Calibration, sparsity: float) -> float:
        """Share of the blocks' weights that the rotations are, where they come out of the budget."""
        if sparsity == 0.0 or not self.rotation_counted:
            return 0.0
        shapes, blocks = calibration.shapes, range(calibration.blocks)
        rotations = self.products * sum(shapes[key(block, "q")][1] ** 2 for block in blocks)
        return rotations / sum(math.prod(shape) for shape in shapes.values())


@dataclass(frozen=True)
class RotatedTEAL(Rotated, TEAL):
    """|x_i| ≥ t after a rotation that gives k and gate orthogonal columns; o and down keep their own inputs."""

    name: str = "teal_rotated"

    needs = frozenset()  # what activations look like in other bases is measured there

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        # At 0 nothing is dropped in any basis.
        bases = orthogonal_column_bases(calibration.model, ROTATED_FOR) if sparsity > 0.0 else {}
        with rotated(calibration.model, bases):
            inside = replace(calibration) if bases else calibration
            with cost.stage("calibration"):
                inside.prepare(super().needs)
            plan = super()._plan(inside, sparsity + self.rotation_share(calibration, sparsity), cost)
        return replace(plan, rotations=bases)


@dataclass(frozen=True)
class RotatedWINA(RotatedTEAL):
    """The k highest scores of each token: |x_i|·c_i on k and gate, whose columns are orthogonal, else |x_i|."""

    name: str = "wina_rotated"
    mask: MaskRule = field(default_factory=TopK)
    greedy_step: float = QUICK.wina_greedy_step

    def _alpha(self, projection: str) -> float:
        return 1.0 if projection in ROTATED_FOR.values() else 0.0

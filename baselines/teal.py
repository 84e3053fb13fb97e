"""TEAL (arXiv 2408.14690): one threshold on |x| for each projection, greedy inside the blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..method.base import Method
from ..method.calibration import Calibration
from ..method.plan import SparsityPlan
from ..method.projections import split_key
from ..method.provenance import SearchCost
from ..method.rules import MaskRule, RuleBuilder, StaticThreshold
from ..method.search.block_error import BlockError
from ..method.search.blocks import uniform_inside_blocks
from ..method.search.budget import QUICK
from ..method.search.greedy import GreedySettings, allocate_greedily


@dataclass(frozen=True)
class TEAL(Method):
    """|x_i| ≥ t, every block at the same sparsity.

    The threshold is the quantile of |x|; the published code takes it from the upper tail of x alone, which is
    right for symmetric activations only.
    """

    name: str = "teal"
    mask: MaskRule = field(default_factory=StaticThreshold)
    """How scores become a mask."""
    greedy: bool = True
    """Greedy allocation inside each block; without it every projection has the same sparsity."""
    greedy_step: float = QUICK.greedy_step
    """Parameters that one step removes, relative to q."""
    block_tokens: int = QUICK.block_tokens
    """Calibration tokens for block-output errors."""
    batch_tokens: int = QUICK.batch_tokens
    """Tokens a forward pass."""

    def _alpha(self, projection: str) -> float:
        """Exponent of the column norms in a projection's score."""
        return 0.0

    @property
    def greedy_settings(self) -> GreedySettings:
        """Settings of the greedy allocation inside blocks."""
        error = BlockError("norm", "late")
        return GreedySettings(self.greedy_step, self.block_tokens, self.batch_tokens, error)

    def rule_builder(self, calibration: Calibration) -> RuleBuilder:
        """The rules that the allocation is made with, and the plan."""
        alphas = {name: self._alpha(split_key(name)[1]) for name in calibration.shapes}
        return RuleBuilder(calibration, self.mask, alphas)

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        builder, blocks = self.rule_builder(calibration), [sparsity] * calibration.blocks
        sparsities = uniform_inside_blocks(blocks)
        if self.greedy:
            with cost.stage("greedy"):
                sparsities = allocate_greedily(calibration, builder, blocks, self.greedy_settings, cost)
        with cost.stage("thresholds"):
            return builder.plan(sparsities, block_sparsities=blocks)

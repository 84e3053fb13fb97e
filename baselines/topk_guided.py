"""TopK-Guided (arXiv 2610.01763), as far as published: thresholds, and bounds on each token's k.

Its abstract was read: per token the sparsity may move inside bounds around the target, blocks get theirs by
sensitivity, and the score is WINA's, |x|·c. The formulas were not readable: bounds are a spread around the
target, and a block's sensitivity is its own curve of the output's divergence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..kernels.plan.mechanism import Mechanism
from ..kernels.plan.projection_rule import ProjectionRule
from ..method.base import Method
from ..method.calibration import Calibration
from ..method.errors import UserError
from ..method.plan import SparsityPlan
from ..method.provenance import SearchCost
from ..method.rules import RuleBuilder, StaticThreshold
from ..method.search.blocks import (
    BlockAllocator,
    BlockCurves,
    BlockSearch,
    BlockSearchSettings,
    UniformBlocks,
    uniform_inside_blocks,
)
from ..method.search.budget import QUICK


@dataclass(frozen=True)
class TopKGuided(Method):
    """Channels with |x_i|·c_i ≥ t, but of each token at least and at most so many of the highest scores."""

    name: str = "topk_guided"
    spread: float = 0.1
    """How far a token's sparsity may lie from the projection's; it is not published where this was read."""
    allocator: BlockAllocator | UniformBlocks = field(default_factory=BlockCurves)
    """Finds the blocks' sparsities; how theirs does was not readable."""
    divergence_tokens: int = QUICK.divergence_tokens
    """Calibration tokens on which the divergence is measured."""
    batch_tokens: int = QUICK.batch_tokens
    """Tokens a forward pass."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.spread <= 1.0:
            raise UserError(f"method.spread must be from 0 to 1, not {self.spread}; try 0.1")

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """Bounds on k."""
        return frozenset({Mechanism.BOUNDED})

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 1.0))
        blocks = [sparsity] * calibration.blocks
        if sparsity and not isinstance(self.allocator, UniformBlocks):
            settings = BlockSearchSettings(self.allocator, self.divergence_tokens, self.batch_tokens)
            with cost.stage("coarse"):
                blocks, _ = BlockSearch(calibration, builder, sparsity, settings, cost).run(self.seed)
        sparsities = uniform_inside_blocks(blocks)
        with cost.stage("thresholds"):
            plan = builder.plan(sparsities, block_sparsities=blocks)
        bounded = {name: self._bounded(rule, sparsities[name]) for name, rule in plan.rules.items()}
        return replace(plan, rules=bounded) if sparsity else plan

    def _bounded(self, rule: ProjectionRule, sparsity: float) -> ProjectionRule:
        channels = len(rule.thresholds)
        shares = (1.0 - sparsity - self.spread, 1.0 - sparsity + self.spread)
        fewest, most = (int(channels * min(1.0, max(0.0, share)) + 1e-9) for share in shares)
        return replace(rule, bounds=(fewest, most))

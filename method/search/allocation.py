"""Allocation over blocks: uniform, or evolutionary on the divergence of the model's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration import Calibration
from ..errors import UserError
from ..projections import PROJECTIONS, decoder_blocks, key
from ..provenance import SearchCost
from ..rules import RuleBuilder
from .allocators import BlockAllocator, reach
from .divergence import OutputDivergence


def uniform_over_blocks(calibration: Calibration, sparsity: float) -> list[float]:
    """The same sparsity for every block."""
    return [sparsity] * len(decoder_blocks(calibration.model))


def uniform_inside_blocks(block_sparsities: list[float]) -> dict[str, float]:
    """Every projection of a block at the block's sparsity; by key."""
    return {key(block, name): s for block, s in enumerate(block_sparsities) for name in PROJECTIONS}


@dataclass(frozen=True)
class BlockSearchSettings:
    """How the allocation over blocks is searched."""

    allocator: BlockAllocator
    tokens: int
    """Calibration tokens on which the divergence is measured."""
    batch_tokens: int
    """Tokens a pass through a block; offspring share passes up to this many."""


class BlockSearch:
    """Search of block sparsities of a fixed mean that keep predictions closest to the dense model's.

    While it searches, every projection of a block is at the block's sparsity.
    """

    def __init__(
        self,
        calibration: Calibration,
        builder: RuleBuilder,
        sparsity: float,
        settings: BlockSearchSettings,
        cost: SearchCost,
    ) -> None:
        """Make the rules of every sparsity that can be reached, so that a candidate's are looked up.

        Raises UserError when the mean lies outside the bounds of a block's sparsity.
        """
        allocator = settings.allocator
        if not allocator.minimum <= sparsity <= allocator.maximum:
            raise UserError(
                f"sparsity {sparsity} lies outside the bounds of a block's sparsity, {allocator.minimum} to "
                f"{allocator.maximum}; move allocation.minimum or allocation.maximum"
            )
        self._allocator, self._sparsity, self._cost = allocator, sparsity, cost
        self._blocks = len(decoder_blocks(calibration.model))
        self._divergence = OutputDivergence(calibration, settings.tokens, settings.batch_tokens)
        self._lowest, highest = reach(allocator, sparsity)
        steps = torch.arange(self._lowest, highest + 1, dtype=torch.float64)
        reachable = sparsity + allocator.step * steps
        self._tables = {name: builder.candidates(name, reachable) for name in calibration.shapes}

    def fitness(self, block_sparsities: Tensor) -> Tensor:
        """Divergence in nats of candidates (candidates, blocks) float64; (candidates,)."""
        self._cost.count("coarse", len(block_sparsities))
        steps = ((block_sparsities - self._sparsity) / self._allocator.step).round().long()
        return self._divergence(self._tables, steps - self._lowest)

    def run(self, seed: int) -> tuple[list[float], list[float]]:
        """The sparsities found, and the best divergence in nats of each generation."""
        return self._allocator.run(self._blocks, self._sparsity, seed, self.fitness)

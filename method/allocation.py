"""Allocation over blocks: uniform, or evolutionary on the divergence of the model's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .calibration import Calibration
from .divergence import OutputDivergence
from .errors import UserError
from .evolutionary import EvolutionarySearch
from .projections import PROJECTIONS, decoder_blocks, key
from .rules import RuleBuilder
from .stages import SearchCost


def uniform_over_blocks(calibration: Calibration, sparsity: float) -> list[float]:
    """The same sparsity for every block."""
    return [sparsity] * len(decoder_blocks(calibration.model))


def uniform_inside_blocks(block_sparsities: list[float]) -> dict[str, float]:
    """Every projection of a block at the block's sparsity; by key."""
    return {key(block, name): s for block, s in enumerate(block_sparsities) for name in PROJECTIONS}


@dataclass(frozen=True)
class BlockSearchSettings:
    """How the allocation over blocks is searched."""

    evolution: EvolutionarySearch
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
        evolution = settings.evolution
        if not evolution.minimum <= sparsity <= evolution.maximum:
            raise UserError(
                f"sparsity {sparsity} lies outside the bounds of a block's sparsity, {evolution.minimum} to "
                f"{evolution.maximum}; move method.evolution.minimum or method.evolution.maximum"
            )
        self._evolution, self._sparsity, self._cost = evolution, sparsity, cost
        self._blocks = len(decoder_blocks(calibration.model))
        self._divergence = OutputDivergence(calibration, settings.tokens, settings.batch_tokens)
        self._steps_down = int((sparsity - evolution.minimum) / evolution.step + 1e-9)
        steps_up = int((evolution.maximum - sparsity) / evolution.step + 1e-9)
        steps = torch.arange(-self._steps_down, steps_up + 1, dtype=torch.float64)
        reachable = sparsity + evolution.step * steps
        self._tables = {name: builder.candidates(name, reachable) for name in calibration.shapes}

    def fitness(self, block_sparsities: Tensor) -> Tensor:
        """Divergence in nats of candidates (candidates, blocks) float64; (candidates,)."""
        self._cost.count("coarse", len(block_sparsities))
        steps = ((block_sparsities - self._sparsity) / self._evolution.step).round().long()
        return self._divergence(self._tables, steps + self._steps_down)

    def run(self, seed: int) -> tuple[list[float], list[float]]:
        """The sparsities found, and the best divergence in nats of each generation."""
        return self._evolution.run(self._blocks, self._sparsity, seed, self.fitness)

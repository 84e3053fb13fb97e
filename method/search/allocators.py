"""Allocations over blocks besides the evolutionary one: uniform, greedy, and from each block's own curve.

All share the interface of `EvolutionarySearch`: sparsities in whole multiples of `step` away from the target,
within bounds, their mean the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Fitness = Callable[[Tensor], Tensor]
"""Divergence (candidates,) of block sparsities (candidates, blocks) float64; smaller is better."""
Found = tuple[list[float], list[float]]
"""Block sparsities, and the best divergence in nats after each move."""


class BlockAllocator(Protocol):
    """Interface of what finds sparsities of blocks under a fixed mean."""

    name: str
    """Name in tables and records."""
    step: float
    minimum: float
    maximum: float

    def run(self, blocks: int, target: float, seed: int, fitness: Fitness) -> Found:
        """Block sparsities with mean `target`."""


@dataclass(frozen=True)
class UniformBlocks:
    """Every block at the target: nothing is evaluated."""

    name: str = "uniform"
    step: float = 1.0
    minimum: float = 0.0
    maximum: float = 1.0

    def run(self, blocks: int, target: float, seed: int, fitness: Fitness) -> Found:
        """See `BlockAllocator`."""
        return [target] * blocks, []


@dataclass(frozen=True)
class GreedyBlocks:
    """Greedy steps from the lowest sparsity, each where the divergence grows least (TEAL's rule)."""

    step: float
    minimum: float
    maximum: float
    name: str = "greedy"

    def run(self, blocks: int, target: float, seed: int, fitness: Fitness) -> Found:
        """See `BlockAllocator`."""
        lowest, highest = reach(self, target)
        steps, history = torch.full((blocks,), lowest), []
        raised = torch.eye(blocks, dtype=torch.long)
        while steps.sum() < 0:
            proposals = steps + raised[steps < highest]
            values = fitness(target + self.step * proposals.double())
            history.append(float(values.min()))
            steps = proposals[int(values.argmin())]
        return (target + self.step * steps.double()).tolist(), history


@dataclass(frozen=True)
class BlockCurves:
    """The least sum of the blocks' own divergence curves, found exactly by dynamic programming.

    A block's curve is the divergence with that block at each sparsity and all others at the target.
    """

    step: float
    minimum: float
    maximum: float
    name: str = "curves"

    def run(self, blocks: int, target: float, seed: int, fitness: Fitness) -> Found:
        """See `BlockAllocator`."""
        lowest, highest = reach(self, target)
        offsets = torch.arange(lowest, highest + 1)
        candidates = torch.zeros(blocks, len(offsets), blocks)
        candidates[torch.arange(blocks), :, torch.arange(blocks)] = offsets.float()
        sparsities = target + self.step * candidates.double().flatten(0, 1)
        curves = fitness(sparsities).view(blocks, len(offsets)).tolist()
        best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
        for curve in curves:
            reached: dict[int, tuple[float, list[int]]] = {}
            for total, (divergence, steps) in best.items():
                for offset, value in zip(offsets.tolist(), curve, strict=True):
                    if total + offset not in reached or divergence + value < reached[total + offset][0]:
                        reached[total + offset] = (divergence + value, [*steps, offset])
            best = reached
        found = target + self.step * torch.tensor(best[0][1], dtype=torch.float64)
        return found.tolist(), fitness(found[None]).tolist()


def reach(allocator: BlockAllocator, target: float) -> tuple[int, int]:
    """How many steps below and above the target a block's sparsity can be; the first is at most 0."""
    # The additions keep whole steps whole whatever the rounding of the quotient is.
    down = int((target - allocator.minimum) / allocator.step + 1e-9)
    return -down, int((allocator.maximum - target) / allocator.step + 1e-9)

"""Allocation of sparsity over blocks: uniform, evolutionary, greedy, or from each block's own curve.

All that search move in whole multiples of a step away from the target, within bounds, with the target as their
mean; what they compare by is the divergence of the model's output.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from ..calibration import Calibration
from ..errors import UserError
from ..projections import PROJECTIONS, key
from ..provenance import SearchCost
from ..rules import RuleBuilder
from ..settings import Settings
from .block_error import Positions
from .budget import QUICK
from .divergence import OutputDivergence

Fitness = Callable[[Tensor], Tensor]
"""Divergence (candidates,) of block sparsities (candidates, blocks) float64; smaller is better."""
Found = tuple[list[float], list[float]]
"""Block sparsities, and the best divergence in nats after each move."""


@runtime_checkable
class BlockAllocator(Protocol):
    """Interface of what finds sparsities of blocks under a fixed mean."""

    name: str
    """Name in tables and records."""
    step: float
    minimum: float
    maximum: float

    def run(self, blocks: int, target: float, seed: int, fitness: Fitness) -> Found:
        """Block sparsities with mean `target`."""


def reach(allocator: BlockAllocator, target: float) -> tuple[int, int]:
    """How many steps below and above the target a block's sparsity can be; the first is at most 0."""
    # The additions keep whole steps whole whatever the rounding of the quotient is.
    down = int((target - allocator.minimum) / allocator.step + 1e-9)
    return -down, int((allocator.maximum - target) / allocator.step + 1e-9)


@dataclass(frozen=True)
class UniformBlocks(Settings):
    """Every block at the target: there is nothing to search."""

    name: str = "uniform"


@dataclass(frozen=True)
class EvolutionarySearch(Settings):
    """Mutation-only search with one parent (WiSparse, arXiv 2602.14452, sec. 4.2).

    Sparsities move in whole multiples of `step` away from the target, and the multiples sum to zero, so the
    mean is the target exactly at every moment.
    """

    generations: int = QUICK.generations
    offspring: int = QUICK.offspring
    step: float = QUICK.evolution_step
    """Sparsity that one mutation moves."""
    mutated_share: float = 0.1
    """Share of the blocks raised by a mutation, rounded down, at least one block (not specified below ten)."""
    minimum: float = 0.0
    maximum: float = 0.95
    """Bounds of a block's sparsity; the paper names none, but at 1 a block is switched off."""
    elitism: bool = False
    """Whether the parent competes with its offspring; the paper's does not."""
    name: str = "evolutionary"
    """Name in tables and records."""

    def mutate(self, parent: Sequence[int], target: float, generator: random.Random) -> list[int]:
        """One offspring of `parent`, both in steps away from the target by block, with sum zero.

        Random blocks, drawn with replacement, go up one step; then random blocks go down until the mean is
        the target again. A block at a bound is not drawn.
        """
        child = list(parent)
        for _ in range(max(1, int(self.mutated_share * len(child)))):
            below_maximum = [b for b, steps in enumerate(child) if self._fits(target, steps + 1)]
            if below_maximum:
                child[generator.choice(below_maximum)] += 1
        while sum(child) > 0:
            child[generator.choice([b for b, s in enumerate(child) if self._fits(target, s - 1)])] -= 1
        return child

    def _fits(self, target: float, steps: int) -> bool:
        return self.minimum - 1e-9 <= target + steps * self.step <= self.maximum + 1e-9

    def run(self, blocks: int, target: float, seed: int, fitness: Fitness) -> Found:
        """See `BlockAllocator`: the last parent's sparsities and the best fitness of every generation.

        Fitness is asked once for each candidate, as offspring repeat themselves.
        """
        generator = random.Random(seed)
        parent, history = [0] * blocks, []
        known: dict[tuple[int, ...], float] = {}
        parent_fitness = float("inf")
        for _ in tqdm(range(self.generations), desc="evolutionary search", unit="generation", leave=False):
            children = [self.mutate(parent, target, generator) for _ in range(self.offspring)]
            new = list(dict.fromkeys(tuple(child) for child in children if tuple(child) not in known))
            if new:
                values = fitness(target + self.step * torch.tensor(new, dtype=torch.float64))
                known |= zip(new, values.tolist(), strict=True)
            values = [known[tuple(child)] for child in children]
            best = min(range(len(children)), key=values.__getitem__)
            history.append(values[best])
            if not self.elitism or history[-1] <= parent_fitness:
                parent, parent_fitness = children[best], history[-1]
        return [target + self.step * steps for steps in parent], history


@dataclass(frozen=True)
class GreedyBlocks(Settings):
    """Greedy steps from the lowest sparsity, each where the divergence grows least (TEAL's rule)."""

    step: float = 0.025
    minimum: float = 0.0
    maximum: float = 0.95
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
class BlockCurves(Settings):
    """The least sum of the blocks' own divergence curves, found exactly by dynamic programming.

    A block's curve is the divergence with that block at each sparsity and all others at the target.
    """

    step: float = 0.05
    minimum: float = 0.0
    maximum: float = 0.95
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


@dataclass(frozen=True)
class BlockSearchSettings(Settings):
    """How the allocation over blocks is searched."""

    allocator: BlockAllocator
    tokens: int
    """Calibration tokens on which the divergence is measured."""
    batch_tokens: int
    """Tokens a pass through a block; offspring share passes up to this many."""
    positions: Positions = "all"
    """Tokens of a sequence whose predictions count."""


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
                f"{allocator.maximum}; move allocation.minimum or allocation.maximum (of method.allocator "
                "in a method with one of its own)"
            )
        self._allocator, self._sparsity, self._cost = allocator, sparsity, cost
        self._blocks = calibration.blocks
        self._divergence = OutputDivergence(
            calibration, settings.tokens, settings.batch_tokens, settings.positions
        )
        self._lowest, highest = reach(allocator, sparsity)
        steps = torch.arange(self._lowest, highest + 1, dtype=torch.float64)
        reachable = sparsity + allocator.step * steps
        self._tables = {name: builder.candidates(name, reachable) for name in calibration.shapes}

    def fitness(self, block_sparsities: Tensor) -> Tensor:
        """Divergence in nats of candidates (candidates, blocks) float64; (candidates,)."""
        steps = ((block_sparsities - self._sparsity) / self._allocator.step).round().long()

        def measured() -> list[float]:
            self._cost.count("coarse", len(steps))
            return self._divergence(self._tables, steps - self._lowest).tolist()

        # All candidates are one step: what is found of one may depend on its company in the last bit.
        return torch.tensor(self._cost.step("coarse", str(steps.tolist()), measured), dtype=torch.float64)

    def run(self, seed: int) -> tuple[list[float], list[float]]:
        """The sparsities found, and the best divergence in nats of each generation."""
        return self._allocator.run(self._blocks, self._sparsity, seed, self.fitness)


def uniform_inside_blocks(block_sparsities: list[float]) -> dict[str, float]:
    """Every projection of a block at the block's sparsity; by key."""
    return {key(block, name): s for block, s in enumerate(block_sparsities) for name in PROJECTIONS}

"""Evolutionary allocation over blocks under a fixed mean sparsity."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class EvolutionarySearch:
    """Mutation-only search with one parent (WiSparse, arXiv 2602.14452, sec. 4.2).

    Sparsities move in whole multiples of `step` away from the target, and the multiples sum to zero, so the
    mean is the target exactly at every moment.
    """

    generations: int = 400
    offspring: int = 64
    step: float = 0.005
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

    def run(
        self, blocks: int, target: float, seed: int, fitness: Callable[[Tensor], Tensor]
    ) -> tuple[list[float], list[float]]:
        """Search block sparsities with mean `target`.

        fitness: sparsities (candidates, blocks) float64 → (candidates,), smaller is better; asked once for each
        candidate, as offspring repeat themselves. Returns the last parent's sparsities and the best fitness
        of every generation.
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

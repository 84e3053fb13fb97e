"""Bayesian search of block sparsities with tree-structured Parzen estimators under a fixed mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from ..settings import Settings
from .blocks import Fitness, Found, reach
from .budget import QUICK


@dataclass(frozen=True)
class ParzenSearch(Settings):
    """Proposals likely among the good trials and unlikely among the others (TPE; Bergstra et al., 2011).

    A block's sparsity is a whole number of steps away from the target, each block has an estimator of its own,
    and proposals are moved by single steps of random blocks until their mean is the target.
    """

    rounds: int = QUICK.generations
    """Rounds after the first, which is drawn at random."""
    trials: int = QUICK.offspring
    """Trials of a round."""
    step: float = QUICK.evolution_step
    """Sparsity of one step."""
    spread: float = 0.05
    """Standard deviation of a block's sparsity in the first round."""
    good_share: float = 0.25
    """Share of the trials that count as good."""
    bandwidth: float = 0.02
    """Standard deviation of an estimator's kernels, as a sparsity."""
    draws: int = 4
    """Draws for each trial of a round, of which the most promising are tried."""
    minimum: float = 0.0
    maximum: float = 0.95
    """Bounds of a block's sparsity."""
    name: str = "parzen"
    """Name in tables and records."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.spread:
            raise UserError("allocator.spread=0 draws every trial of the first round alike; try 0.05")

    def run(self, blocks: int, target: float, seed: int, fitness: Fitness) -> Found:
        """See `BlockAllocator`: the best trial and the best fitness by round; uniform is the first trial."""
        generator = torch.Generator().manual_seed(seed)
        bounds = reach(self, target)
        first = torch.randn(max(0, self.trials - 1), blocks, generator=generator) * (self.spread / self.step)
        wanted = torch.cat([torch.zeros(1, blocks, dtype=torch.long), _balanced(first, bounds, generator)])
        tried, values, history = wanted[:0], torch.empty(0, dtype=torch.float64), []
        for _ in tqdm(range(self.rounds + 1), desc="Parzen search", unit="round", leave=False):
            known = set(map(tuple, tried.tolist()))
            new = [trial for trial in dict.fromkeys(map(tuple, wanted.tolist())) if trial not in known]
            if new:
                trials = torch.tensor(new)
                tried = torch.cat([tried, trials])
                values = torch.cat([values, fitness(target + self.step * trials.double())])
            history.append(float(values.min()))
            wanted = self._proposals(tried[values.argsort(stable=True)], bounds, generator)
        best = tried[int(values.argmin())]
        return (target + self.step * best.double()).tolist(), history

    def _proposals(self, ordered: Tensor, bounds: tuple[int, int], generator: torch.Generator) -> Tensor:
        """The most promising of what the good trials' estimators draw; trials come from the best on."""
        good = max(1, round(self.good_share * len(ordered)))
        likely, unlikely = (self._densities(part, bounds) for part in (ordered[:good], ordered[good:]))
        drawn = likely.multinomial(self.draws * self.trials, replacement=True, generator=generator).T
        balanced = _balanced((drawn + bounds[0]).float(), bounds, generator)
        place = (balanced - bounds[0]).T
        promise = (likely.log() - unlikely.log()).gather(1, place).sum(0)
        return balanced[promise.argsort(descending=True, stable=True)[: self.trials]]

    def _densities(self, trials: Tensor, bounds: tuple[int, int]) -> Tensor:
        """Probability of every number of steps (blocks, steps): a kernel for each trial, and a uniform one."""
        grid = torch.arange(bounds[0], bounds[1] + 1)
        distance = (grid - trials[..., None]).double() * (self.step / self.bandwidth)
        kernels = (-0.5 * distance.square()).exp()
        kernels = kernels / kernels.sum(-1, keepdim=True)
        return (kernels.sum(0) + 1.0 / len(grid)) / (len(trials) + 1)


def _balanced(wanted: Tensor, bounds: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Whole steps (candidates, blocks) within the bounds, near what is wanted, with the sum zero."""
    steps = wanted.round().long().clamp(*bounds)
    while (unbalanced := steps.sum(1) != 0).any():
        rows = steps[unbalanced]
        sign = -rows.sum(1, keepdim=True).sign()
        movable = ((rows + sign >= bounds[0]) & (rows + sign <= bounds[1])).double()
        chosen = movable.multinomial(1, generator=generator)
        steps[unbalanced] = rows.scatter_add(1, chosen, sign)
    return steps

"""Allocation over blocks: uniform, or evolutionary on the divergence of the model's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .calibration import Calibration
from .divergence import OutputDivergence
from .errors import UserError
from .evolutionary import EvolutionarySearch
from .projections import PROJECTIONS, decoder_blocks, key, split_key
from .rules import RuleBuilder, select
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
    """Tokens a forward pass; offspring share passes up to this many."""


def evolve_block_sparsities(
    calibration: Calibration,
    builder: RuleBuilder,
    sparsity: float,
    settings: BlockSearchSettings,
    seed: int,
    cost: SearchCost,
) -> tuple[list[float], list[float]]:
    """Block sparsities with mean `sparsity` that keep the model's predictions closest to the dense model's.

    While it searches, every projection of a block is at the block's sparsity. Returns the sparsities and the
    best divergence in nats of each generation.
    """
    evolution = settings.evolution
    if not evolution.minimum <= sparsity <= evolution.maximum:
        raise UserError(
            f"sparsity {sparsity} lies outside the bounds of a block's sparsity, {evolution.minimum} to "
            f"{evolution.maximum}; move method.evolution.minimum or method.evolution.maximum"
        )
    divergence = OutputDivergence(calibration, settings.tokens, settings.batch_tokens)
    # Every sparsity that the search can reach, so that a candidate's rules are looked up, not made.
    steps_down = int((sparsity - evolution.minimum) / evolution.step + 1e-9)
    steps_up = int((evolution.maximum - sparsity) / evolution.step + 1e-9)
    reachable = sparsity + evolution.step * torch.arange(-steps_down, steps_up + 1, dtype=torch.float64)
    tables = {name: builder.candidates(name, reachable) for name in calibration.shapes}

    def fitness(block_sparsities: Tensor) -> Tensor:
        cost.count("coarse", len(block_sparsities))
        positions = ((block_sparsities - sparsity) / evolution.step).round().long() + steps_down
        positions = positions.to(calibration.device)
        rules = {name: select(table, positions[:, split_key(name)[0]]) for name, table in tables.items()}
        return divergence(rules, len(block_sparsities))

    return evolution.run(len(decoder_blocks(calibration.model)), sparsity, seed, fitness)

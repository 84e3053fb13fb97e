"""Greedy allocation inside a block: from all dense, repeatedly sparsify where it costs least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from .block_probe import BlockError, BlockProbe, walk_blocks
from .calibration import Calibration
from .projections import PROJECTIONS, key
from .rules import RuleBuilder, stack
from .stages import SearchCost

SMALLEST_STEP = 1e-9
"""Budgets closer than this are met."""


@dataclass(frozen=True)
class GreedySettings:
    """How a greedy allocation is run."""

    step: float
    """Parameters taken by one step, relative to the size of q."""
    tokens: int
    """Calibration tokens on which block errors are measured."""
    batch_tokens: int
    """Tokens a forward pass."""
    error: BlockError


def greedy_allocation(
    probe: BlockProbe,
    builder: RuleBuilder,
    target: float,
    step: float,
    error: BlockError,
    cost: SearchCost,
) -> dict[str, float]:
    """Projection sparsities of one block whose mean, weighted by parameters, is `target`.

    Each step takes the same number of parameters, `step` times those of q, from the projection whose further
    sparsification gives the least block-output error; the last step is shortened to meet the target
    (TEAL, arXiv 2408.14690, algorithm 1). Returns sparsities in [0, 1] by projection.
    """
    shares = probe.shares
    sparsities = dict.fromkeys(PROJECTIONS, 0.0)
    remaining = target
    while remaining > SMALLEST_STEP:
        taken = min(step * shares["q"], remaining)
        proposals = {
            name: min(1.0, sparsities[name] + taken / shares[name])
            for name in PROJECTIONS
            if sparsities[name] < 1.0
        }
        rules = {}
        for name in PROJECTIONS:
            name_key = key(probe.index, name)
            now = builder.one(name_key, sparsities[name])
            further = builder.one(name_key, proposals.get(name, sparsities[name]))
            rules[name] = stack([further if candidate == name else now for candidate in proposals])
        errors = probe.errors(rules, len(proposals), error)
        cost.count("greedy", len(proposals))
        chosen = list(proposals)[int(torch.argmin(errors))]
        remaining -= (proposals[chosen] - sparsities[chosen]) * shares[chosen]
        sparsities[chosen] = proposals[chosen]
    return sparsities


def allocate_greedily(
    calibration: Calibration,
    builder: RuleBuilder,
    block_sparsities: Sequence[float],
    settings: GreedySettings,
    cost: SearchCost,
) -> dict[str, float]:
    """Greedy allocation in every block, each at its own target and on dense inputs; sparsities by key."""
    found: dict[str, float] = {}
    walk = walk_blocks(calibration, settings.tokens, settings.batch_tokens)
    for probe in tqdm(walk, desc="greedy", total=len(block_sparsities), unit="block", leave=False):
        inside = greedy_allocation(
            probe, builder, block_sparsities[probe.index], settings.step, settings.error, cost
        )
        found |= {key(probe.index, name): sparsity for name, sparsity in inside.items()}
    return found

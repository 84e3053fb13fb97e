"""Greedy allocation inside a block: from all dense, repeatedly sparsify where it costs least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm

from ..calibration import Calibration
from ..projections import PROJECTIONS, key
from ..provenance import SearchCost
from ..rules import RuleBuilder
from ..running.candidates import CandidateRules
from ..settings import Settings
from .block_error import BlockError
from .block_probe import BlockProbe, walk_blocks

StepUnit = Literal["parameters", "sparsity"]
BlockInputs = Literal["dense", "sparse"]
SMALLEST_STEP = 1e-9
"""Budgets closer than this are met."""


@dataclass(frozen=True)
class GreedySettings(Settings):
    """How a greedy allocation is run."""

    step: float
    """Size of one step: of parameters relative to the size of q, or of the projection's sparsity."""
    tokens: int
    """Calibration tokens on which block errors are measured."""
    batch_tokens: int
    """Tokens a forward pass."""
    error: BlockError
    unit: StepUnit = "parameters"
    """What every step has the same of: parameters that it takes (TEAL), or sparsity that it adds."""
    inputs: BlockInputs = "dense"
    """What enters a block meanwhile: dense hidden states, or what the blocks before make of them sparse."""

    def taken(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Share of the block's parameters that one step takes from each projection, by what it has of them."""
        if self.unit == "sparsity":
            return {name: self.step * share for name, share in shares.items()}
        return dict.fromkeys(shares, self.step * shares["q"])


def greedy_allocation(
    probe: BlockProbe, builder: RuleBuilder, target: float, settings: GreedySettings, cost: SearchCost
) -> dict[str, float]:
    """Projection sparsities of one block whose mean, weighted by parameters, is `target`.

    Each step goes to the projection whose further sparsification gives the least block-output error; steps are
    shortened where they would miss the target (TEAL, arXiv 2408.14690, algorithm 1). Returns sparsities in
    [0, 1] by projection.
    """
    if target <= SMALLEST_STEP:
        return dict.fromkeys(PROJECTIONS, 0.0)
    shares, remaining = probe.shares, target
    taken = settings.taken(shares)
    levels = {name: _levels(taken[name] / share) for name, share in shares.items()}
    tables = _tables(builder, probe, levels)
    at = dict.fromkeys(PROJECTIONS, 0)
    while remaining > SMALLEST_STEP:
        if remaining < max(taken.values()):
            taken = {name: min(share, remaining) for name, share in taken.items()}
            now = {name: levels[name][at[name]] for name in PROJECTIONS}
            levels = {name: [s, min(1.0, s + taken[name] / shares[name])] for name, s in now.items()}
            tables = _tables(builder, probe, levels)
            at = dict.fromkeys(PROJECTIONS, 0)
        open_ones = [name for name in PROJECTIONS if levels[name][at[name]] < 1.0]
        rules = {
            name: tables[name].select(torch.tensor([at[name] + (name == raised) for raised in open_ones]))
            for name in PROJECTIONS
        }
        errors = probe.errors(rules, len(open_ones), settings.error)
        cost.count("greedy", len(open_ones))
        chosen = open_ones[int(torch.argmin(errors))]
        before, after = levels[chosen][at[chosen] : at[chosen] + 2]
        remaining -= (after - before) * shares[chosen]
        at[chosen] += 1
    return {name: levels[name][at[name]] for name in PROJECTIONS}


def _levels(rise: float) -> list[float]:
    """Every sparsity that steps of one size can reach: 0, rise, 2·rise, … and 1."""
    found = [0.0]
    while found[-1] < 1.0:
        found.append(min(1.0, found[-1] + rise))
    return found


def _tables(
    builder: RuleBuilder, probe: BlockProbe, levels: Mapping[str, Sequence[float]]
) -> dict[str, CandidateRules]:
    """The rules of every level of each projection, made at once: one by one they cost more than the errors."""
    return {
        name: builder.candidates(key(probe.index, name), torch.tensor(found)) for name, found in levels.items()
    }


def allocate_greedily(
    calibration: Calibration,
    builder: RuleBuilder,
    block_sparsities: Sequence[float],
    settings: GreedySettings,
    cost: SearchCost,
) -> dict[str, float]:
    """Greedy allocation in every block, each at its own target; sparsities by key."""
    found: dict[str, float] = {}
    walk = walk_blocks(calibration, settings.tokens, settings.batch_tokens)
    for probe in tqdm(walk, desc="greedy", total=len(block_sparsities), unit="block", leave=False):
        target = block_sparsities[probe.index]
        inside = cost.step(
            "greedy",
            f"block {probe.index}: {target!r}",
            lambda probe=probe, target=target: greedy_allocation(probe, builder, target, settings, cost),
        )
        if settings.inputs == "sparse":
            probe.settle({name: builder.one(key(probe.index, name), s) for name, s in inside.items()})
        found |= {key(probe.index, name): sparsity for name, sparsity in inside.items()}
    return found

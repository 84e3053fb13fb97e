"""Search of the score's exponent α, layer by layer, on the block's output error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..projections import PROJECTIONS, key
from ..provenance import SearchCost
from ..rules import RuleBuilder
from ..running.candidates import CandidateRules
from ..search.block_error import BlockError
from ..search.block_probe import BlockProbe


def search_alphas(
    probe: BlockProbe,
    builder: RuleBuilder,
    sparsities: Mapping[str, float],
    grid: Sequence[float],
    error: BlockError,
    others_sparse: bool,
    cost: SearchCost,
) -> dict[str, float]:
    """The α of each projection of a block that gives the least block-output error at its own sparsity.

    Projections are taken in the order of execution; thresholds are made anew for each α
    (WiSparse, arXiv 2602.14452, sec. 4.1). `others_sparse`: whether the other six are sparse meanwhile, with
    the α found or started with so far; the paper does not say. Returns α by projection.
    """
    alphas = {name: builder.alphas[key(probe.index, name)] for name in PROJECTIONS}
    candidates = torch.tensor(grid, device=probe.hidden.device)[:, None]

    def rules_of(name: str, alpha: float | torch.Tensor, count: int) -> CandidateRules:
        wanted = torch.full((count,), sparsities[name])
        return builder.candidates(key(probe.index, name), wanted, alpha)

    current = {name: rules_of(name, alphas[name], 1) for name in PROJECTIONS} if others_sparse else {}
    for name in PROJECTIONS:
        if not 0.0 < sparsities[name] < 1.0:
            continue  # every α drops the same channels
        found = rules_of(name, candidates, len(grid))
        errors = probe.errors(current | {name: found}, len(grid), error)
        cost.count("alpha", len(grid))
        best = errors.argmin()
        alphas[name] = grid[int(best)]
        if others_sparse:
            current[name] = found.select(best[None])
    return alphas

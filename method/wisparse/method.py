"""WiSparse (arXiv 2602.14452): weight-aware scores, evolutionary sparsity over blocks, greedy inside them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from ..base import Method
from ..calibration import Calibration
from ..plan import SparsityPlan
from ..projections import PROJECTIONS, key
from ..provenance import SearchCost
from ..rules import MaskRule, RuleBuilder, StaticThreshold
from ..search.block_probe import squared_error, walk_blocks
from ..search.blocks import (
    BlockAllocator,
    BlockSearch,
    BlockSearchSettings,
    EvolutionarySearch,
    UniformBlocks,
    uniform_inside_blocks,
)
from ..search.budget import QUICK
from ..search.divergence import OutputDivergence
from ..search.greedy import GreedySettings, allocate_greedily
from .alpha_search import search_alphas


@dataclass(frozen=True)
class WiSparse(Method):
    """Scores |x|·c^α under static thresholds; sparsity over blocks, then inside them, then α by layer.

    Each stage can be left out: with `UniformBlocks` every block has the same sparsity, without `fine` every
    projection of a block, without `alpha_search` every layer has the exponent `alpha`.
    """

    name: str = "wisparse"
    fine: bool = True
    alpha_search: bool = True
    alpha: float = 1.0
    """Exponent while stages 1 and 2 search, and the start of stage 3; the paper does not say."""
    alpha_step: float = QUICK.alpha_step
    """Spacing of the grid of exponents, which begins at 0."""
    alpha_largest: float = 1.45
    others_sparse: bool = True
    """Whether the other projections of the block are sparse while one α is searched; the paper does not say."""
    allocator: BlockAllocator | UniformBlocks = field(default_factory=EvolutionarySearch)
    """Finds the blocks' sparsities; the paper's is the evolutionary search."""
    mask: MaskRule = field(default_factory=StaticThreshold)
    """How scores become a mask; the paper's is the static threshold."""
    norm_order: int = 2
    """Order of the column norms in the score; the paper's is 2."""
    greedy_step: float = QUICK.greedy_step
    """Parameters that one step of stage 2 removes, relative to q."""
    divergence_tokens: int = QUICK.divergence_tokens
    """Calibration tokens that stage 1 compares candidates on."""
    block_tokens: int = QUICK.block_tokens
    """Calibration tokens of stages 2 and 3."""
    batch_tokens: int = QUICK.batch_tokens
    """Tokens a forward pass."""
    seed: int = 0

    @property
    def alpha_grid(self) -> list[float]:
        """0, step, 2·step, … up to the largest."""
        count = int(self.alpha_largest / self.alpha_step + 1e-9) + 1
        return [round(i * self.alpha_step, 6) for i in range(count)]

    @property
    def block_search_settings(self) -> BlockSearchSettings:
        """Settings of stage 1, the search for sparsities of the blocks."""
        return BlockSearchSettings(self.allocator, self.divergence_tokens, self.batch_tokens)

    @property
    def greedy_settings(self) -> GreedySettings:
        """Settings of stage 2, the greedy allocation inside blocks."""
        return GreedySettings(self.greedy_step, self.block_tokens, self.batch_tokens, squared_error)

    def rule_builder(self, calibration: Calibration) -> RuleBuilder:
        """The rules that stages 1 and 2 search with."""
        alphas = dict.fromkeys(calibration.shapes, self.alpha)
        return RuleBuilder(calibration, self.mask, alphas, self.norm_order)

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        builder = self.rule_builder(calibration)
        searching = sparsity > 0.0  # a dense plan leaves nothing to search
        blocks, history = [sparsity] * calibration.blocks, []
        if searching and not isinstance(self.allocator, UniformBlocks):
            with cost.stage("coarse"):
                search = BlockSearch(calibration, builder, sparsity, self.block_search_settings, cost)
                blocks, history = search.run(self.seed)
        sparsities = uniform_inside_blocks(blocks)
        if self.fine and searching:
            with cost.stage("greedy"):
                sparsities = allocate_greedily(calibration, builder, blocks, self.greedy_settings, cost)
        if self.alpha_search and searching:
            with cost.stage("alpha"):
                alphas = self._search_alphas(calibration, builder, sparsities, cost)
                builder = replace(builder, alphas=alphas)
        with cost.stage("thresholds"):
            return builder.plan(sparsities, block_sparsities=blocks, divergence_by_generation=history)

    @torch.inference_mode()
    def _search_alphas(
        self, calibration: Calibration, builder: RuleBuilder, sparsities: dict[str, float], cost: SearchCost
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        walk = walk_blocks(calibration, self.block_tokens, self.batch_tokens)
        total = len(sparsities) // len(PROJECTIONS)
        for probe in tqdm(walk, desc="alpha search", total=total, unit="block", leave=False):
            inside = {name: sparsities[key(probe.index, name)] for name in PROJECTIONS}
            alphas = search_alphas(probe, builder, inside, self.alpha_grid, self.others_sparse, cost)
            found |= {key(probe.index, name): alpha for name, alpha in alphas.items()}
        return found


@dataclass(frozen=True)
class OneAlphaWiSparse(WiSparse):
    """One exponent for all layers: the one whose plan keeps the predictions closest to the dense model's."""

    name: str = "wisparse_one_alpha"

    @torch.inference_mode()
    def _search_alphas(
        self, calibration: Calibration, builder: RuleBuilder, sparsities: dict[str, float], cost: SearchCost
    ) -> dict[str, float]:
        grid = torch.tensor(self.alpha_grid, device=calibration.device)[:, None]
        tables = {
            name: builder.candidates(name, torch.full((len(grid),), sparsity), grid)
            for name, sparsity in sparsities.items()
        }
        divergence = OutputDivergence(calibration, self.divergence_tokens, self.batch_tokens)
        choices = torch.arange(len(grid))[:, None].expand(-1, len(sparsities) // len(PROJECTIONS))
        found = divergence(tables, choices)
        cost.count("alpha", len(grid))
        return dict.fromkeys(sparsities, self.alpha_grid[int(found.argmin())])

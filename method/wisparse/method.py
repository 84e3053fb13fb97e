"""WiSparse (arXiv 2602.14452): weight-aware scores, evolutionary sparsity over blocks, greedy inside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from ..base import Method
from ..calibration import Calibration
from ..errors import UserError
from ..plan import SparsityPlan
from ..projections import PROJECTIONS, key
from ..provenance import SearchCost
from ..rules import MaskRule, RuleBuilder, StaticThreshold
from ..search.block_error import BlockError, Positions
from ..search.block_probe import walk_blocks
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
from ..search.greedy import BlockInputs, GreedySettings, StepUnit, allocate_greedily
from .alpha_search import search_alphas

STAGES = ("coarse", "greedy", "alpha")


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
    order: Sequence[str] = STAGES
    """Order of the stages; the paper's is coarse, greedy, alpha."""
    greedy_step: float = QUICK.greedy_step
    """Size of one step of stage 2: see `greedy_unit`."""
    greedy_unit: StepUnit = "parameters"
    """parameters: every step takes as many; sparsity: every step adds as much. The paper does not say."""
    block_error: BlockError = field(default_factory=BlockError)
    """Error of a block's output in stages 2 and 3: the paper's ‖Y − Y'‖², over tokens that it does not name."""
    block_inputs: BlockInputs = "dense"
    """What enters a block in stages 2 and 3: dense states, or what the blocks before make of them sparse; the
    paper does not say."""
    divergence_positions: Positions = "all"
    """Tokens whose predictions count in stage 1; the paper does not say."""
    divergence_tokens: int = QUICK.divergence_tokens
    """Calibration tokens that stage 1 compares candidates on."""
    block_tokens: int = QUICK.block_tokens
    """Calibration tokens of stages 2 and 3."""
    batch_tokens: int = QUICK.batch_tokens
    """Tokens a forward pass."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.order) != sorted(STAGES) or self.order.index("coarse") > self.order.index("greedy"):
            raise UserError(
                f"method.order={list(self.order)} must name coarse, greedy and alpha once each, coarse before "
                "greedy: what the blocks get is what is shared out inside them"
            )

    @property
    def alpha_grid(self) -> list[float]:
        """0, step, 2·step, … up to the largest."""
        count = int(self.alpha_largest / self.alpha_step + 1e-9) + 1
        return [round(i * self.alpha_step, 6) for i in range(count)]

    @property
    def block_search_settings(self) -> BlockSearchSettings:
        """Settings of stage 1, the search for sparsities of the blocks."""
        return BlockSearchSettings(
            self.allocator, self.divergence_tokens, self.batch_tokens, self.divergence_positions
        )

    @property
    def greedy_settings(self) -> GreedySettings:
        """Settings of stage 2, the greedy allocation inside blocks."""
        return GreedySettings(
            self.greedy_step,
            self.block_tokens,
            self.batch_tokens,
            self.block_error,
            self.greedy_unit,
            self.block_inputs,
        )

    def rule_builder(self, calibration: Calibration) -> RuleBuilder:
        """The rules that stages 1 and 2 search with."""
        alphas = dict.fromkeys(calibration.shapes, self.alpha)
        return RuleBuilder(calibration, self.mask, alphas, self.norm_order)

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        builder = self.rule_builder(calibration)
        blocks, history = [sparsity] * calibration.blocks, []
        sparsities = uniform_inside_blocks(blocks)
        for stage in self._stages if sparsity > 0.0 else ():  # a dense plan leaves nothing to search
            with cost.stage(stage):
                if stage == "coarse":
                    search = BlockSearch(calibration, builder, sparsity, self.block_search_settings, cost)
                    blocks, history = search.run(self.seed)
                    sparsities = uniform_inside_blocks(blocks)
                elif stage == "greedy":
                    sparsities = allocate_greedily(calibration, builder, blocks, self.greedy_settings, cost)
                else:
                    alphas = self._search_alphas(calibration, builder, sparsities, cost)
                    builder = replace(builder, alphas=alphas)
        with cost.stage("thresholds"):
            return builder.plan(sparsities, block_sparsities=blocks, divergence_by_generation=history)

    @property
    def _stages(self) -> list[str]:
        """Stages that are not left out, in order."""
        taken = {
            "coarse": not isinstance(self.allocator, UniformBlocks),
            "greedy": self.fine,
            "alpha": self.alpha_search,
        }
        return [stage for stage in self.order if taken[stage]]

    @torch.inference_mode()
    def _search_alphas(
        self, calibration: Calibration, builder: RuleBuilder, sparsities: dict[str, float], cost: SearchCost
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        walk = walk_blocks(calibration, self.block_tokens, self.batch_tokens)
        total = len(sparsities) // len(PROJECTIONS)
        for probe in tqdm(walk, desc="alpha search", total=total, unit="block", leave=False):
            inside = {name: sparsities[key(probe.index, name)] for name in PROJECTIONS}
            alphas = cost.step(
                "alpha",
                f"block {probe.index}: {inside}",
                lambda probe=probe, inside=inside: search_alphas(
                    probe, builder, inside, self.alpha_grid, self.block_error, self.others_sparse, cost
                ),
            )
            keyed = {key(probe.index, name): alpha for name, alpha in alphas.items()}
            if self.block_inputs == "sparse":
                chosen = replace(builder, alphas={**builder.alphas, **keyed})
                probe.settle({name: chosen.one(key(probe.index, name), s) for name, s in inside.items()})
            found |= keyed
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
        divergence = OutputDivergence(
            calibration, self.divergence_tokens, self.batch_tokens, self.divergence_positions
        )
        choices = torch.arange(len(grid))[:, None].expand(-1, len(sparsities) // len(PROJECTIONS))
        found = divergence(tables, choices)
        cost.count("alpha", len(grid))
        return dict.fromkeys(sparsities, self.alpha_grid[int(found.argmin())])

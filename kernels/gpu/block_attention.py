"""Attention of the blocks of a decode step: which kernel does it, and what it leaves for o."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from ..model.decoder import DecoderShape
from ..model.decoder_weights import BlockWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..plan.heads import HeadRule
from ..plan.projection_rule import ProjectionRule
from ..triton.attention.new_token import HeadNorms
from ..triton.attention.selection import Selection
from .buffers import Buffers
from .sites import Site
from .step_tiles import StepTiles

Launch = Callable[..., None]


class BlockAttention:
    """Launches of attention, with the scratch and the scores that all blocks share."""

    def __init__(self, tiles: StepTiles, cache: StaticCache, shape: DecoderShape, buffers: Buffers) -> None:
        self._tiles, self._cache, self._shape, self._buffers = tiles, cache, shape, buffers
        self._listing = tiles.attention_over(cache, shape.heads)
        self._whole = tiles.attention_onto(cache, shape.heads)
        self._by_kept: dict[int, Launch] = {}

    def _selecting(self, kept: int) -> Launch:
        if kept not in self._by_kept:
            self._by_kept[kept] = self._tiles.selected_attention(self._cache, self._shape.heads, kept)
        return self._by_kept[kept]

    def o_site(self, rules: BlockPlan, make: Callable[[BlockPlan, int], Site]) -> Site:
        """The site of o; `make` takes a block's rules and the size of list blocks.

        Attention over chosen groups writes all of the activation. Of a single row o then skips what was left
        at zero, where it has no rule of its own; rows of a batch together read nearly all of it.
        """
        if rules.heads is None:
            return make(rules, self._tiles.list_blocks(self._shape, self._buffers.batch)["o"])
        if self._buffers.batch == 1 and rules.of("o") is None:
            skipping = ProjectionRule.of_nonzero(self._shape.attention_width, self._buffers.device)
            rules = replace(rules, rules={**rules.rules, "o": skipping})
        return replace(make(rules, self._tiles.list_block), whole=True)

    def router(self, heads: HeadRule) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, bias and what the scores of the groups are written to, as `group_scores` takes them."""
        scores = self._buffers.sums("scores", self._buffers.batch, self._shape.kv_heads)
        return heads.weight, heads.bias, scores

    def launch(self, heads: HeadRule | None, o: Site) -> Launch:
        """What attends; takes sums, bias, cache, block, window and o's outputs."""
        if heads is not None:
            return partial(self._selecting(heads.kept), selection=Selection(self.router(heads)[2], heads.kept))
        return self._whole if "x_out" in o.written else self._listing

    def norms(self, packed: BlockWeights) -> HeadNorms | None:
        """Norms of a block's heads, in families that have them."""
        if packed.query_norm is None:
            return None
        return HeadNorms(packed.query_norm, packed.key_norm, self._shape.norm_epsilon)

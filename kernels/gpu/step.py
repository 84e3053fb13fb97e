"""One decoded token of a whole model: five to seven launches a block, none of which the host waits for.

The residual stream stays in float32; activations are rounded to the weights' dtype where the model rounds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..block_rules import BlockRules
from ..cuda.product import (
    DirectTile,
    Given,
    Normed,
    Source,
    direct_neurons,
    direct_onto,
    direct_product,
    squares_of,
)
from ..cuda.select import direct_select
from ..decoder import SITES
from ..decoder_weights import BlockWeights, DecoderWeights
from ..errors import KernelError
from ..static_cache import StaticCache
from ..triton.compact import compact, embed, norm_compact
from ..triton.gemv import Columns, gemv, gemv_onto, gemv_partials, tiles_of
from ..triton.launch import blocks_of, power_of_two, require_runnable, supports_dependent_launch
from ..triton.neurons import neurons, times_rows
from ..triton.new_token import HeadNorms
from .cuda_tiles import direct_attention_tile, direct_tiles
from .sites import Buffers, Site, make_site
from .step_tiles import StepTiles, default_tiles


class TritonDecodeStep:
    """Logits of the next token from one token a row; appends to the cache and increases its length by one.

    Everything is allocated here, so that a call can be captured in a CUDA graph.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        rules: tuple[BlockRules, ...],
        cache: StaticCache,
        tiles: StepTiles | None = None,
        dependent_launch: bool = True,
    ) -> None:
        """Raises KernelError where weights, rules and cache do not fit each other, or no GPU is there."""
        shape = weights.shape
        require_runnable(weights.device)
        if len(rules) != shape.blocks:
            raise KernelError(f"rules for {len(rules)} blocks, the model has {shape.blocks}")
        expected = (shape.blocks, cache.batch, shape.kv_heads, cache.capacity, shape.head_dim)
        if tuple(cache.keys.shape) != expected or cache.keys.dtype != weights.dtype:
            raise KernelError(
                f"the cache is {cache.keys.dtype} {tuple(cache.keys.shape)}, not {weights.dtype} {expected}"
            )
        if cache.keys.device != weights.device:
            raise KernelError(f"the cache is on {cache.keys.device}, the weights on {weights.device}")
        self.weights, self.cache = weights, cache
        tiles = tiles or default_tiles(shape, cache.batch, cache.capacity)
        if tiles.direct is None:
            common = (shape, weights.dtype, weights.device, cache.batch)
            attention = tiles.direct_attention or direct_attention_tile(*common, cache.capacity)
            tiles = replace(tiles, direct=direct_tiles(*common), direct_attention=attention)
        self.tiles = tiles
        self._buffers = Buffers(cache.batch, weights.dtype, weights.device)
        self._pdl = dependent_launch and supports_dependent_launch(weights.device)
        self._launches: list[Callable[[], None]] = []
        self.direct_launches: list[str] = []
        """Products of all blocks that list their channels themselves."""
        self._residual = self._buffers.sums("residual", cache.batch, shape.hidden)
        self._attention = self.tiles.attention_over(cache, shape.heads)
        self._whole_attention = self.tiles.attention_onto(cache, shape.heads)
        self._tokens = torch.zeros(cache.batch, dtype=torch.int64, device=weights.device)
        self._plan(rules)

    @property
    def batch(self) -> int:
        """Rows."""
        return self.cache.batch

    @torch.no_grad()
    def __call__(self, token_ids: Tensor) -> Tensor:
        """(batch, vocabulary) float32 logits after token_ids (batch,) int64, which the cache does not hold yet.

        The cache must have a free slot; nobody looks, since that would be to wait for the GPU.
        """
        if token_ids.shape != (self.batch,) or token_ids.dtype != torch.int64:
            raise KernelError(
                f"token ids are {token_ids.dtype} {tuple(token_ids.shape)}, expected int64 ({self.batch},)"
            )
        self._tokens.copy_(token_ids)
        for start in self._launches:
            start()
        return F.linear(self._buffers.x("final", self.weights.shape.hidden), self.weights.lm_head).float()

    def freeze(self) -> None:
        """Fix all addresses, for a CUDA graph that holds them."""
        self._buffers.workspace.freeze()

    def _add(self, function: Callable[..., None], *arguments: object, **keywords: object) -> None:
        self._launches.append(partial(function, *arguments, **keywords, pdl=self._pdl))

    def _add_direct(self, name: str, *arguments: object, **keywords: object) -> None:
        self._add(*arguments, **keywords)
        self.direct_launches.append(name)

    def _plan(self, rules: tuple[BlockRules, ...]) -> None:
        shape, weights = self.weights.shape, self.weights
        block = min(self.tiles.list_block, power_of_two(shape.hidden))
        squares = self._buffers.sums("squares", self.batch, blocks_of(shape.hidden, block))
        # A copy of the tokens comes before, on which no launch can depend programmatically.
        self._launches.append(partial(embed, self._tokens, weights.embedding, self._residual, squares))
        for index, (packed, block_rules) in enumerate(zip(weights.blocks, rules, strict=True)):
            squares = self._plan_attention(index, packed, block_rules, squares)
            squares = self._plan_mlp(index, packed, block_rules, squares)
        x = self._buffers.x("final", shape.hidden)
        self._add(
            norm_compact, self._residual, squares, weights.final_norm, shape.norm_epsilon, None, None,
            x_out=x, length=self.cache.length,
        )  # fmt: skip

    def _plan_attention(self, index: int, packed: BlockWeights, rules: BlockRules, squares: Tensor) -> Tensor:
        shape, tiles, buffers = self.weights.shape, self.tiles, self._buffers
        widths = dict(
            zip(SITES["attention_input"], (shape.attention_width, *[shape.kv_width] * 2), strict=True)
        )
        site = self._site("attention_input", widths, shape.hidden, rules, tiles.list_block)
        sums, bias = buffers.sums("qkv", 1, self.batch, sum(widths.values())), None
        if direct := self._direct("qkv", site):
            source, bounds, smallest = self._read_by(site, squares, packed.input_norm)
            self._add_direct(
                "qkv", direct_product, source, bounds, packed.qkv, tuple(widths.values()), sums[0], direct,
                bias=packed.qkv_bias, smallest=smallest,
            )  # fmt: skip
        else:
            self._after_norm(site, packed.input_norm, squares)
            sums, bias = self._qkv(site, packed, sums)
        block = tiles.attention.list_block(shape)
        output = self._site("attention_output", {"o": shape.hidden}, shape.attention_width, rules, block)
        window = shape.windows[index]
        written = self._written(output, self._direct("o", output))
        attention = self._whole_attention if "x_out" in written else self._attention
        self._add(attention, sums, bias, self.cache, index, window, norms=self._head_norms(packed), **written)
        return self._onto_residual(output, packed.o, "o")

    def _head_norms(self, packed: BlockWeights) -> HeadNorms | None:
        if packed.query_norm is None:
            return None
        return HeadNorms(packed.query_norm, packed.key_norm, self.weights.shape.norm_epsilon)

    def _qkv(self, site: Site, packed: BlockWeights, sums: Tensor) -> tuple[Tensor, Tensor | None]:
        """The product behind RMSNorm's launch; its sums and the bias that attention has yet to add."""
        columns = Columns.side_by_side(self.weights.shape.attention_width, *[self.weights.shape.kv_width] * 2)
        tile = (self.tiles.dense if site.lists is None else self.tiles.listed)["qkv"]
        if self.tiles.consumer_adds_qkv and site.low_rank is None:
            splits = tile.splits(site.activation.lists, self.weights.shape.hidden)
            sums = self._buffers.sums("qkv", splits, *sums.shape[1:])
            self._add(gemv_partials, site.activation, packed.qkv, columns, sums, tile)
            return sums, packed.qkv_bias
        self._add(
            gemv, site.activation, packed.qkv, columns, sums[0], tile, self._buffers.workspace,
            bias=packed.qkv_bias, addend=site.addend,
        )  # fmt: skip
        return sums, None

    def _plan_mlp(self, index: int, packed: BlockWeights, rules: BlockRules, squares: Tensor) -> Tensor:
        shape, tiles = self.weights.shape, self.tiles
        gated = rules.gate_thresholds is not None
        if gated == (packed.gate_up is not None):
            raise KernelError(
                f"block {index}: pack the weights with the plan's gated blocks, pack(model, gated_blocks)"
            )
        names = ("gate",) if gated else SITES["mlp_input"]
        site = self._site("mlp_input", dict.fromkeys(names, shape.ffn), shape.hidden, rules, tiles.list_block)
        product = "gate" if gated else "gate_up"
        tile = (tiles.dense if site.lists is None else tiles.listed)[product]
        weight = packed.gate if gated else packed.gate_up
        hidden = self._site("mlp_hidden", {"down": shape.hidden}, shape.ffn, rules, tile.columns)
        direct_down = self._direct("down", hidden)
        direct = None if gated or (hidden.fused and not direct_down) else self._direct("gate_up", site)
        if direct:
            source, bounds, smallest = self._read_by(site, squares, packed.mlp_norm)
            self._add_direct(
                "gate_up", direct_neurons, source, bounds, weight, hidden.x, direct, smallest=smallest
            )
            return self._onto_residual(hidden, packed.down, "down")
        self._after_norm(site, packed.mlp_norm, squares, whole=gated)
        common = (site.activation, weight, shape.ffn, tile, self._buffers.workspace)
        if gated:
            lists = self._buffers.lists("gated", 1, shape.ffn, tile.columns)
            self._add(neurons, *common, bounds=rules.gate_thresholds, lists=lists, addend=site.addend)
            self._add(times_rows, lists, packed.up_rows, site.x, tiles.up_rows)
            hidden = Site(hidden.x, lists, None, None, 1, None)
            return self._product_onto_residual(hidden, packed.down, "down")
        self._add(neurons, *common, **self._written(hidden, direct_down), addend=site.addend)
        return self._onto_residual(hidden, packed.down, "down")

    def _site(self, name: str, widths: dict[str, int], channels: int, rules: BlockRules, block: int) -> Site:
        return make_site(name, widths, channels, rules, block, self.tiles.list_block, self._buffers)

    def _after_norm(self, site: Site, gain: Tensor, squares: Tensor, whole: bool = False) -> None:
        """RMSNorm, the site's lists, its low-rank path; `whole`: something reads all of x beside the lists."""
        epsilon = self.weights.shape.norm_epsilon
        if site.kept is not None:
            self._add(site.select, self._residual, (squares, gain, epsilon))
        x = site.x if whole or site.lists is None else None
        self._add(norm_compact, self._residual, squares, gain, epsilon, site.rules, site.lists, x_out=x)
        self._low_rank(site)

    def _low_rank(self, site: Site) -> None:
        if site.low_rank is not None:
            tiles = self.tiles.listed
            self._add(site.low_rank.run, tiles["right"], tiles["left"], self._buffers.workspace)

    def _direct(self, name: str, site: Site) -> DirectTile | None:
        """The tile of a product that lists its channels itself; None where launches before it do."""
        return self.tiles.direct.get(name) if site.direct else None

    def _read_by(
        self, site: Site, squares: Tensor | None = None, gain: Tensor | None = None
    ) -> tuple[Source, Tensor, Tensor | None]:
        """Inputs of a direct product: activation, bounds, and the smallest score, which is found before it."""
        normed = gain is not None
        source = (
            Normed(self._residual, squares, gain, self.weights.shape.norm_epsilon) if normed else Given(site.x)
        )
        if site.kept is None:
            return source, site.rules.bounds, None
        weights, smallest = site.rules.score_weights, site.rules.smallest
        # It leaves the normalised activation for the product: both must see the same scores.
        self._add(direct_select, source, weights, site.kept, smallest, x_out=site.x if normed else None)
        return Given(site.x), weights, smallest

    @staticmethod
    def _written(site: Site, direct: DirectTile | None) -> dict[str, object]:
        """Outputs of the kernel that computes a site's activation: its lists where it can, else x."""
        if site.fused and not direct:
            return {"bounds": site.rules.bounds[0], "lists": site.lists}
        return {"x_out": site.x}

    def _onto_residual(self, site: Site, weight: Tensor, name: str) -> Tensor:
        """The lists that were not made with the activation, then the product."""
        if direct := self._direct(name, site):
            squares = self._buffers.sums(("squares", name), self.batch, squares_of(weight.shape[1]))
            source, bounds, smallest = self._read_by(site)
            self._add_direct(
                name, direct_onto, source, bounds, weight, self._residual, squares, direct, smallest=smallest
            )
            return squares
        if site.lists is not None and not site.fused:
            if site.kept is not None:
                self._add(site.select, site.x, None)
            self._add(compact, site.x, site.rules, site.lists)
            self._low_rank(site)
        return self._product_onto_residual(site, weight, name)

    def _product_onto_residual(self, site: Site, weight: Tensor, name: str) -> Tensor:
        tile = (self.tiles.dense if site.lists is None else self.tiles.listed)[name]
        columns = Columns.side_by_side(weight.shape[1])
        squares = self._buffers.sums(("squares", name), self.batch, tiles_of(columns, tile))
        self._add(
            gemv_onto, site.activation, weight, self._residual, squares, tile, self._buffers.workspace,
            addend=site.addend,
        )  # fmt: skip
        return squares

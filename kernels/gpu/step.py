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

from ..cuda.head import cuda_head
from ..cuda.predicted import PredictedTile, SignWords, cuda_predicted
from ..cuda.product import (
    Given,
    Normed,
    Source,
    cuda_neurons,
    cuda_onto,
    cuda_product,
    runs_cuda_products,
    squares_of,
)
from ..cuda.select import cuda_select
from ..cuda.stored_weight import CUDAWeight
from ..decoder import Product
from ..decoder_weights import LM_HEAD, BlockWeights, DecoderWeights
from ..errors import KernelError
from ..heads.router import group_scores
from ..plan_data import BlockPlan, Mechanism, ProjectionRule
from ..quantised.packed import PackedWeight
from ..static_cache import StaticCache
from ..triton.compact import compact, embed, norm_compact
from ..triton.from_sums import neurons_of_sums, onto_residual, squares_of_sums
from ..triton.gemv import gemv, gemv_onto, gemv_partials, tiles_of
from ..triton.launch import blocks_of, power_of_two, require_runnable, supports_dependent_launch
from ..triton.neurons import neurons, times_rows
from ..triton.select import select_smallest
from .block_attention import BlockAttention
from .buffers import Buffers
from .cuda_tiles import chosen, cuda_products_of, storages_of
from .library_product import library_product
from .shared_masks import deciding
from .sites import Reads, Site, make_site
from .step_languages import languages_of
from .step_tiles import StepTiles, default_tiles

LACKING = {Mechanism.ROTATION, Mechanism.BIAS, Mechanism.PROXY, Mechanism.BOUNDED}


class GPUDecodeStep:
    """Logits of the next token from one token a row; appends to the cache and increases its length by one.

    Everything is allocated here, so that a call can be captured in a CUDA graph.
    """

    supports = frozenset(set(Mechanism) - LACKING)

    def __init__(
        self,
        weights: DecoderWeights,
        rules: tuple[BlockPlan, ...],
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
        storages = storages_of(weights)
        common = (shape, weights.dtype, weights.device, cache.batch, cache.capacity)
        cuda = chosen(tiles.cuda, *common, storages, dense=not any(plan.rules for plan in rules))
        self.tiles = replace(tiles, cuda=cuda)
        self.cuda_products: list[str] = []
        """Names of the products of all blocks that are CUDA C++, which list their channels themselves."""
        self._buffers = Buffers(cache.batch, weights.dtype, weights.device)
        self._pdl = dependent_launch and supports_dependent_launch(weights.device)
        self.launches: list[partial[None]] = []
        """All launches of a token, in order."""
        self._products = {product.name: product for product in cuda_products_of(shape, storages)}
        self._products["gate"] = Product("gate", shape.hidden, (shape.ffn,))
        self._residual = self._buffers.sums("residual", cache.batch, shape.hidden)
        self._attention = BlockAttention(self.tiles, cache, shape, self._buffers)
        self._tokens = torch.zeros(cache.batch, dtype=torch.int64, device=weights.device)
        self._lay_out(rules)

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
        for start in self.launches:
            start()
        return self._logits()

    def ran(self) -> dict[str, str]:
        """Language of the launches of each part; see `DecodeStep`. A norm within a product counts as both."""
        head = "cuda" if LM_HEAD in self.cuda_products else "torch"
        return languages_of(self.launches) | {"lm_head": head}

    def freeze(self) -> None:
        """Fix all addresses, for a CUDA graph that holds them."""
        self._buffers.workspace.freeze()

    def _lay_out(self, rules: tuple[BlockPlan, ...]) -> None:
        shape, weights = self.weights.shape, self.weights
        block = min(self.tiles.list_block, power_of_two(shape.hidden))
        squares = self._buffers.sums("squares", self.batch, blocks_of(shape.hidden, block))
        # A copy of the tokens comes before, on which no launch can depend programmatically.
        self.launches.append(partial(embed, self._tokens, weights.embedding, self._residual, squares))
        for index, (packed, block_rules) in enumerate(zip(weights.blocks, rules, strict=True)):
            squares = self._lay_out_attention(index, packed, block_rules, squares)
            squares = self._lay_out_mlp(index, packed, block_rules, squares)
        self._logits = self._lay_out_head(squares)

    def _lay_out_head(self, squares: Tensor) -> Callable[[], Tensor]:
        """What gives the logits behind all launches: torch's product, or what the last launch has written."""
        weights, blocks = self.weights, self.tiles.cuda.head_blocks
        head, shape, length = weights.lm_head, weights.shape, self.cache.length
        if blocks and isinstance(head, Tensor):
            logits = self._buffers.sums("logits", 1, shape.vocabulary)
            normed = Normed(self._residual, squares, weights.final_norm, shape.norm_epsilon)
            self._add(cuda_head, normed, head, length, logits, blocks)
            self.cuda_products.append(LM_HEAD)
            return lambda: logits
        x = self._buffers.x("final", shape.hidden)
        self._add(
            norm_compact, self._residual, squares, weights.final_norm, shape.norm_epsilon, None, None,
            x_out=x, length=length,
        )  # fmt: skip
        if not isinstance(head, PackedWeight):
            return lambda: F.linear(x, head).float()
        tile = self.tiles.cuda.products.get(LM_HEAD)
        if tile is None:
            raise KernelError(f"lm_head in {head.format} has no kernel here; leave it as it was: lm_head=none")
        logits = self._buffers.sums("logits", 1, shape.vocabulary)
        self._add(cuda_product, Given(x), None, CUDAWeight.of(head), (shape.vocabulary,), logits, tile)
        self.cuda_products.append(LM_HEAD)
        return lambda: logits

    def _lay_out_attention(self, index: int, packed: BlockWeights, rules: BlockPlan, squares: Tensor) -> Tensor:
        shape, attention, heads = self.weights.shape, self._attention, rules.heads
        qkv = self._site("qkv", packed.qkv, rules, self.tiles.list_block)
        o = attention.o_site(rules, partial(self._site, "o", packed.o))
        if heads is not None:
            norm = (self._residual, squares, packed.input_norm, shape.norm_epsilon)
            self._add(group_scores, *norm, *attention.router(heads))
        sums, bias = self._queries_keys_values(qkv, packed, squares)
        place = (sums, bias, self.cache, index, shape.windows[index])
        self._add(attention.launch(heads, o), *place, norms=attention.norms(packed), **o.written)
        return self._onto_residual(o)

    def _queries_keys_values(
        self, qkv: Site, packed: BlockWeights, squares: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The product behind RMSNorm: its sums, and the bias that attention has yet to add."""
        buffers, columns = self._buffers, sum(qkv.widths)
        sums = buffers.sums("qkv", 1, self.batch, columns)
        if qkv.cuda:
            self._add_cuda(
                qkv,
                cuda_product,
                qkv.widths,
                sums[0],
                behind=(squares, packed.input_norm),
                bias=packed.qkv_bias,
            )
            return sums, None
        self._after_norm(qkv, packed.input_norm, squares)
        if qkv.library:
            self._add(library_product, qkv.reads.x, qkv.weight, sums[0])
            return sums, packed.qkv_bias
        if self.tiles.consumer_adds_qkv and qkv.reads.low_rank is None:
            splits = qkv.tile.splits(qkv.activation.lists, self.weights.shape.hidden)
            sums = buffers.sums("qkv", splits, self.batch, columns)
            self._add(gemv_partials, qkv.activation, qkv.weight, qkv.columns, sums, qkv.tile)
            return sums, packed.qkv_bias
        self._add(
            gemv, qkv.activation, qkv.weight, qkv.columns, sums[0], qkv.tile, buffers.workspace,
            bias=packed.qkv_bias, addend=qkv.addend,
        )  # fmt: skip
        return sums, None

    def _lay_out_mlp(self, index: int, packed: BlockWeights, rules: BlockPlan, squares: Tensor) -> Tensor:
        gated, predicted = rules.gate is not None, rules.signs is not None
        if (gated, predicted) != (packed.gate is not None, packed.gate_rows is not None):
            raise KernelError(
                f"block {index}: pack the weights with the plan's gated and predicted blocks, "
                "pack(model, gated_blocks, None, predicted_blocks)"
            )
        if predicted:
            return self._lay_out_predicted(packed, rules, squares)
        name, weight = ("gate", packed.gate) if gated else ("gate_up", packed.gate_up)
        mlp = self._site(name, weight, rules, self.tiles.list_block)
        down = self._site("down", packed.down, rules, mlp.tile.columns)
        if gated:
            return self._lay_out_gated(mlp, down, packed, rules, squares)
        if mlp.cuda and (down.cuda or not down.fused):  # it has nobody to list down's channels for
            self._add_cuda(
                mlp,
                cuda_neurons,
                down.reads.x,
                behind=(squares, packed.mlp_norm),
                nonlinearity=self.weights.shape.activation,
            )
            return self._onto_residual(down)
        self._after_norm(mlp, packed.mlp_norm, squares)
        self._add_neurons(mlp, **down.written)
        return self._onto_residual(down)

    def _lay_out_gated(
        self, gate: Site, down: Site, packed: BlockWeights, rules: BlockPlan, squares: Tensor
    ) -> Tensor:
        """The neurons that pass the gate are down's channels, and the only rows of up that are read."""
        self._after_norm(gate, packed.mlp_norm, squares, whole=True)
        lists = self._buffers.lists("gated", 1, self.weights.shape.ffn, gate.tile.columns)
        self._add_neurons(gate, bounds=rules.gate.thresholds, lists=lists)
        self._add(times_rows, lists, packed.up_rows, gate.reads.x, self.tiles.up_rows)
        reads = Reads(down.reads.x, lists)
        return self._add_onto_residual(replace(down, reads=reads, tile=self.tiles.listed["down"], cuda=None))

    def _lay_out_predicted(self, packed: BlockWeights, rules: BlockPlan, squares: Tensor) -> Tensor:
        """One launch for the neurons, most of which are zero; down reads the columns of the others."""
        shape, device = self.weights.shape, self.weights.device
        if self.batch != 1:
            raise KernelError(f"signs predict the neurons of one row, not of {self.batch}; take them as dense")
        if device.type == "cuda" and not runs_cuda_products(device):
            raise KernelError(
                "on a GPU, signs are counted from compute capability 9.0 on and with cuda-bindings; evaluate "
                "the plan without the engine (latency=none)"
            )
        least = torch.full((shape.ffn,), torch.finfo(torch.float32).tiny, device=device)
        nonzero = BlockPlan({"down": ProjectionRule(thresholds=least)})
        down = replace(self._site("down", packed.down, nonzero, self.tiles.list_block), whole=True)
        self._add(
            cuda_predicted, Normed(self._residual, squares, packed.mlp_norm, shape.norm_epsilon),
            SignWords.of(rules.signs), packed.gate_rows, packed.up_rows, down.reads.x, PredictedTile(),
            nonlinearity=shape.activation,
        )  # fmt: skip
        return self._onto_residual(down)

    def _site(self, name: str, weight: Tensor | PackedWeight, rules: BlockPlan, block: int) -> Site:
        return make_site(self._products[name], weight, rules, self.tiles, block, self._buffers)

    def _after_norm(self, site: Site, gain: Tensor, squares: Tensor, whole: bool = False) -> None:
        """RMSNorm, the site's lists, its low-rank path; `whole`: something reads all of x beside the lists."""
        epsilon, reads = self.weights.shape.norm_epsilon, site.reads
        if reads.shared is not None:
            self._add_deciding(reads, (squares, gain, epsilon))
            return
        if reads.kept is not None:
            self._add_select(reads, self._residual, (squares, gain, epsilon))
        x = reads.x if whole or reads.lists is None else None
        self._add(norm_compact, self._residual, squares, gain, epsilon, reads.rules, reads.lists, x_out=x)
        self._add_low_rank(reads)

    def _onto_residual(self, site: Site) -> Tensor:
        """The lists that were not made with the activation, then the product; returns squares of the sum."""
        reads = site.reads
        if site.cuda:
            columns = site.weight.shape[1]
            squares = self._buffers.sums(("squares", site.name), self.batch, squares_of(columns))
            self._add_cuda(site, cuda_onto, self._residual, squares)
            return squares
        if reads.shared is not None:
            self._add_deciding(reads, None)
        elif reads.lists is not None and not site.fused:
            if reads.kept is not None:
                self._add_select(reads, reads.x, None)
            self._add(compact, reads.x, reads.rules, reads.lists)
            self._add_low_rank(reads)
        return self._add_onto_residual(site)

    def _add(self, function: Callable[..., None], *arguments: object, **keywords: object) -> None:
        self.launches.append(partial(function, *arguments, **keywords, pdl=self._pdl))

    def _add_deciding(self, reads: Reads, norm: tuple[Tensor, Tensor, float] | None) -> None:
        for start in deciding(reads, self._residual, norm):
            self._add(start)

    def _add_cuda(
        self,
        site: Site,
        function: Callable[..., None],
        *arguments: object,
        behind: tuple[Tensor, Tensor] | None = None,
        **keywords: object,
    ) -> None:
        """A product that lists its channels itself: of x, or behind RMSNorm (squares and gain)."""
        source, bounds, smallest = self._source(site.reads, behind)
        keywords |= {"smallest": smallest}
        self._add(function, source, bounds, site.weight, *arguments, site.cuda, **keywords)
        self.cuda_products.append(site.name)

    def _source(
        self, reads: Reads, behind: tuple[Tensor, Tensor] | None
    ) -> tuple[Source, Tensor | None, Tensor | None]:
        """Activation of a CUDA C++ product, bounds, and the smallest score, which is found before it."""
        source = Given(reads.x)
        if behind is not None:
            source = Normed(self._residual, *behind, self.weights.shape.norm_epsilon)
        if reads.lists is None:  # all channels are kept
            return source, None, None
        if reads.kept is None:
            return source, reads.rules.bounds, None
        weights, smallest = reads.rules.score_weights, reads.rules.smallest
        # It leaves the normalised activation for the product: both must see the same scores.
        self._add(cuda_select, source, weights, reads.kept, smallest, x_out=None if behind is None else reads.x)
        return Given(reads.x), weights, smallest

    def _add_select(self, reads: Reads, source: Tensor, norm: tuple[Tensor, Tensor, float] | None) -> None:
        """Where lists are by top-k, find the smallest score that each row keeps."""
        self._add(select_smallest, source, reads.rules.score_weights, reads.kept, reads.rules.smallest, norm)

    def _add_low_rank(self, reads: Reads) -> None:
        if reads.low_rank is not None:
            tiles = self.tiles.listed
            self._add(reads.low_rank.run, tiles["right"], tiles["left"], self._buffers.workspace)

    def _add_neurons(self, site: Site, **written: object) -> None:
        if site.library:
            sums = self._buffers.sums("neurons", self.batch, site.weight.shape[1])
            self._add(library_product, site.reads.x, site.weight, sums)
            through = {"nonlinearity": self.weights.shape.activation}
            self._add(neurons_of_sums, sums, site.weight, site.tile.columns, **through, **written)
            return
        self._add(
            neurons, site.activation, site.weight, self.weights.shape.ffn, site.tile, self._buffers.workspace,
            addend=site.addend, nonlinearity=self.weights.shape.activation, **written,
        )  # fmt: skip

    def _add_onto_residual(self, site: Site) -> Tensor:
        if site.library:
            columns = site.weight.shape[1]
            sums = self._buffers.sums("onto", self.batch, columns)
            squares = self._buffers.sums(("squares", site.name), self.batch, squares_of_sums(columns))
            self._add(library_product, site.reads.x, site.weight, sums)
            self._add(onto_residual, sums, self._residual, squares)
            return squares
        tiles = tiles_of(site.columns, site.tile)
        squares = self._buffers.sums(("squares", site.name), self.batch, tiles)
        self._add(
            gemv_onto, site.activation, site.weight, self._residual, squares, site.tile,
            self._buffers.workspace, addend=site.addend,
        )  # fmt: skip
        return squares

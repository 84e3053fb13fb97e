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
from ..cuda.product import Given, Normed, cuda_neurons, cuda_product
from ..cuda.stored_weight import CUDAWeight
from ..errors import KernelError
from ..model.decoder import Product
from ..model.decoder_weights import LM_HEAD, BlockWeights, DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..plan.mechanism import Mechanism
from ..quantised.packed import PackedWeight
from ..triton.attention.router import group_scores
from ..triton.compact import embed, norm_compact
from ..triton.launch import blocks_of, power_of_two, require_runnable, supports_dependent_launch
from ..triton.neurons import times_rows
from .block_attention import BlockAttention
from .buffers import Buffers
from .chosen_neurons import ChosenNeurons
from .cuda_tiles import chosen, cuda_products_of, storages_of
from .site_launches import Norm, SiteLaunches
from .sites import Reads, Site
from .step_languages import languages_of
from .step_tiles import StepTiles, default_tiles


class GPUDecodeStep:
    """Logits of the next token from one token a row; appends to the cache and increases its length by one.

    Everything is allocated here, so that a call can be captured in a CUDA graph.
    """

    supports = frozenset(Mechanism)

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
        products = {product.name: product for product in cuda_products_of(shape, storages)}
        products["gate"] = Product("gate", shape.hidden, (shape.ffn,))
        buffers = Buffers(cache.batch, weights.dtype, weights.device)
        depends = dependent_launch and supports_dependent_launch(weights.device)
        self._sites = SiteLaunches(shape, self.tiles, products, buffers, depends)
        self.launches = self._sites.launches
        """All launches of a token, in order."""
        self.cuda_products = self._sites.cuda_products
        """Names of the products of all blocks that are CUDA C++, which list their channels themselves."""
        self._attention = BlockAttention(self.tiles, cache, shape, buffers)
        self._chosen_neurons = ChosenNeurons(self._sites, shape, self.tiles)
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
        self._sites.buffers.workspace.freeze()

    def _lay_out(self, rules: tuple[BlockPlan, ...]) -> None:
        shape, weights = self.weights.shape, self.weights
        block = min(self.tiles.list_block, power_of_two(shape.hidden))
        squares = self._sites.buffers.sums("squares", self.batch, blocks_of(shape.hidden, block))
        # A copy of the tokens comes before, on which no launch can depend programmatically.
        self.launches.append(partial(embed, self._tokens, weights.embedding, self._sites.residual, squares))
        for index, (packed, block_rules) in enumerate(zip(weights.blocks, rules, strict=True)):
            squares = self._lay_out_attention(index, packed, block_rules, squares)
            squares = self._lay_out_mlp(index, packed, block_rules, squares)
            if packed.adapter is not None:
                squares = self._sites.turn_residual(packed.adapter)
        self._logits = self._lay_out_head(squares)

    def _lay_out_head(self, squares: Tensor) -> Callable[[], Tensor]:
        """What gives the logits behind all launches: torch's product, or what the last launch has written."""
        weights, blocks = self.weights, self.tiles.cuda.head_blocks
        head, shape, length = weights.lm_head, weights.shape, self.cache.length
        if blocks and isinstance(head, Tensor):
            logits = self._sites.buffers.sums("logits", 1, shape.vocabulary)
            normed = Normed(self._sites.residual, squares, weights.final_norm, shape.norm_epsilon)
            self._sites.add(cuda_head, normed, head, length, logits, blocks)
            self.cuda_products.append(LM_HEAD)
            return lambda: logits
        x = self._sites.buffers.x("final", shape.hidden)
        self._sites.add(
            norm_compact, self._sites.residual, squares, weights.final_norm, shape.norm_epsilon, None, None,
            x_out=x, length=length,
        )  # fmt: skip
        if not isinstance(head, PackedWeight):
            return lambda: F.linear(x, head).float()
        tile = self.tiles.cuda.products.get(LM_HEAD)
        if tile is None:
            raise KernelError(f"lm_head in {head.format} has no kernel here; leave it as it was: lm_head=none")
        logits = self._sites.buffers.sums("logits", 1, shape.vocabulary)
        self._sites.add(cuda_product, Given(x), None, CUDAWeight.of(head), (shape.vocabulary,), logits, tile)
        self.cuda_products.append(LM_HEAD)
        return lambda: logits

    def _lay_out_attention(self, index: int, packed: BlockWeights, rules: BlockPlan, squares: Tensor) -> Tensor:
        shape, attention, heads = self.weights.shape, self._attention, rules.heads
        qkv = self._sites.site("qkv", packed.qkv, rules, self.tiles.list_block, packed.qkv_bias)
        o = attention.o_site(rules, partial(self._sites.site, "o", packed.o))
        if heads is None:
            behind = self._sites.behind(qkv, (squares, packed.input_norm), packed.input_basis)
        else:
            norm = (self._sites.residual, squares, packed.input_norm, shape.norm_epsilon)
            self._sites.add(group_scores, *norm, *attention.router(heads), qkv.reads.x)
            behind = None  # x is there
        sums, bias = self._sites.queries_keys_values(qkv, behind)
        place = (sums, bias, self.cache, index, shape.windows[index])
        self._sites.add(attention.launch(heads, o), *place, norms=attention.norms(packed), **o.written)
        return self._sites.onto_residual(o)

    def _lay_out_mlp(self, index: int, packed: BlockWeights, rules: BlockPlan, squares: Tensor) -> Tensor:
        gated, ranked = rules.gate is not None, rules.proxies is not None
        by_rows = ranked or rules.router is not None or rules.signs is not None
        expected = packed.gate is not None, packed.proxies is not None, packed.gate_rows is not None
        if (gated, ranked, by_rows) != expected:
            raise KernelError(
                f"block {index}: pack the weights with the plan's gated and predicted blocks, and those with "
                "proxies, pack(model, gated_blocks, None, predicted_blocks, proxied_blocks)"
            )
        if by_rows:
            return self._chosen_neurons.lay_out(packed, rules, squares)
        name, weight = ("gate", packed.gate) if gated else ("gate_up", packed.gate_up)
        mlp = self._sites.site(name, weight, rules, self.tiles.list_block)
        down = self._sites.site("down", packed.down, rules, mlp.tile.columns)
        behind = self._sites.behind(mlp, (squares, packed.mlp_norm), packed.mlp_basis)
        if gated:
            return self._lay_out_gated(mlp, down, packed, rules, behind)
        if mlp.cuda and (down.cuda or not down.fused):  # it has nobody to list down's channels for
            through = {"nonlinearity": self.weights.shape.activation}
            self._sites.add_cuda(mlp, cuda_neurons, down.reads.x, behind=behind, **through)
            return self._sites.onto_residual(down)
        self._sites.before_product(mlp, behind)
        self._sites.add_neurons(mlp, **down.written)
        return self._sites.onto_residual(down)

    def _lay_out_gated(
        self, gate: Site, down: Site, packed: BlockWeights, rules: BlockPlan, behind: Norm | None
    ) -> Tensor:
        """The neurons that pass the gate are down's channels, and the only rows of up that are read."""
        self._sites.before_product(gate, behind, whole=True)
        lists = self._sites.buffers.lists("gated", 1, self.weights.shape.ffn, gate.tile.columns)
        self._sites.add_neurons(gate, bounds=rules.gate.thresholds, lists=lists)
        self._sites.add(times_rows, lists, packed.up_rows, gate.reads.x, self.tiles.up_rows)
        reads = Reads(down.reads.x, lists)
        return self._sites.add_onto_residual(
            replace(down, reads=reads, tile=self.tiles.listed["down"], cuda=None)
        )

"""Launches of a decode step's products: what lists their channels, and the product onto the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..cuda.product import Given, Normed, Source, cuda_onto, cuda_product, squares_of
from ..cuda.select import cuda_select
from ..model.decoder import DecoderShape, Product
from ..plan.block_plan import BlockPlan
from ..quantised.packed import PackedWeight
from ..triton.compact import compact, norm_compact
from ..triton.from_sums import neurons_of_sums, onto_residual, squares_of_sums
from ..triton.gemv import Activation, Columns, gemv, gemv_onto, gemv_partials, tiles_of
from ..triton.neurons import neurons
from ..triton.select import select_smallest
from .buffers import Buffers
from .library_product import library_product
from .shared_masks import deciding
from .sites import Reads, Site, make_site
from .step_tiles import StepTiles

Norm = tuple[Tensor, Tensor]
"""RMSNorm of the residual stream: sums of squares of its parts, and gains."""


class SiteLaunches:
    """Launches in order, to which those of each site are added; they share the residual stream and buffers."""

    def __init__(
        self,
        shape: DecoderShape,
        tiles: StepTiles,
        products: dict[str, Product],
        buffers: Buffers,
        dependent_launch: bool,
    ) -> None:
        """products: by name, with the columns that the weights have."""
        self._shape, self._tiles, self._products, self._pdl = shape, tiles, products, dependent_launch
        self.buffers = buffers
        self.residual = buffers.sums("residual", buffers.batch, shape.hidden)
        """(batch, hidden) float32."""
        self.launches: list[partial[None]] = []
        """All launches of a token."""
        self.cuda_products: list[str] = []
        """Names of the products of all blocks that are CUDA C++, which list their channels themselves."""

    def add(self, function: Callable[..., None], *arguments: object, **keywords: object) -> None:
        self.launches.append(partial(function, *arguments, **keywords, pdl=self._pdl))

    def site(
        self,
        name: str,
        weight: Tensor | PackedWeight,
        rules: BlockPlan,
        block: int,
        own_bias: Tensor | None = None,
    ) -> Site:
        return make_site(self._products[name], weight, rules, self._tiles, block, self.buffers, own_bias)

    def behind(self, site: Site, norm: Norm, basis: Tensor | None) -> Norm | None:
        """The norm that a site stands behind; None where its x is there: launches turn it into a basis."""
        if basis is None:
            return norm
        x = self.buffers.x("to be turned", self._shape.hidden)
        self._add_norm(norm, x)
        self._add_dense(x, basis, site.reads.x)
        return None

    def logits(self, norm: Norm, router: Tensor, x: Tensor) -> Tensor:
        """What a router (hidden, groups) says behind RMSNorm, (batch, groups) float32; x is left normalised."""
        found = self.buffers.sums("logits of groups", self.buffers.batch, router.shape[1])
        self._add_norm(norm, x)
        self._add_dense(x, router, found)
        return found

    def _add_norm(self, norm: Norm, x: Tensor) -> None:
        squares, gain = norm
        self.add(norm_compact, self.residual, squares, gain, self._shape.norm_epsilon, None, None, x_out=x)

    def turn_residual(self, basis: Tensor) -> Tensor:
        """The residual stream times a basis in its place; returns squares of it."""
        sums = self.buffers.sums("turned", *self.residual.shape)
        squares = self.buffers.sums(("squares", "turned"), self.buffers.batch, squares_of_sums(sums.shape[1]))
        self._add_dense(self.residual, basis, sums)
        self.add(onto_residual, sums, self.residual, squares, replacing=True)
        return squares

    def _add_dense(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        columns, tile = Columns.side_by_side(weight.shape[1]), self._tiles.dense["o"]
        self.add(gemv, Activation(x=x), weight, columns, out, tile, self.buffers.workspace)

    def queries_keys_values(self, qkv: Site, behind: Norm | None) -> tuple[Tensor, Tensor | None]:
        """The product behind RMSNorm, or of x: its sums, and the bias that attention has yet to add."""
        buffers, columns = self.buffers, sum(qkv.widths)
        sums = buffers.sums("qkv", 1, self.buffers.batch, columns)
        if qkv.cuda:
            self.add_cuda(qkv, cuda_product, qkv.widths, sums[0], behind=behind)
            return sums, None
        self.before_product(qkv, behind)
        if qkv.library:
            self.add(library_product, qkv.reads.x, qkv.weight, sums[0])
            return sums, qkv.bias
        if self._tiles.consumer_adds_qkv and qkv.reads.low_rank is None:
            splits = qkv.tile.splits(qkv.activation.lists, self._shape.hidden)
            sums = buffers.sums("qkv", splits, self.buffers.batch, columns)
            self.add(gemv_partials, qkv.activation, qkv.weight, qkv.columns, sums, qkv.tile)
            return sums, qkv.bias
        self.add(
            gemv, qkv.activation, qkv.weight, qkv.columns, sums[0], qkv.tile, buffers.workspace,
            bias=qkv.bias, addend=qkv.addend,
        )  # fmt: skip
        return sums, None

    def before_product(self, site: Site, behind: Norm | None, whole: bool = False) -> None:
        """RMSNorm, the site's lists, its low-rank path; `whole`: something reads all of x beside the lists."""
        epsilon, reads = self._shape.norm_epsilon, site.reads
        if behind is None:
            self._list_x(reads)
            return
        squares, gain = behind
        if reads.shared is not None:
            self._add_deciding(reads, (squares, gain, epsilon))
            return
        if reads.kept is not None:
            self._add_select(reads, self.residual, (squares, gain, epsilon))
        x = reads.x if whole or reads.lists is None else None
        self.add(norm_compact, self.residual, squares, gain, epsilon, reads.rules, reads.lists, x_out=x)
        self._add_low_rank(reads)

    def onto_residual(self, site: Site) -> Tensor:
        """The lists that were not made with the activation, then the product; returns squares of the sum."""
        reads = site.reads
        if site.cuda:
            columns = site.weight.shape[1]
            squares = self.buffers.sums(("squares", site.name), self.buffers.batch, squares_of(columns))
            self.add_cuda(site, cuda_onto, self.residual, squares)
            return squares
        if not site.fused:
            self._list_x(reads)
        return self.add_onto_residual(site)

    def _list_x(self, reads: Reads) -> None:
        """The lists of an x that is there, and its low-rank path; nothing where all of it is read."""
        if reads.shared is not None:
            self._add_deciding(reads, None)
        elif reads.lists is not None:
            if reads.kept is not None:
                self._add_select(reads, reads.x, None)
            self.add(compact, reads.x, reads.rules, reads.lists)
            self._add_low_rank(reads)

    def add_cuda(
        self,
        site: Site,
        function: Callable[..., None],
        *arguments: object,
        behind: Norm | None = None,
        **keywords: object,
    ) -> None:
        """A product that lists its channels itself: of x, or behind RMSNorm."""
        source, bounds, smallest = self._source(site.reads, behind)
        keywords |= {"bias": site.bias, "smallest": smallest}
        self.add(function, source, bounds, site.weight, *arguments, site.cuda, **keywords)
        self.cuda_products.append(site.name)

    def add_neurons(self, site: Site, **written: object) -> None:
        if site.library:
            sums = self.buffers.sums("neurons", self.buffers.batch, site.weight.shape[1])
            self.add(library_product, site.reads.x, site.weight, sums)
            through = {"nonlinearity": self._shape.activation}
            self.add(neurons_of_sums, sums, site.weight, site.tile.columns, **through, **written)
            return
        self.add(
            neurons, site.activation, site.weight, self._shape.ffn, site.tile, self.buffers.workspace,
            bias=site.bias, addend=site.addend, nonlinearity=self._shape.activation, **written,
        )  # fmt: skip

    def add_onto_residual(self, site: Site) -> Tensor:
        if site.library:
            columns = site.weight.shape[1]
            sums = self.buffers.sums("onto", self.buffers.batch, columns)
            squares = self.buffers.sums(("squares", site.name), self.buffers.batch, squares_of_sums(columns))
            self.add(library_product, site.reads.x, site.weight, sums)
            self.add(onto_residual, sums, self.residual, squares)
            return squares
        tiles = tiles_of(site.columns, site.tile)
        squares = self.buffers.sums(("squares", site.name), self.buffers.batch, tiles)
        self.add(
            gemv_onto, site.activation, site.weight, self.residual, squares, site.tile,
            self.buffers.workspace, bias=site.bias, addend=site.addend,
        )  # fmt: skip
        return squares

    def _source(self, reads: Reads, behind: Norm | None) -> tuple[Source, Tensor | None, Tensor | None]:
        """Activation of a CUDA C++ product, bounds, and the smallest score, which is found before it."""
        source = Given(reads.x)
        if behind is not None:
            source = Normed(self.residual, *behind, self._shape.norm_epsilon)
        if reads.lists is None:  # all channels are kept
            return source, None, None
        if reads.kept is None:
            return source, reads.rules.bounds, None
        weights, smallest = reads.rules.score_weights, reads.rules.smallest
        # It leaves the normalised activation for the product: both must see the same scores.
        x_out = None if behind is None else reads.x
        self.add(cuda_select, source, weights, reads.kept, smallest, x_out, reads.fewest)
        return Given(reads.x), weights, smallest

    def _add_deciding(self, reads: Reads, norm: tuple[Tensor, Tensor, float] | None) -> None:
        for start in deciding(reads, self.residual, norm):
            self.add(start)

    def _add_select(self, reads: Reads, source: Tensor, norm: tuple[Tensor, Tensor, float] | None) -> None:
        """Where lists are by top-k, find the smallest score that each row keeps."""
        rules = reads.rules
        self.add(select_smallest, source, rules.score_weights, reads.kept, rules.smallest, norm, reads.fewest)

    def _add_low_rank(self, reads: Reads) -> None:
        if reads.low_rank is not None:
            tiles = self._tiles.listed
            self.add(reads.low_rank.run, tiles["right"], tiles["left"], self.buffers.workspace)

"""The four products of a block as they run in a decode step, on random data of a given sparsity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...cuda.product import CUDATile, Given, cuda_neurons, cuda_onto, cuda_product, squares_of
from ...model.decoder import Product
from ...triton.channel_lists import ChannelLists
from ...triton.from_sums import neurons_of_sums, onto_residual, squares_of_sums
from ...triton.gemv import Activation, Columns, gemv, gemv_onto, gemv_partials, tiles_of
from ...triton.gemv_tiles import Tile, Workspace
from ...triton.neurons import neurons
from ..library_product import library_product
from .timing import cold_copies

NEURONS = 128
"""Neurons of a program behind a product of torch's."""


class Workload:
    """A product with weights, an activation and its consumer's buffers; copies of the weight keep L2 cold."""

    def __init__(
        self,
        product: Product,
        dtype: torch.dtype,
        device: torch.device,
        batch: int = 1,
        sparsity: float | None = None,
        list_block: int = 512,
    ) -> None:
        """sparsity: share of channels that every row drops, by threshold; None: the dense kernel."""
        self.product, self.batch, self.sparsity = product, batch, sparsity
        generator = torch.Generator(device).manual_seed(0)
        options = {"generator": generator, "device": device}
        scale = product.inner**-0.5
        self.copies = cold_copies(product.inner * product.out * dtype.itemsize, device)
        self.weights = [
            (torch.randn(product.inner, product.out, **options, dtype=torch.float32) * scale).to(dtype)
            for _ in range(self.copies)
        ]
        self.x = torch.randn(batch, product.inner, **options, dtype=torch.float32).to(dtype)
        # Rows are permutations of one another: each has exactly this share below its threshold.
        self.x = (
            self.x[:1]
            .expand(batch, -1)
            .gather(1, torch.rand(batch, product.inner, **options, dtype=torch.float32).argsort(1))
        )
        self._bound = self.x[0].float().abs().quantile(sparsity).item() if sparsity else 0.0
        self.activation = Activation(x=self.x)
        self._bounds: Tensor | None = None
        if sparsity is not None:
            self._bounds = torch.full(
                (len(product.widths), product.inner), self._bound, dtype=torch.float32, device=device
            )
            self.activation = Activation(ChannelLists.by_threshold(self.x, self._bounds, list_block))
        self._columns = Columns.side_by_side(*product.widths)
        self._workspace = Workspace(device)
        self._out = torch.zeros(batch, product.out, dtype=torch.float32, device=device)
        self._hidden_bounds = torch.full(
            (product.widths[0],), self._bound * 0.4, dtype=torch.float32, device=device
        )
        self._hidden = torch.zeros(1, product.widths[0], dtype=dtype, device=device)
        self._squares = torch.zeros(1, squares_of(product.out), dtype=torch.float32, device=device)
        self._buffers: dict[int | str, object] = {}

    def start(self, tile: Tile | CUDATile, copy: int = 0, pdl: bool = False) -> None:
        """Launch the product with its epilogue of a decode step; in CUDA C++ it makes its lists, too."""
        if isinstance(tile, CUDATile):
            self._start_cuda(tile, self.weights[copy], pdl)
            return
        weight, name = self.weights[copy], self.product.name
        common = {"workspace": self._workspace, "pdl": pdl}
        if name == "qkv":
            gemv(self.activation, weight, self._columns, self._out, tile, **common)
        elif name == "gate_up":
            lists, ffn = self._hidden_lists(tile), self.product.widths[0]
            neurons(self.activation, weight, ffn, tile, bounds=self._hidden_bounds, lists=lists, **common)
        else:
            squares = torch.empty(
                self.batch, tiles_of(self._columns, tile), dtype=torch.float32, device=weight.device
            )
            squares = self._buffers.setdefault(tile.columns, squares)
            gemv_onto(self.activation, weight, self._out, squares, tile, **common)

    def start_library(self, copy: int = 0) -> None:
        """Launch torch's product of the whole activation, and what follows it in a decode step."""
        weight, name = self.weights[copy], self.product.name
        sums = self._buffers.setdefault(
            "sums", torch.empty(self.batch, self.product.out, dtype=torch.float32, device=weight.device)
        )
        library_product(self.x, weight, sums)
        if name == "gate_up":
            x_out = torch.empty(self.batch, self.product.widths[0], dtype=weight.dtype, device=weight.device)
            neurons_of_sums(sums, weight, NEURONS, x_out=self._buffers.setdefault("x_out", x_out))
        elif name != "qkv":
            parts = squares_of_sums(self.product.out)
            squares = torch.empty(self.batch, parts, dtype=torch.float32, device=weight.device)
            onto_residual(sums, self._out, self._buffers.setdefault("squares", squares))

    def _start_cuda(self, tile: CUDATile, weight: Tensor, pdl: bool) -> None:
        source, name = Given(self.x), self.product.name
        if name == "qkv":
            cuda_product(source, self._bounds, weight, self.product.widths, self._out, tile, pdl=pdl)
        elif name == "gate_up":
            cuda_neurons(source, self._bounds, weight, self._hidden, tile, pdl=pdl)
        else:
            cuda_onto(source, self._bounds, weight, self._out, self._squares, tile, pdl=pdl)

    def start_partial(self, tile: Tile, copy: int = 0) -> None:
        """Launch the product alone, its partial sums left as they are."""
        splits = tile.splits(self.activation.lists, self.product.inner)
        partials = self._workspace.partials(splits * self.batch * self.product.out)
        shaped = partials[: splits * self.batch * self.product.out].view(splits, self.batch, -1)
        gemv_partials(self.activation, self.weights[copy], self._columns, shaped, tile)

    def dense_call(self) -> tuple[list[Tensor], Tensor]:
        """Weights (out, in) and x for `F.linear`, what the sparse kernel is compared with."""
        return [weight.T.contiguous() for weight in self.weights], self.x

    @property
    def bytes_read(self) -> float:
        """Bytes of weight that rows of kept channels take."""
        lists = self.activation.lists
        if lists is None:
            return float(self.product.inner * self.product.out * self.x.element_size())
        kept = lists.counts.sum(1).tolist()
        return float(sum(k * w for k, w in zip(kept, self.product.widths, strict=True)) * self.x.element_size())

    def error(self, tile: Tile | CUDATile) -> float:
        """Highest error relative to the highest exact value, against float64."""
        self._out.zero_()
        self.start(tile)
        x = self.x.double()
        x = x * (self.x.float().abs() >= self._bound) if self.sparsity is not None else x
        exact = x @ self.weights[0].double()
        if self.product.name != "gate_up":
            return ((self._out - exact).abs().max() / exact.abs().max()).item()
        gate, up = exact.split(self.product.widths, dim=1)
        exact = F.silu(gate) * up
        hidden = self._hidden if isinstance(tile, CUDATile) else self._hidden_lists(tile).dense()[0]
        found = hidden.double()
        return ((found - exact).abs() * (found != 0)).max().item() / exact.abs().max().item()

    def _hidden_lists(self, tile: Tile) -> ChannelLists:
        if tile.columns not in self._buffers:
            lists = ChannelLists.empty(1, self.batch, self.product.widths[0], tile.columns, self.x.device)
            self._buffers[tile.columns] = lists
        return self._buffers[tile.columns]

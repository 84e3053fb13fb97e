"""Launches of a site whose rows share a mask: what decides which channels are read, and CUDA C++ products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..cuda.batch_product import (
    MOST_ROWS,
    batch_neurons,
    batch_onto,
    batch_product,
    batch_tile_fits,
)
from ..cuda.product import cuda_neurons, cuda_onto, cuda_product, runs_cuda_products, suits_cuda_products
from ..cuda.product_tile import CUDATile
from ..decoder import DecoderShape, products_of
from ..triton.select import select_smallest
from ..triton.shared_lists import magnitudes_of, shared_lists
from .sites import Reads

OF_A_BATCH: dict[Callable[..., None], Callable[..., None]] = {
    cuda_product: batch_product,
    cuda_neurons: batch_neurons,
    cuda_onto: batch_onto,
}
"""Products of a batch by those of one row."""
FEW, MANY = 4, MOST_ROWS
TILES: dict[int, dict[str, CUDATile]] = {
    FEW: {
        "qkv": CUDATile(cluster=4, unroll=4, resident=3),
        "o": CUDATile(warps=4, cluster=8, unroll=6, resident=4),
        "gate_up": CUDATile(columns=128, cluster=3, unroll=4, resident=3),
        "down": CUDATile(columns=128, cluster=8, unroll=8, resident=2),
    },
    MANY: {
        "qkv": CUDATile(columns=128, cluster=5, unroll=6, resident=2),
        "o": CUDATile(warps=4, cluster=8, unroll=6, resident=4),
        "gate_up": CUDATile(columns=64, cluster=3, unroll=6, resident=2),
        "down": CUDATile(columns=128, cluster=8, unroll=6, resident=2),
    },
}
"""Tiles by rows, at most so many, and product; sums of several leave registers for fewer thread blocks."""


def batch_tiles(
    shape: DecoderShape, dtype: torch.dtype, device: torch.device, batch: int
) -> dict[str, CUDATile]:
    """Tiles by product of what CUDA C++ multiplies for rows that share a mask; none where Triton does."""
    if not 2 <= batch <= MOST_ROWS or not runs_cuda_products(device):
        return {}
    tiles = TILES[FEW if batch <= FEW else MANY]
    return {
        one.name: tiles[one.name]
        for one in products_of(shape)
        if suits_cuda_products(dtype, one.widths, one.inner)
        and one.inner % 8 == 0
        and batch_tile_fits(tiles[one.name], batch, one.inner, one.widths)
    }


def deciding(
    reads: Reads, residual: Tensor, norm: tuple[Tensor, Tensor, float] | None, by_list: bool, counted: bool
) -> Iterator[Callable[..., None]]:
    """Launches that find which channels the rows read together.

    norm: (squares, gain, ε) where x is the normalised residual stream, written now. by_list: a launch makes the
    lists, else the product does. counted: the launch before has left the magnitudes with x.
    """
    rule = reads.shared
    if norm is not None:
        yield partial(magnitudes_of, residual, rule, norm, x_out=reads.x)
    elif not counted:
        yield partial(magnitudes_of, reads.x, rule)
    if by_list:
        yield partial(shared_lists, reads.x, rule, reads.lists)
    else:
        yield partial(select_smallest, rule.magnitudes[None], rule.score_weights, rule.kept, rule.smallest)

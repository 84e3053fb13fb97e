"""Which launches of a decode step are CUDA C++: products that list their channels themselves, attention."""

from __future__ import annotations

import torch

from ..cuda.attention import CUDAAttentionTile, suits_cuda_attention
from ..cuda.product import CUDATile, runs_cuda_products, suits_cuda_products
from ..decoder import DecoderShape, Product, products_of
from .step_tiles import LONGEST_SHORT, Auto, Chosen, Never

TILES = {
    "qkv": (CUDATile(cluster=6, unroll=4, resident=5),),
    "o": (CUDATile(warps=4, cluster=8, unroll=6),),
    "gate_up": (
        CUDATile(columns=128, cluster=3, resident=3),
        CUDATile(columns=128, cluster=3, unroll=6, resident=4),
    ),
    "down": (CUDATile(cluster=8, unroll=3),),
}
"""Tiles by product; of each the first whose thread blocks all run at once. From sweeps of some hundred tiles in
a decode step, shapes of Llama-3.1-8B and Qwen2.5-7B, one H200."""
SHORT_ATTENTION = CUDAAttentionTile()
"""Up to LONGEST_SHORT slots: 2.3 µs at 205 of Llama-3.1-8B's shapes on one H100, behind a dependent launch; the
larger tile takes 3.1."""
ATTENTION = CUDAAttentionTile(warps=8)
"""Tile for longer contexts: one of ten within 6 % of the fastest at 2,048 and 8,192 slots there."""
LONGEST_CLUSTERED = 16384
"""Slots up to which one cluster a key-value head is taken; measured up to half of it."""


def chosen(
    cuda: Auto | Never | Chosen,
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    capacity: int,
) -> Chosen:
    """Tiles of the CUDA C++ launches of a step over a cache of so many slots."""
    if isinstance(cuda, Chosen):
        return cuda
    if isinstance(cuda, Never):
        return Chosen({})
    common = (shape, dtype, device, batch)
    return Chosen(cuda_tiles(*common), cuda_attention_tile(*common, capacity))


def cuda_tiles(
    shape: DecoderShape, dtype: torch.dtype, device: torch.device, batch: int
) -> dict[str, CUDATile]:
    """Tiles by product; none for a batch, and where the device or the model's sizes do not allow it."""
    if batch > 1 or not runs_cuda_products(device):
        return {}
    multiprocessors = multiprocessors_of(device)
    return {
        one.name: tile
        for one in products_of(shape)
        if suits_cuda_products(dtype, one.widths, one.inner)
        and (tile := tile_of(one, multiprocessors)).fits(one.inner, one.widths)
    }


def multiprocessors_of(device: torch.device) -> int:
    """Multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def tile_of(product: Product, multiprocessors: int) -> CUDATile:
    """The tile of a product on a device of so many multiprocessors."""
    *wanted, last = TILES[product.name]
    fitting = (tile for tile in wanted if tile.blocks(product.tiled_widths) <= tile.resident * multiprocessors)
    return next(fitting, last)


def cuda_attention_tile(
    shape: DecoderShape, dtype: torch.dtype, device: torch.device, batch: int, capacity: int
) -> CUDAAttentionTile | None:
    """The tile of attention over a cache of so many slots; None where a Triton kernel does it."""
    tile = SHORT_ATTENTION if capacity <= LONGEST_SHORT else ATTENTION
    suits = suits_cuda_attention(dtype, shape.head_dim) and tile.fits(
        shape.heads // shape.kv_heads, shape.head_dim
    )
    pays = batch == 1 and capacity <= LONGEST_CLUSTERED
    return tile if suits and pays and runs_cuda_products(device) else None

"""Which launches of a decode step are CUDA C++: products that list their channels themselves, attention."""

from __future__ import annotations

import torch

from ..cuda.attention import DirectAttentionTile, suits_direct_attention
from ..cuda.product import DirectTile, runs_direct_products, suits_direct_products
from ..decoder import DecoderShape, Product, products_of
from .step_tiles import LONGEST_SHORT

TILES = {
    "qkv": (DirectTile(cluster=6, unroll=4, resident=5),),
    "o": (DirectTile(warps=4, cluster=8, unroll=6),),
    "gate_up": (
        DirectTile(columns=128, cluster=3, resident=3),
        DirectTile(columns=128, cluster=3, unroll=6, resident=4),
    ),
    "down": (DirectTile(cluster=8, unroll=3),),
}
"""Tiles by product; of each the first whose thread blocks all run at once. From sweeps of some hundred tiles in
a decode step, shapes of Llama-3.1-8B and Qwen2.5-7B, one H200."""
SHORT_ATTENTION = DirectAttentionTile()
"""Up to LONGEST_SHORT slots: 2.3 µs at 205 of Llama-3.1-8B's shapes on one H100, behind a dependent launch; the
larger tile takes 3.1."""
ATTENTION = DirectAttentionTile(warps=8)
"""Tile for longer contexts: one of ten within 6 % of the fastest at 2,048 and 8,192 slots there."""
LONGEST_DIRECT = 16384
"""Slots up to which one cluster a key-value head is taken; measured up to half of it."""


def direct_tiles(
    shape: DecoderShape, dtype: torch.dtype, device: torch.device, batch: int
) -> dict[str, DirectTile]:
    """Tiles by product; none for a batch, and where the device or the model's sizes do not allow it."""
    if batch > 1 or not runs_direct_products(device):
        return {}
    multiprocessors = multiprocessors_of(device)
    return {
        one.name: tile
        for one in products_of(shape)
        if suits_direct_products(dtype, one.widths, one.inner)
        and (tile := tile_of(one, multiprocessors)).fits(one.inner, one.widths)
    }


def multiprocessors_of(device: torch.device) -> int:
    """Multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def tile_of(product: Product, multiprocessors: int) -> DirectTile:
    """The tile of a product on a device of so many multiprocessors."""
    *wanted, last = TILES[product.name]
    fitting = (tile for tile in wanted if tile.blocks(product.tiled_widths) <= tile.resident * multiprocessors)
    return next(fitting, last)


def direct_attention_tile(
    shape: DecoderShape, dtype: torch.dtype, device: torch.device, batch: int, capacity: int
) -> DirectAttentionTile | None:
    """The tile of attention over a cache of so many slots; None where a Triton kernel does it."""
    tile = SHORT_ATTENTION if capacity <= LONGEST_SHORT else ATTENTION
    suits = suits_direct_attention(dtype, shape.head_dim) and tile.fits(
        shape.heads // shape.kv_heads, shape.head_dim
    )
    pays = batch == 1 and capacity <= LONGEST_DIRECT
    return tile if suits and pays and runs_direct_products(device) else None

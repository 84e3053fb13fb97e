"""Tiles of every launch of a decode step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from .decoder_weights import DecoderShape
from .errors import KernelError
from .gemv_tiles import Tile
from .static_cache import StaticCache
from .triton_attention import AttentionTile, attention, attention_parts
from .triton_launch import blocks_of
from .triton_short_attention import ShortAttentionTile, short_attention

PRODUCTS = ("qkv", "o", "gate_up", "gate", "down", "right", "left")
"""Launches with a product; `right` and `left` are a low-rank path's."""
LONGEST_SHORT = 512
"""Slots up to which one program a query head is faster than a context that many programs share."""


@dataclass(frozen=True)
class StepTiles:
    """Tiles by launch, for products over lists and over whole activations."""

    listed: dict[str, Tile]
    dense: dict[str, Tile]
    up_rows: Tile = field(default_factory=lambda: Tile(columns=512, channels=8, warps=4, stages=2))
    attention: AttentionTile | ShortAttentionTile = field(default_factory=AttentionTile)
    list_block: int = 512
    """Channels of one list block after RMSNorm; a power of two."""
    consumer_adds_qkv: bool = False
    """Attention adds the partial sums of q, k and v itself, instead of the last program of each tile."""

    def __post_init__(self) -> None:
        for kind, tiles in (("listed", self.listed), ("dense", self.dense)):
            if missing := [name for name in PRODUCTS if name not in tiles]:
                raise KernelError(f"no {kind} tile for {', '.join(missing)}")

    def list_blocks(self, shape: DecoderShape) -> dict[str, int]:
        """Channels of one list block of what each product reads, by product."""
        return {
            "qkv": self.list_block,
            "o": self.attention.list_block(shape),
            "gate_up": self.list_block,
            "down": self.listed["gate_up"].columns,
        }

    def attention_over(self, cache: StaticCache, heads: int) -> Callable[..., None]:
        """The attention that these tiles are for, with its scratch: takes sums, bias, cache, block, window."""
        tile = self.attention
        if isinstance(tile, ShortAttentionTile):
            return partial(short_attention, tile=tile)
        device = cache.keys.device
        parts = torch.empty(attention_parts(cache, heads, tile), device=device)
        counters = torch.zeros(cache.keys.shape[2], dtype=torch.int32, device=device)
        return partial(attention, parts=parts, counters=counters, tile=tile)

    @classmethod
    def uniform(cls, tile: Tile, **others: object) -> StepTiles:
        """The same tile for every product."""
        return cls(dict.fromkeys(PRODUCTS, tile), dict.fromkeys(PRODUCTS, tile), **others)


def default_tiles(shape: DecoderShape, batch: int = 1, capacity: int = 2048) -> StepTiles:
    """Tiles that suit a large GPU without tuning: hundreds of programs a launch; capacity: slots of the cache.

    From sweeps on one H100 at Llama-3.1-8B shapes: narrow tiles of one warp and many channels a step.
    """
    inner = {"qkv": shape.hidden, "gate_up": shape.hidden, "gate": shape.hidden, "right": shape.hidden}
    inner |= {"o": shape.attention_width, "down": shape.ffn, "left": 256}
    out = {"o": shape.hidden, "down": shape.hidden, "left": shape.hidden, "right": 256, "gate": shape.ffn}
    out |= {"qkv": shape.attention_width + 2 * shape.kv_width, "gate_up": shape.ffn}
    dense, listed = {}, {}
    for name in PRODUCTS:
        columns = 512
        while columns > 64 and blocks_of(out[name], columns) * blocks_of(inner[name], 256) < 300:
            columns //= 2
        channels, warps = (8, 2) if batch == 1 else (16, 4)
        dense[name] = Tile(columns, channels, share=256, warps=warps, stages=3)
        # Lists behind RMSNorm have blocks of 512 channels, o's one a head, down's one a tile of gate and up.
        group = {"o": 2, "down": 8, "gate_up": 2}.get(name, 1)
        listed[name] = Tile(64, 32, group=group, warps=1, stages=4) if batch == 1 else dense[name]
    if batch == 1 and capacity <= LONGEST_SHORT:
        return StepTiles(listed, dense, attention=ShortAttentionTile())
    long = capacity > 2048
    return StepTiles(listed, dense, attention=AttentionTile(64 if long else 32, 32 if long else 16))

"""Tiles of every launch of a decode step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from ..cuda.attention import CUDAAttentionTile, cuda_attention
from ..cuda.product import CUDATile
from ..errors import KernelError
from ..model.decoder import DecoderShape, Product
from ..model.static_cache import StaticCache
from ..triton.attention.general import AttentionTile, attention, scratch_of
from ..triton.attention.selected import selected_attention
from ..triton.attention.short import ShortAttentionTile, short_attention
from ..triton.gemv_tiles import Tile
from ..triton.launch import blocks_of, power_of_two

PRODUCTS = ("qkv", "o", "gate_up", "gate", "down", "right", "left")
"""Launches with a product; `right` and `left` are a low-rank path's."""
LONGEST_SHORT = 512
"""Slots up to which one program a query head is faster than a context that many programs share."""


@dataclass(frozen=True)
class Auto:
    """CUDA C++ with tiles that suit the device, where the device runs it; see `cuda_tiles.chosen`."""


@dataclass(frozen=True)
class Never:
    """Triton alone."""


@dataclass(frozen=True)
class Chosen:
    """CUDA C++ wherever there is a tile for it."""

    products: dict[str, CUDATile]
    """Tiles by product (qkv, o, gate_up, down) of those that list their channels themselves, where thresholds
    alone or top-k alone decide."""
    attention: CUDAAttentionTile | None = None
    """Tile of the attention that takes over where the whole activation is written; None: Triton's always."""
    head_blocks: int = 0
    """Thread blocks of the launch that computes final norm and a head in half precision; 0: launches apart."""
    selecting: dict[int, CUDAAttentionTile] = field(default_factory=dict)
    """Tiles of attention over chosen key-value groups by how many a row looks at; `attention` for others."""
    shared_top_k: bool = False
    """Whether the smallest score that rows keep together is found by a launch of its own, not by every program
    that lists channels."""


OVER_SHARED_LISTS, SHARED_PROGRAMS = Tile(64, 64, warps=4, stages=7), 528
"""Tile of products over lists that a batch shares, and most programs of one: four for each multiprocessor of an
H200. Narrow tiles leave little for the last program of a tile to add up; rows of the weight and of x are copied
ahead three steps. They were not swept.
"""
FASTER_IN_TORCH = frozenset({"qkv", "gate_up", "down"})
"""Dense products of 4 to 32 rows that torch computes faster than these tiles: 1.02 to 1.9 times on an H200."""


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
    library: frozenset[str] = frozenset()
    """Products that torch computes where they read all of an activation."""
    cuda: Auto | Never | Chosen = field(default_factory=Auto)
    """Which launches are CUDA C++."""

    def __post_init__(self) -> None:
        for kind, tiles in (("listed", self.listed), ("dense", self.dense)):
            if missing := [name for name in PRODUCTS if name not in tiles]:
                raise KernelError(f"no {kind} tile for {', '.join(missing)}")

    def shared_by(self, product: Product) -> Tile:
        """Tile of a product over lists that a batch shares, each one block: programs take equal parts of it."""
        tiles = sum(blocks_of(width, OVER_SHARED_LISTS.columns) for width in product.tiled_widths)
        parts = min(max(1, SHARED_PROGRAMS // tiles), blocks_of(product.inner, 4 * OVER_SHARED_LISTS.channels))
        return replace(OVER_SHARED_LISTS, parts=parts)

    def list_blocks(self, shape: DecoderShape, batch: int = 1) -> dict[str, int]:
        """Channels of one list block of what each product reads, by product.

        Attention lists the channels of one row; those of a batch are listed from what it wrote.
        """
        return {
            "qkv": self.list_block,
            "o": self.attention.list_block(shape) if batch == 1 else self.list_block,
            "gate_up": self.list_block,
            "down": self.listed["gate_up"].columns,
        }

    def attention_onto(self, cache: StaticCache, heads: int) -> Callable[..., None]:
        """Attention like `attention_over`, for what writes the whole activation, x_out."""
        if isinstance(self.cuda, Chosen) and self.cuda.attention is not None:
            return partial(cuda_attention, tile=self.cuda.attention)
        return self.attention_over(cache, heads)

    def attention_over(self, cache: StaticCache, heads: int) -> Callable[..., None]:
        """The attention that these tiles are for, with its scratch: takes sums, bias, cache, block, window."""
        tile = self.attention
        if isinstance(tile, ShortAttentionTile):
            return partial(short_attention, tile=tile)
        return partial(attention, **scratch_of(cache, heads, tile), tile=tile)

    def selected_attention(self, cache: StaticCache, heads: int, kept: int) -> Callable[..., None]:
        """Attention over so many chosen groups, with its scratch: takes a selection beside what others take."""
        if isinstance(self.cuda, Chosen) and self.cuda.attention is not None:
            return partial(cuda_attention, tile=self.cuda.selecting.get(kept, self.cuda.attention))
        tile = self.attention if isinstance(self.attention, AttentionTile) else AttentionTile()
        return partial(selected_attention, **scratch_of(cache, heads, tile), tile=tile)

    @classmethod
    def uniform(cls, tile: Tile, **others: object) -> StepTiles:
        """The same tile for every product."""
        return cls(dict.fromkeys(PRODUCTS, tile), dict.fromkeys(PRODUCTS, tile), **others)


def default_tiles(shape: DecoderShape, batch: int = 1, capacity: int = 2048) -> StepTiles:
    """Tiles that suit a large GPU without tuning: hundreds of programs a launch; capacity: slots of the cache.

    From sweeps inside a decode step of Llama-3.1-8B's shapes on one H100: narrow tiles, many channels a step.
    """
    dense = _dense_tiles(shape, batch)
    listed = dense
    if batch == 1:
        # Lists behind RMSNorm have blocks of 512 channels, o's one a head, down's one a tile of gate and up.
        tile = Tile(64, 32, warps=1, stages=3)
        listed = dict.fromkeys(PRODUCTS, tile) | {
            "o": replace(tile, group=2, stages=5),
            "gate_up": replace(tile, group=2, stages=4),
            "gate": replace(tile, group=2, stages=4),
            "down": replace(tile, group=8),
        }
    if batch == 1 and capacity <= LONGEST_SHORT:
        return StepTiles(listed, dense, attention=ShortAttentionTile())
    long = capacity > 2048
    attention = AttentionTile(64 if long else 32, 32 if long else 16)
    return StepTiles(listed, dense, attention=attention, library=FASTER_IN_TORCH if batch >= 4 else frozenset())


def _dense_tiles(shape: DecoderShape, batch: int) -> dict[str, Tile]:
    if batch == 1:
        tiles = dict.fromkeys(PRODUCTS, Tile(64, 32, share=256, warps=1, stages=3))
        wide = Tile(128, 32, share=512, warps=2, stages=2)
        return tiles | {"gate_up": wide, "gate": wide, "down": Tile(64, 64, share=1024, warps=2, stages=2)}
    inner = {"o": shape.attention_width, "down": shape.ffn, "left": 256}
    out = {
        "qkv": shape.attention_width + 2 * shape.kv_width,
        "gate_up": shape.ffn,
        "gate": shape.ffn,
        "right": 256,
    }
    if batch > 8:
        # Sums of many rows are many registers, and many bytes between the programs that share a tile.
        tile = Tile(max(64, 2048 // power_of_two(batch)), 32, share=512, warps=4, stages=4)
        return dict.fromkeys(PRODUCTS, tile)
    tiles = {}
    for name in PRODUCTS:
        columns = 512
        programs = blocks_of(inner.get(name, shape.hidden), 256)
        while columns > 64 and blocks_of(out.get(name, shape.hidden), columns) * programs < 300:
            columns //= 2
        tiles[name] = Tile(columns, 16, share=256, warps=4, stages=3)
    return tiles

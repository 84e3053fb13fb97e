"""Tiles of every launch of a decode step."""

from __future__ import annotations

from dataclasses import dataclass, field

from .decoder_weights import DecoderShape
from .errors import KernelError
from .gemv_tiles import Tile
from .triton_attention import AttentionTile
from .triton_launch import blocks_of

PRODUCTS = ("qkv", "o", "gate_up", "gate", "down", "right", "left")
"""Launches with a product; `right` and `left` are a low-rank path's."""


@dataclass(frozen=True)
class StepTiles:
    """Tiles by launch, for products over lists and over whole activations."""

    listed: dict[str, Tile]
    dense: dict[str, Tile]
    up_rows: Tile = field(default_factory=lambda: Tile(columns=512, channels=8, warps=4, stages=2))
    attention: AttentionTile = field(default_factory=AttentionTile)
    list_block: int = 256
    """Channels of one list block after RMSNorm; a power of two."""
    consumer_adds_qkv: bool = False
    """Attention adds the partial sums of q, k and v itself, instead of the last program of each tile."""

    def __post_init__(self) -> None:
        for kind, tiles in (("listed", self.listed), ("dense", self.dense)):
            if missing := [name for name in PRODUCTS if name not in tiles]:
                raise KernelError(f"no {kind} tile for {', '.join(missing)}")

    @classmethod
    def uniform(cls, tile: Tile, **others: object) -> StepTiles:
        """The same tile for every product."""
        return cls(dict.fromkeys(PRODUCTS, tile), dict.fromkeys(PRODUCTS, tile), **others)


def default_tiles(shape: DecoderShape, batch: int = 1, capacity: int = 2048) -> StepTiles:
    """Tiles that suit a large GPU without tuning: about 300 programs a launch; `capacity`: slots of the cache.

    From sweeps on one H200 at Llama-3.1-8B shapes: one list block of 256 channels a program, 8 or 16 channels a
    step, few warps.
    """
    inner = {"qkv": shape.hidden, "gate_up": shape.hidden, "gate": shape.hidden, "right": shape.hidden}
    inner |= {"o": shape.attention_width, "down": shape.ffn, "left": 256}
    out = {"o": shape.hidden, "down": shape.hidden, "left": shape.hidden, "right": 256, "gate": shape.ffn}
    out |= {"qkv": shape.attention_width + 2 * shape.kv_width, "gate_up": shape.ffn}
    channels = 8 if batch == 1 else 16
    tiles = {}
    for name in PRODUCTS:
        columns = 512
        while columns > 64 and blocks_of(out[name], columns) * blocks_of(inner[name], 256) < 300:
            columns //= 2
        tiles[name] = Tile(columns, channels, share=256, warps=2 if batch == 1 else 4, stages=3)
    # o's list blocks are as wide as a group of heads: two programs share one.
    wide = shape.attention_width // shape.kv_heads >= 512
    listed = {**tiles, "o": Tile(tiles["o"].columns, channels, parts=2 if wide else 1, warps=2, stages=3)}
    long = capacity > 2048
    return StepTiles(listed, tiles, attention=AttentionTile(64 if long else 32, 32 if long else 16))

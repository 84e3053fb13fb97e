"""Products of one token (or a few) with weights stored `(in, out)`: only the rows of kept channels are read.

A program owns a tile of columns and a share of the channels. Column tiles never mix two projections, since each
projection has its own list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import KernelError
from .channel_lists import MAX_BATCH, ChannelLists
from .epilogue import added, arrived_last, store_residual, store_sum
from .gemv_tiles import Tile, Workspace
from .launch import blocks_of, launch
from .product import share_of_product, store_partial


@triton.jit
def one_of(projection, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """A, B or C by projection."""
    return tl.where(projection == 0, A, tl.where(projection == 1, B, C))


@triton.jit
def finish(total, out, squares, bias, addend, tile, column, to, inside, OUT_ROW: tl.constexpr,
           TILES: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, RESIDUAL: tl.constexpr):  # fmt: skip
    """Store the sum, or add it to the residual stream."""
    if RESIDUAL:
        store_residual(total, out, squares, bias, addend, tile, column, inside, OUT_ROW, TILES, BATCH, ROWS)
    else:
        store_sum(total, out, bias, addend, column, to, inside, OUT_ROW, BATCH, ROWS)


@triton.jit
def gemv_kernel(
    weight, x, index, values, counts, partials, counters, out, squares, bias, addend,
    W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr,
    TILES: tl.constexpr, COLUMNS: tl.constexpr, OUT_ROW: tl.constexpr, EVEN: tl.constexpr,
    ALIGNED: tl.constexpr, RESIDUAL: tl.constexpr, PARTIAL: tl.constexpr,
    IN: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr,
    ACC_ROWS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
    PARTS: tl.constexpr, SHARE: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
    LISTED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One column tile, one split; projections start at tiles 0, T1 and T2, at columns S of the weight and D of
    out, and are W columns wide.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    projection = (tile >= T1).to(tl.int32) + (tile >= T2).to(tl.int32)
    begin = (tile - one_of(projection, 0, T1, T2)) * TILE
    local = begin + tl.arange(0, TILE)
    inside = local < one_of(projection, W0, W1, W2)
    start = begin + one_of(projection, S0, S1, S2)
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    column = start + tl.arange(0, TILE)
    if PDL:
        # What follows is attention or RMSNorm, few programs that may wait beside this one's; only a low-rank
        # path has a product here.
        tl.extra.cuda.gdc_launch_dependents()
    product = share_of_product(weight, x, index, values, counts, projection, split, column, inside,
                               IN, COLUMNS, BLOCK, BLOCKS, BATCH, ACC_ROWS, TILE, CHANNELS, GROUP, PARTS,
                               SHARE, STAGES, EVEN, LISTED, PDL)  # fmt: skip
    to = local + one_of(projection, D0, D1, D2)
    if PARTIAL:
        store_partial(product, out, split, column, inside, COLUMNS, BATCH, ACC_ROWS)
    elif SPLITS == 1:
        finish(product, out, squares, bias, addend, tile, column, to, inside, OUT_ROW, TILES, BATCH,
               ACC_ROWS, RESIDUAL)  # fmt: skip
    else:
        store_partial(product, partials, split, column, inside, COLUMNS, BATCH, ACC_ROWS)
        if arrived_last(counters, tile, SPLITS):
            total = added(partials, column, inside, COLUMNS, SPLITS, BATCH, ROWS)
            finish(total, out, squares, bias, addend, tile, column, to, inside, OUT_ROW, TILES, BATCH,
                   ROWS, RESIDUAL)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Up to three projections in one weight: where each starts, its width, and where its result starts."""

    starts: tuple[int, ...]
    widths: tuple[int, ...]
    destinations: tuple[int, ...]

    @classmethod
    def side_by_side(cls, *widths: int) -> Columns:
        """Projections packed without gaps, and their results likewise."""
        starts = tuple(sum(widths[:place]) for place in range(len(widths)))
        return cls(starts, widths, starts)

    def meta(self, tile: int, columns: int) -> dict[str, object]:
        """Constants of the kernel for tiles of this many columns in a weight of `columns`."""
        counts = [blocks_of(width, tile) for width in self.widths]
        tiles = sum(counts)
        bounds = [counts[0], counts[0] + counts[1] if len(counts) > 1 else tiles]
        parts = {"W": self.widths, "S": self.starts, "D": self.destinations}
        return {
            **{f"{name}{place}": value for name, of in parts.items() for place, value in enumerate(_three(of))},
            "T1": bounds[0],
            "T2": bounds[1],
            "TILES": tiles,
            "EVEN": all(width % tile == 0 for width in self.widths),
            "ALIGNED": columns % 16 == 0 and tile % 16 == 0 and all(start % 16 == 0 for start in self.starts),
        }


def tiles_of(columns: Columns, tile: Tile) -> int:
    """Column tiles, the parts in which a residual stream's sum of squares is left."""
    return sum(blocks_of(width, tile.columns) for width in columns.widths)


@dataclass(frozen=True)
class Activation:
    """Input of a product: lists of kept channels, or x (batch, channels) in the weight's dtype or float32.

    Of several rows in float32 the products round x to the weight's.
    """

    lists: ChannelLists | None = None
    x: Tensor | None = None

    @property
    def batch(self) -> int:
        """Rows."""
        return self.lists.batch if self.lists is not None else self.x.shape[0]

    @property
    def channels(self) -> int:
        """Channels, kept or not."""
        return self.lists.channels if self.lists is not None else self.x.shape[1]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """x, index, values, counts, as kernels take them."""
        lists = self.lists
        return (
            (self.x, lists.index, lists.values, lists.counts)
            if lists is not None
            else (self.x, None, None, None)
        )


def gemv(
    activation: Activation,
    weight: Tensor,
    columns: Columns,
    out: Tensor,
    tile: Tile,
    workspace: Workspace,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Out (batch, ...) = x · weight (in, columns) + bias + addend, by the lists of x; rounded to out's dtype.

    bias (columns,) as the weight's columns, addend as out. Raises KernelError for tensors that do not fit.
    """
    _check(activation, weight, columns)
    _start(activation, weight, columns, out, None, tile, workspace, bias, addend, out.stride(-2), pdl)


def gemv_onto(
    activation: Activation,
    weight: Tensor,
    residual: Tensor,
    squares: Tensor,
    tile: Tile,
    workspace: Workspace,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Add x · weight (in, out) + bias + addend to residual (batch, out) float32.

    squares (batch, tiles) are those of its tiles' columns.
    """
    columns = Columns.side_by_side(weight.shape[1])
    _check(activation, weight, columns)
    expected = (activation.batch, tiles_of(columns, tile))
    if tuple(squares.shape) != expected or residual.shape != (activation.batch, weight.shape[1]):
        raise KernelError(
            f"squares are {tuple(squares.shape)}, expected {expected}; x is {tuple(residual.shape)}"
        )
    _start(activation, weight, columns, residual, squares, tile, workspace, bias, addend, weight.shape[1], pdl)


def gemv_partials(
    activation: Activation, weight: Tensor, columns: Columns, partials: Tensor, tile: Tile, pdl: bool = False
) -> None:
    """Partials (splits, batch, out) float32, left for the consumer to add."""
    _check(activation, weight, columns)
    expected = (tile.splits(activation.lists, activation.channels), activation.batch, weight.shape[1])
    if tuple(partials.shape) != expected:
        raise KernelError(f"partial sums are {tuple(partials.shape)}, expected {expected}")
    _start(activation, weight, columns, partials, None, tile, None, None, None, weight.shape[1], pdl)


def _start(
    activation: Activation,
    weight: Tensor,
    columns: Columns,
    out: Tensor,
    squares: Tensor | None,
    tile: Tile,
    workspace: Workspace | None,
    bias: Tensor | None,
    addend: Tensor | None,
    out_row: int,
    pdl: bool,
) -> None:
    batch, total = activation.batch, weight.shape[1]
    meta = {**tile.meta(activation.lists, activation.channels, batch), **columns.meta(tile.columns, total)}
    shared = workspace is not None and meta["SPLITS"] > 1
    launch(
        gemv_kernel,
        (meta["TILES"], meta["SPLITS"]),
        weight, *activation.tensors,
        workspace.partials(meta["SPLITS"] * batch * total) if shared else None,
        workspace.counters(meta["TILES"]) if shared else None,
        out, squares, bias, addend,
        COLUMNS=total, OUT_ROW=out_row, RESIDUAL=squares is not None, PARTIAL=workspace is None,
        **meta, warps=tile.warps, pdl=pdl,
    )  # fmt: skip


def _three(values: tuple[int, ...]) -> tuple[int, ...]:
    """Filled up to the three that the kernel takes."""
    return (*values, *[0] * (3 - len(values)))


def _check(activation: Activation, weight: Tensor, columns: Columns) -> None:
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise KernelError(f"weights of {weight.dtype} are not supported; take bfloat16, float16 or float32")
    if weight.ndim != 2 or not weight.is_contiguous():
        raise KernelError("the weight must be a contiguous (in, out) matrix; see decoder_weights.pack")
    if weight.shape[0] < activation.channels or weight.numel() >= 2**31:
        raise KernelError(
            f"a weight {tuple(weight.shape)} cannot be multiplied by {activation.channels} channels"
        )
    if any(s + w > weight.shape[1] for s, w in zip(columns.starts, columns.widths, strict=True)):
        raise KernelError(f"projections {columns.widths} do not fit into {weight.shape[1]} columns")
    lists = activation.lists
    if not 1 <= activation.batch <= MAX_BATCH:
        raise KernelError(f"products take batches of 1 to {MAX_BATCH}, not {activation.batch}; split the batch")
    if lists is not None and lists.projections != len(columns.widths):
        raise KernelError(f"{lists.projections} lists for {len(columns.widths)} projections")
    if lists is None and activation.x.dtype not in (weight.dtype, torch.float32):
        raise KernelError(f"x is {activation.x.dtype}, the weight {weight.dtype}; x has its dtype, or float32")
    if weight.device != (activation.x if lists is None else lists.index).device:
        raise KernelError(f"the weight is on {weight.device}, the activation is not; move both to one device")

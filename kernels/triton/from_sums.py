"""What follows a dense product of a library: activation and product of gate and up, the residual stream."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..errors import KernelError
from .channel_lists import ChannelLists, check_written, written_to
from .epilogue import store_residual
from .launch import blocks_of, check_tensor, launch, power_of_two, warps_of
from .neurons import store_hidden

COLUMNS = 128
"""Columns of the residual stream that a program adds."""


@triton.jit
def neurons_of_sums_kernel(
    sums, like, x_out, bounds, to_index, to_values, to_counts,
    WIDTH: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    COMPACT: tl.constexpr, RELU: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of neurons of all rows; gate's columns come first in the sums, up's WIDTH later."""
    tile = tl.program_id(0)
    column = tile * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    row = tl.arange(0, ROWS)
    live = inside[None, :] & (row[:, None] < BATCH)
    at = sums + row[:, None] * 2 * WIDTH + column[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
    gate = tl.load(at, mask=live, other=0.0)
    up = tl.load(at + WIDTH, mask=live, other=0.0)
    store_hidden(gate, up, like, None, None, x_out, bounds, to_index, to_values, to_counts, tile, column,
                 inside, True, COMPACT, RELU, WIDTH, TILES, BATCH, ROWS, TILE)  # fmt: skip


@triton.jit
def onto_residual_kernel(
    sums, residual, squares,
    WIDTH: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    REPLACING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of columns of all rows."""
    tile = tl.program_id(0)
    column = tile * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    row = tl.arange(0, ROWS)
    live = inside[None, :] & (row[:, None] < BATCH)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.load(sums + row[:, None] * WIDTH + column[None, :], mask=live, other=0.0)
    if REPLACING:
        tl.store(residual + row[:, None] * WIDTH + column[None, :], total, mask=live)
        tl.store(squares + row * TILES + tile, tl.sum(total * total, 1), mask=row < BATCH)
    else:
        store_residual(total, residual, squares, None, None, tile, column, inside, WIDTH, TILES, BATCH, ROWS)


def neurons_of_sums(
    sums: Tensor,
    like: Tensor,
    columns: int,
    *,
    bounds: Tensor | None = None,
    lists: ChannelLists | None = None,
    x_out: Tensor | None = None,
    nonlinearity: str = "silu",
    pdl: bool = False,
) -> None:
    """Activated gate times up of sums (batch, 2·ffn) float32, in the dtype of `like`: as a list, or all of it.

    columns: neurons of a program, and of a list block. Else as `neurons`.
    """
    batch, ffn = sums.shape[0], sums.shape[1] // 2
    tiles = blocks_of(ffn, columns)
    check_tensor("sums", sums, (batch, 2 * ffn))
    check_written(bounds, lists, x_out)
    if lists is not None and (lists.block, lists.blocks, lists.channels) != (columns, tiles, ffn):
        raise KernelError(f"the list has blocks of {lists.block}, a program {columns} columns; make them equal")
    launch(
        neurons_of_sums_kernel,
        (tiles,),
        sums, like, x_out, bounds,
        *written_to(lists),
        WIDTH=ffn, TILES=tiles, BATCH=batch, ROWS=power_of_two(batch), TILE=columns, COMPACT=lists is not None,
        RELU=nonlinearity == "relu",
        warps=warps_of(batch), pdl=pdl,
    )  # fmt: skip


def onto_residual(
    sums: Tensor, residual: Tensor, squares: Tensor, replacing: bool = False, pdl: bool = False
) -> None:
    """Add sums (batch, channels) float32 to residual, or put them in its place; squares follow.

    squares: (batch, `squares_of_sums`) of its parts.
    """
    batch, width = residual.shape
    check_tensor("sums", sums, (batch, width))
    check_tensor("squares", squares, (batch, squares_of_sums(width)))
    launch(
        onto_residual_kernel,
        (squares_of_sums(width),),
        sums, residual, squares,
        WIDTH=width, TILES=squares_of_sums(width), BATCH=batch, ROWS=power_of_two(batch), TILE=COLUMNS,
        REPLACING=replacing, warps=warps_of(batch), pdl=pdl,
    )  # fmt: skip


def squares_of_sums(width: int) -> int:
    """Parts in which `onto_residual` leaves the sum of squares of a stream of so many channels."""
    return blocks_of(width, COLUMNS)

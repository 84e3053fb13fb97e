"""The MLP's first half: gate and up of the same neurons in one program, and what down reads of them.

The last program of a tile of neurons applies SiLU or ReLU and the product, and appends the kept ones to down's
list.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..errors import KernelError
from .channel_lists import ChannelLists, check_written, written_to
from .compact import rounded, store_list
from .epilogue import added, arrived_last, silu
from .gemv import Activation
from .gemv_tiles import Tile, Workspace
from .launch import blocks_of, launch, power_of_two
from .product import share_of_product, store_partial


@triton.jit
def store_hidden(gate, up, like, bias, addend, x_out, bounds, index, values, counts, tile, column, inside,
                 PAIRED: tl.constexpr, COMPACT: tl.constexpr, RELU: tl.constexpr,
                 WIDTH: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr,
                 TILE: tl.constexpr):  # fmt: skip
    """Activated gate times up, or alone, rounded like the model does: listed, or all of it in x_out."""
    row = tl.arange(0, ROWS)
    live = inside[None, :] & (row[:, None] < BATCH)
    if bias is not None:
        gate += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        if PAIRED:
            up += tl.load(bias + WIDTH + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if addend is not None:
        at = addend + row[:, None] * (2 * WIDTH if PAIRED else WIDTH) + column[None, :]
        gate += tl.load(at, mask=live, other=0.0)
        if PAIRED:
            up += tl.load(at + WIDTH, mask=live, other=0.0)
    x = rounded(gate, like)
    x = tl.where(x <= 0.0, 0.0, x) if RELU else rounded(silu(x), like)
    if PAIRED:
        x = rounded(x * rounded(up, like), like)
    if COMPACT:
        bound = tl.load(bounds + column, mask=inside, other=0.0)[None, :]
        kept = tl.where(live, 1 - (tl.abs(x) < bound).to(tl.int32), 0)
        store_list(index, values, counts, 0, tile, column, x, kept,
                   CAPACITY=TILES * TILE, BLOCKS=TILES, BLOCK=TILE, BATCH=BATCH, ROWS=ROWS)  # fmt: skip
    else:
        at = x_out + row[:, None] * WIDTH + column[None, :]
        tl.store(at, x.to(x_out.dtype.element_ty), mask=live)


@triton.jit
def neurons_kernel(
    weight, x, index, values, counts, partials, counters, bias, addend, x_out, bounds, to_index, to_values,
    to_counts,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr, EVEN: tl.constexpr, PAIRED: tl.constexpr,
    COMPACT: tl.constexpr, RELU: tl.constexpr,
    IN: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr,
    ACC_ROWS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
    PARTS: tl.constexpr, SHARE: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
    LISTED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of neurons, one split; gate's columns come first in the weight, up's WIDTH later."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    column = tile * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    gate = share_of_product(weight, x, index, values, counts, 0, split, column, inside,
                            IN, COLUMNS, BLOCK, BLOCKS, BATCH, ACC_ROWS, TILE, CHANNELS, GROUP, PARTS,
                            SHARE, STAGES, EVEN, LISTED, PDL)  # fmt: skip
    up = gate
    if PAIRED:
        up = share_of_product(weight + WIDTH, x, index, values, counts, 1, split, column, inside,
                              IN, COLUMNS, BLOCK, BLOCKS, BATCH, ACC_ROWS, TILE, CHANNELS, GROUP, PARTS,
                              SHARE, STAGES, EVEN, LISTED, False)  # fmt: skip
    if PDL:
        # Only now: the programs of down, started earlier, would crowd the multiprocessors that are free first.
        tl.extra.cuda.gdc_launch_dependents()
    if SPLITS == 1:
        store_hidden(gate, up, weight, bias, addend, x_out, bounds, to_index, to_values, to_counts, tile,
                     column, inside, PAIRED, COMPACT, RELU, WIDTH, TILES, BATCH, ACC_ROWS, TILE)  # fmt: skip
    else:
        store_partial(gate, partials, split, column, inside, COLUMNS, BATCH, ACC_ROWS)
        if PAIRED:
            store_partial(up, partials + WIDTH, split, column, inside, COLUMNS, BATCH, ACC_ROWS)
        if arrived_last(counters, tile, SPLITS):
            gates = added(partials, column, inside, COLUMNS, SPLITS, BATCH, ROWS)
            ups = gates
            if PAIRED:
                ups = added(partials + WIDTH, column, inside, COLUMNS, SPLITS, BATCH, ROWS)
            store_hidden(gates, ups, weight, bias, addend, x_out, bounds, to_index, to_values, to_counts,
                         tile, column, inside, PAIRED, COMPACT, RELU, WIDTH, TILES, BATCH, ROWS,
                         TILE)  # fmt: skip


def neurons(
    activation: Activation,
    weight: Tensor,
    ffn: int,
    tile: Tile,
    workspace: Workspace,
    *,
    bounds: Tensor | None = None,
    lists: ChannelLists | None = None,
    x_out: Tensor | None = None,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    nonlinearity: str = "silu",
    pdl: bool = False,
) -> None:
    """Activated gate times up of weight (in, 2·ffn), or alone of weight (in, ffn): as a list, or all of it.

    With `bounds` (ffn,) the neurons with |x| ≥ bound go to `lists`, whose blocks are the tiles of columns; else
    x_out (batch, ffn) is written. bias (weight's columns,) and addend (batch, weight's columns)
    float32 are added to the products.
    Raises KernelError for tensors that do not fit.
    """
    paired, batch = weight.shape[1] == 2 * ffn, activation.batch
    tiles = blocks_of(ffn, tile.columns)
    if not paired and weight.shape[1] != ffn:
        raise KernelError(f"a weight {tuple(weight.shape)} is neither gate nor gate and up of {ffn} neurons")
    if lists is not None and (lists.block, lists.blocks, lists.channels) != (tile.columns, tiles, ffn):
        raise KernelError(
            f"the list has blocks of {lists.block}, the tile {tile.columns} columns; make them equal"
        )
    check_written(bounds, lists, x_out)
    meta = tile.meta(activation.lists, activation.channels, batch)
    splits = meta["SPLITS"]
    launch(
        neurons_kernel,
        (tiles, splits),
        weight, *activation.tensors,
        workspace.partials(splits * batch * weight.shape[1]) if splits > 1 else None,
        workspace.counters(tiles) if splits > 1 else None,
        bias, addend, x_out, bounds, *written_to(lists),
        WIDTH=ffn, COLUMNS=weight.shape[1], TILES=tiles, EVEN=ffn % tile.columns == 0, PAIRED=paired,
        COMPACT=lists is not None, RELU=nonlinearity == "relu", **meta, warps=tile.warps, pdl=pdl,
    )  # fmt: skip


@triton.jit
def rows_kernel(
    weight, x, index, values, counts,
    IN: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, BATCH: tl.constexpr, NEURONS: tl.constexpr,
    STEP: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Multiply the values of a few listed neurons by their rows' products with x."""
    block = tl.program_id(0)
    entry = tl.program_id(1) * NEURONS + tl.arange(0, NEURONS)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    count = tl.load(counts + block)
    if tl.program_id(1) * NEURONS < count:
        listed = entry < count
        neuron = tl.load(index + block * BLOCK + entry, mask=listed, other=0)
        for row in tl.static_range(BATCH):
            # A batch reads its rows again from L1 and L2; once per row of the batch is once from memory.
            acc = tl.zeros((NEURONS, STEP), dtype=tl.float32)
            for start in tl.range(0, IN, STEP, num_stages=STAGES):
                channel = start + tl.arange(0, STEP)
                live = channel < IN
                w = tl.load(weight + neuron[:, None] * IN + channel[None, :],
                            mask=listed[:, None] & live[None, :], other=0.0)  # fmt: skip
                xs = tl.load(x + row * IN + channel, mask=live, other=0.0).to(tl.float32)
                acc += w.to(tl.float32) * xs[None, :]
            up = rounded(tl.sum(acc, 1), weight)
            at = values + row * BLOCKS * BLOCK + block * BLOCK + entry
            gate = tl.load(at, mask=listed, other=0.0)
            tl.store(at, rounded(gate * up, weight), mask=listed)


def times_rows(lists: ChannelLists, rows: Tensor, x: Tensor, tile: Tile, pdl: bool = False) -> None:
    """Values of each listed neuron n *= rows[n] · x, reading only listed rows (CATS arXiv 2404.08763, CHESS).

    rows (neurons, in); x (batch, in) in the same dtype; `tile.channels` neurons a program, `tile.columns`
    channels a step. Raises KernelError for tensors that do not fit.
    """
    if (
        lists.projections != 1
        or rows.shape[0] != lists.channels
        or tuple(x.shape) != (lists.batch, rows.shape[1])
    ):
        raise KernelError(
            f"rows {tuple(rows.shape)} and x {tuple(x.shape)} do not fit a list of {lists.channels}"
        )
    if not rows.is_contiguous() or rows.dtype != x.dtype or rows.numel() >= 2**31:
        raise KernelError("rows must be contiguous, below 2³¹ elements and in the dtype of x")
    launch(
        rows_kernel,
        (lists.blocks, blocks_of(lists.block, tile.channels)),
        rows, x, lists.index, lists.values, lists.counts,
        IN=rows.shape[1], BLOCK=lists.block, BLOCKS=lists.blocks, BATCH=lists.batch, NEURONS=tile.channels,
        STEP=min(tile.columns, power_of_two(rows.shape[1])), STAGES=tile.stages, warps=tile.warps, pdl=pdl,
    )  # fmt: skip

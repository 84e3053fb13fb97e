"""The product of one program: a tile of columns, a share of the channels; accumulated in float32."""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import INTERPRETED

# The interpreter multiplies bfloat16 matrices as if they were integers: there they are widened first (exact).
WIDEN_DOTS = tl.constexpr(INTERPRETED)


@triton.jit
def multiplied(acc, weight_tile, x_tile, BATCH: tl.constexpr):
    """Acc + x · w: float32 multiply-adds for one row, tensor cores for more.

    weight_tile (channels, columns); x_tile (channels,) and acc (channels, columns) for one row, else
    (16, channels) and (16, columns).
    """
    if BATCH == 1:
        acc += weight_tile.to(tl.float32) * x_tile[:, None]
    elif WIDEN_DOTS:
        acc += tl.dot(x_tile.to(tl.float32), weight_tile.to(tl.float32), input_precision="ieee")
    else:
        acc = tl.dot(x_tile.to(weight_tile.dtype), weight_tile, acc, input_precision="ieee")
    return acc


@triton.jit
def listed_product(
    weight, index, values, counts, projection, split, column, inside,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """(ROWS, TILE) product over this split's share: GROUP list blocks, or one of PARTS parts of a block."""
    row = tl.arange(0, ROWS)
    acc = tl.zeros((CHANNELS if BATCH == 1 else ROWS, TILE), dtype=tl.float32)
    for member in tl.static_range(GROUP):
        block = (split // PARTS) * GROUP + member
        count = tl.load(counts + projection * BLOCKS + block, mask=block < BLOCKS, other=0)
        part = split % PARTS
        first = count * part // PARTS
        last = count * (part + 1) // PARTS
        if BATCH > 1:
            # Parts begin at whole steps: only so values of rows are known to lie where they are copied ahead.
            first = first // CHANNELS * CHANNELS
            last = tl.where(part + 1 < PARTS, last // CHANNELS * CHANNELS, count)
        entries = projection * BLOCKS * BLOCK + block * BLOCK
        for start in tl.range(first, last, CHANNELS, num_stages=STAGES):
            entry = start + tl.arange(0, CHANNELS)
            listed = entry < last
            # Entries beyond the count are stale but channels all the same: this need not wait for the count.
            channel = tl.load(index + entries + entry, mask=entry < BLOCK, other=0)
            if BATCH == 1:
                x = tl.load(values + entries + entry, mask=listed, other=0.0)
            else:
                at = (projection * BATCH + row[:, None]) * BLOCKS * BLOCK + block * BLOCK + entry[None, :]
                # Not masked by what is listed, and so copied ahead in pieces that one instruction copies.
                x = tl.load(values + at, mask=(entry < BLOCK)[None, :] & (row[:, None] < BATCH), other=0.0)
                x = tl.where(listed[None, :], x, 0.0)
            live = listed[:, None] if EVEN else listed[:, None] & inside[None, :]
            cell = weight + channel[:, None] * COLUMNS + column[None, :]
            w = tl.load(cell, mask=live, other=0.0, eviction_policy="evict_first")
            acc = multiplied(acc, w, x, BATCH)
    return tl.sum(acc, 0)[None, :] if BATCH == 1 else acc


@triton.jit
def dense_x(x, channel, IN: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr):
    """Activations at these channels: (channels,) float32 of one row, (ROWS, channels) of a batch."""
    row = tl.arange(0, ROWS)
    if BATCH == 1:
        tile = tl.load(x + channel, mask=channel < IN, other=0.0).to(tl.float32)
    else:
        live = (channel[None, :] < IN) & (row[:, None] < BATCH)
        tile = tl.load(x + row[:, None] * IN + channel[None, :], mask=live, other=0.0)
    return tile


@triton.jit
def dense_weight(weight, channel, column, inside, IN: tl.constexpr, COLUMNS: tl.constexpr,
                 EVEN: tl.constexpr):  # fmt: skip
    """(channels, columns) of the weight, zeros beyond its edges."""
    at = weight + channel[:, None] * COLUMNS + column[None, :]
    live = channel[:, None] < IN
    if not EVEN:
        live = live & inside[None, :]
    return tl.load(at, mask=live, other=0.0, eviction_policy="evict_first")


@triton.jit
def dense_product(
    weight, x, split, column, inside,
    IN: tl.constexpr, COLUMNS: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    CHANNELS: tl.constexpr, SHARE: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """(ROWS, TILE) product over SHARE channels. Weights do not depend on the kernel before: their first tile
    is on its way while this one waits for the activations.
    """
    begin = split * SHARE
    channel = begin + tl.arange(0, CHANNELS)
    acc = tl.zeros((CHANNELS if BATCH == 1 else ROWS, TILE), dtype=tl.float32)
    w = dense_weight(weight, channel, column, inside, IN, COLUMNS, EVEN)
    if WAIT:
        tl.extra.cuda.gdc_wait()
    acc = multiplied(acc, w, dense_x(x, channel, IN, BATCH, ROWS), BATCH)
    for start in tl.range(begin + CHANNELS, begin + SHARE, CHANNELS, num_stages=STAGES):
        channel = start + tl.arange(0, CHANNELS)
        w = dense_weight(weight, channel, column, inside, IN, COLUMNS, EVEN)
        acc = multiplied(acc, w, dense_x(x, channel, IN, BATCH, ROWS), BATCH)
    return tl.sum(acc, 0)[None, :] if BATCH == 1 else acc


@triton.jit
def share_of_product(
    weight, x, index, values, counts, projection, split, column, inside,
    IN: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr,
    SHARE: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr, LISTED: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """(ROWS, TILE) of one split, over lists or over the dense activation; WAIT for the kernel before."""
    if LISTED:
        if WAIT:
            tl.extra.cuda.gdc_wait()
        product = listed_product(weight, index, values, counts, projection, split, column, inside,
                                 COLUMNS, BLOCK, BLOCKS, BATCH, ROWS, TILE, CHANNELS, GROUP, PARTS,
                                 STAGES, EVEN)  # fmt: skip
    else:
        product = dense_product(weight, x, split, column, inside, IN, COLUMNS, BATCH, ROWS, TILE, CHANNELS,
                                SHARE, STAGES, EVEN, WAIT)  # fmt: skip
    return product


@triton.jit
def store_partial(product, partials, split, column, inside, WIDTH: tl.constexpr, BATCH: tl.constexpr,
                  ROWS: tl.constexpr):  # fmt: skip
    """One split's part of partials (splits, BATCH, WIDTH)."""
    row = tl.arange(0, ROWS)
    at = partials + (split * BATCH + row[:, None]) * WIDTH + column[None, :]
    tl.store(at, product, mask=inside[None, :] & (row[:, None] < BATCH))

"""End of a product: the program that arrives last at a column tile adds the tile's partial sums.

Partial sums are added in the order of the splits whoever arrives last, so results are bitwise the same from run
to run. The counter of a tile is back at 0 when its last program ends.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrived_last(counters, tile, PROGRAMS: tl.constexpr):
    """Whether all other programs of the tile have stored what they owe; their stores are then visible."""
    tl.debug_barrier()  # every thread's stores come before the one thread that counts
    last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == PROGRAMS - 1
    if last:
        tl.store(counters + tile, 0)
    return last


@triton.jit
def added(partials, column, inside, WIDTH: tl.constexpr, SPLITS: tl.constexpr, BATCH: tl.constexpr,
          ROWS: tl.constexpr):  # fmt: skip
    """(ROWS, columns) sum of partials (SPLITS, BATCH, WIDTH) over the splits."""
    row = tl.arange(0, ROWS)
    at = partials + row[:, None] * WIDTH + column[None, :]
    live = inside[None, :] & (row[:, None] < BATCH)
    # .cg: what other programs wrote is in L2, never trust a line in this multiprocessor's L1.
    total = tl.load(at, mask=live, other=0.0, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        total += tl.load(at + split * BATCH * WIDTH, mask=live, other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def store_sum(total, out, bias, addend, column, to, inside, OUT_ROW: tl.constexpr, BATCH: tl.constexpr,
              ROWS: tl.constexpr):  # fmt: skip
    """out[row, to] = total + bias[column] + addend[row, to]; bias and addend may be None."""
    row = tl.arange(0, ROWS)
    at = row[:, None] * OUT_ROW + to[None, :]
    live = inside[None, :] & (row[:, None] < BATCH)
    if bias is not None:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if addend is not None:
        total += tl.load(addend + at, mask=live, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=live)


@triton.jit
def store_residual(total, residual, squares, bias, addend, tile, column, inside, WIDTH: tl.constexpr,
                   TILES: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Add total + bias[column] + addend to the residual stream (BATCH, WIDTH); bias and addend may be None.

    The tile's sum of squares (BATCH, TILES) follows.
    """
    row = tl.arange(0, ROWS)
    at = row[:, None] * WIDTH + column[None, :]
    live = inside[None, :] & (row[:, None] < BATCH)
    total += tl.load(residual + at, mask=live, other=0.0)
    if bias is not None:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if addend is not None:
        total += tl.load(addend + at, mask=live, other=0.0)
    tl.store(residual + at, total, mask=live)
    total = tl.where(live, total, 0.0)
    tl.store(squares + row * TILES + tile, tl.sum(total * total, 1), mask=row < BATCH)


@triton.jit
def silu(x):
    """X · sigmoid(x)."""
    return x / (1.0 + tl.exp(-x))

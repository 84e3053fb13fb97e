"""Parts of an attention over a split context, and what the last program makes of them."""

from __future__ import annotations

import triton
import triton.language as tl

from .compact import rounded, store_list


@triton.jit
def context_of(length, first, WINDOW: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr):
    """(first slot, slots a program, programs with work) of a row's context, its new token included.

    A program takes two steps at least: a second step is sooner done than what two programs found is combined.
    """
    lowest = first
    if WINDOW > 0:
        lowest = tl.maximum(first, length + 1 - WINDOW)
    slots = length + 1 - lowest
    share = tl.maximum((slots + SPLITS * STEP - 1) // (SPLITS * STEP), 2) * STEP
    return lowest, share, (slots + share - 1) // share


@triton.jit
def finish_output(
    x, real, query, d, head, x_out, bounds, index, values, counts,
    BATCH: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr,
    COMPACT: tl.constexpr,
):  # fmt: skip
    """List or store the output x (ROWS, WIDTH) of a key-value head's queries; query and d (WIDTH,)."""
    row = tl.arange(0, ROWS)
    channel = (head * GROUP + query) * HEAD + d
    CHANNELS: tl.constexpr = KV_HEADS * GROUP * HEAD
    if COMPACT:
        bound = tl.load(bounds + channel, mask=(query < GROUP) & (d < HEAD), other=0.0)[None, :]
        kept = tl.where(real, 1 - (tl.abs(x) < bound).to(tl.int32), 0)
        store_list(index, values, counts, 0, head, channel, x, kept, CAPACITY=CHANNELS, BLOCKS=KV_HEADS,
                   BLOCK=GROUP * HEAD, BATCH=BATCH, ROWS=ROWS)  # fmt: skip
    else:
        at = x_out + row[:, None] * CHANNELS + channel[None, :]
        tl.store(at, x.to(x_out.dtype.element_ty), mask=real)


@triton.jit
def finish_alone(
    total, acc, like, head, x_out, bounds, index, values, counts,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, HEAD: tl.constexpr,
    PADDED_HEAD: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """Finish what one program found of the whole context of the only row: sums (QUERIES,), weighted values."""
    WIDTH: tl.constexpr = QUERIES * PADDED_HEAD
    query = tl.arange(0, WIDTH) // PADDED_HEAD
    d = tl.arange(0, WIDTH) % PADDED_HEAD
    x = tl.reshape(rounded(acc / total[:, None], like), (1, WIDTH))
    real = ((query < GROUP) & (d < HEAD))[None, :]
    finish_output(x, real, query, d, head, x_out, bounds, index, values, counts, BATCH=1, ROWS=1,
                  KV_HEADS=KV_HEADS, GROUP=GROUP, HEAD=HEAD, COMPACT=COMPACT)  # fmt: skip


@triton.jit
def combine(
    parts, firsts, length, head, like, x_out, bounds, index, values, counts,
    WINDOW: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr, HEAD: tl.constexpr,
    PADDED_HEAD: tl.constexpr, AT_ONCE: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """Normalise the parts of a key-value head's queries over all rows, then list or store the output."""
    WIDTH: tl.constexpr = PADDED_GROUP * PADDED_HEAD
    row = tl.arange(0, ROWS)
    query = tl.arange(0, WIDTH) // PADDED_HEAD
    d = tl.arange(0, WIDTH) % PADDED_HEAD
    first = tl.load(firsts + row, mask=row < BATCH, other=0)
    active = tl.where(row < BATCH, context_of(length, first, WINDOW, STEP, SPLITS)[2], 0)
    inside = (query < GROUP) & (d < HEAD)
    highest = tl.full((ROWS, WIDTH), float("-inf"), tl.float32)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    # Many parts at once: every round is a journey to L2.
    for start in tl.range(0, tl.max(active, 0), AT_ONCE):
        split = start + tl.arange(0, AT_ONCE)
        live = (split[None, :] < active[:, None])[:, :, None] & inside[None, None, :]
        part = ((row * KV_HEADS + head) * SPLITS)[:, None, None] + split[None, :, None]
        at = parts + (part * GROUP + query[None, None, :]) * (HEAD + 2)
        top = tl.load(at, mask=live, other=float("-inf"), cache_modifier=".cg")
        mass = tl.load(at + 1, mask=live, other=0.0, cache_modifier=".cg")
        weighted = tl.load(at + 2 + d[None, None, :], mask=live, other=0.0, cache_modifier=".cg")
        higher = tl.maximum(highest, tl.max(top, 1))
        origin = tl.where(higher == float("-inf"), 0.0, higher)  # where nothing is yet, no ∞ − ∞
        before = tl.exp(highest - origin)
        now = tl.exp(top - origin[:, None, :])
        total = total * before + tl.sum(mass * now, 1)
        acc = acc * before + tl.sum(weighted * now, 1)
        highest = higher
    real = inside[None, :] & (row[:, None] < BATCH)
    x = rounded(acc / tl.where(real, total, 1.0), like)
    finish_output(x, real, query, d, head, x_out, bounds, index, values, counts, BATCH, ROWS, KV_HEADS, GROUP,
                  HEAD, COMPACT)  # fmt: skip


@triton.jit
def store_parts(parts, highest, total, acc, part, GROUP: tl.constexpr, QUERIES: tl.constexpr,
                HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr):  # fmt: skip
    """Leave what `combine` reads: highest score, sum and weighted values of each query."""
    query = tl.arange(0, QUERIES)
    d = tl.arange(0, PADDED_HEAD)
    at = parts + (part * GROUP + query) * (HEAD + 2)
    tl.store(at, highest, mask=query < GROUP)
    tl.store(at + 1, total, mask=query < GROUP)
    tl.store(at[:, None] + 2 + d[None, :], acc, mask=(query[:, None] < GROUP) & (d[None, :] < HEAD))

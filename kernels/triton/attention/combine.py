"""Parts of an attention over a split context, and what the last program makes of them."""

from __future__ import annotations

import triton
import triton.language as tl

from ..compact import rounded, store_list


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
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """List or store the output x (1, WIDTH) of a row's queries of a key-value head; query and d (WIDTH,)."""
    channel = (head * GROUP + query) * HEAD + d
    CHANNELS: tl.constexpr = KV_HEADS * GROUP * HEAD
    if COMPACT:
        bound = tl.load(bounds + channel, mask=(query < GROUP) & (d < HEAD), other=0.0)[None, :]
        kept = tl.where(real, 1 - (tl.abs(x) < bound).to(tl.int32), 0)
        store_list(index, values, counts, 0, head, channel, x, kept, CAPACITY=CHANNELS, BLOCKS=KV_HEADS,
                   BLOCK=GROUP * HEAD, BATCH=1, ROWS=1)  # fmt: skip
    else:
        at = x_out + channel[None, :]
        tl.store(at, x.to(x_out.dtype.element_ty), mask=real)


@triton.jit
def finish_alone(
    total, acc, like, head, x_out, bounds, index, values, counts,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, HEAD: tl.constexpr,
    PADDED_HEAD: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """Finish what one program found of a row's whole context: sums (QUERIES,), weighted values."""
    WIDTH: tl.constexpr = QUERIES * PADDED_HEAD
    query = tl.arange(0, WIDTH) // PADDED_HEAD
    d = tl.arange(0, WIDTH) % PADDED_HEAD
    x = tl.reshape(rounded(acc / total[:, None], like), (1, WIDTH))
    real = ((query < GROUP) & (d < HEAD))[None, :]
    finish_output(x, real, query, d, head, x_out, bounds, index, values, counts, KV_HEADS, GROUP, HEAD, COMPACT)


@triton.jit
def combine(
    parts, active, head, like, x_out, bounds, index, values, counts,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr, HEAD: tl.constexpr,
    PADDED_HEAD: tl.constexpr, AT_ONCE: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """Normalise the `active` parts of a row's queries of a key-value head, then list or store the output."""
    WIDTH: tl.constexpr = PADDED_GROUP * PADDED_HEAD
    query = tl.arange(0, WIDTH) // PADDED_HEAD
    d = tl.arange(0, WIDTH) % PADDED_HEAD
    inside = (query < GROUP) & (d < HEAD)
    highest = tl.full((WIDTH,), float("-inf"), tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    acc = tl.zeros((WIDTH,), tl.float32)
    # Many parts at once: every round is a journey to L2.
    for start in tl.range(0, active, AT_ONCE):
        split = start + tl.arange(0, AT_ONCE)
        live = (split < active)[:, None] & inside[None, :]
        at = parts + (split[:, None] * GROUP + query[None, :]) * (HEAD + 2)
        top = tl.load(at, mask=live, other=float("-inf"), cache_modifier=".cg")
        mass = tl.load(at + 1, mask=live, other=0.0, cache_modifier=".cg")
        weighted = tl.load(at + 2 + d[None, :], mask=live, other=0.0, cache_modifier=".cg")
        higher = tl.maximum(highest, tl.max(top, 0))
        origin = tl.where(higher == float("-inf"), 0.0, higher)  # where nothing is yet, no ∞ − ∞
        before = tl.exp(highest - origin)
        now = tl.exp(top - origin[None, :])
        total = total * before + tl.sum(mass * now, 0)
        acc = acc * before + tl.sum(weighted * now, 0)
        highest = higher
    x = rounded(acc / tl.where(inside, total, 1.0), like)[None, :]
    finish_output(x, inside[None, :], query, d, head, x_out, bounds, index, values, counts, KV_HEADS, GROUP,
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


@triton.jit
def finish(
    parts, counter, split, active, highest, total, acc, like, head, x_out, bounds, index, values, counts,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr, QUERIES: tl.constexpr,
    HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr, AT_ONCE: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """Finish a context of `active` programs of which this is one: the last to come combines what all found."""
    if active == 1:
        finish_alone(total, acc, like, head, x_out, bounds, index, values, counts, KV_HEADS, GROUP, QUERIES,
                     HEAD, PADDED_HEAD, COMPACT)  # fmt: skip
    else:
        store_parts(parts, highest, total, acc, split, GROUP, QUERIES, HEAD, PADDED_HEAD)
        tl.debug_barrier()  # as in epilogue.arrived_last; the number of programs is known here only
        if tl.atomic_add(counter, 1, sem="acq_rel") == active - 1:
            tl.store(counter, 0)
            combine(parts, active, head, like, x_out, bounds, index, values, counts, KV_HEADS, GROUP,
                    PADDED_GROUP, HEAD, PADDED_HEAD, AT_ONCE, COMPACT)  # fmt: skip

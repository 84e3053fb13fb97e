"""Attention of one new token in each row over some of its key-value groups, in Triton.

A program owns one row, one of its chosen groups with all query heads of it, and a part of the context; the last
program of a group combines its parts. Other programs append keys and values of groups that are not chosen, and
leave zeros at their heads. The new token's own slot is added at the end: what the loop reads goes from memory
into products without passing through a comparison.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...model.static_cache import StaticCache
from ..launch import check_tensor, launch, power_of_two
from .combine import context_of, finish
from .general import AttentionTile, attend_to, shared_context, slots_of
from .new_token import HeadNorms, given, new_token, query_heads
from .selection import Selection, kept_groups


@triton.jit
def ranked(scores, place, GROUPS: tl.constexpr, PADDED_GROUPS: tl.constexpr):
    """The group whose score is the `place`-th highest, of equal ones the first."""
    group = tl.arange(0, PADDED_GROUPS)
    score = tl.load(scores + group, mask=group < GROUPS, other=float("-inf"))
    equal = (score[None, :] == score[:, None]) & (group[None, :] < group[:, None])
    rank = tl.sum(((score[None, :] > score[:, None]) | equal).to(tl.int32), 1)
    found = tl.sum(tl.where((rank == place) & (group < GROUPS), group, 0), 0)
    return tl.minimum(found, GROUPS - 1)  # among scores that are no numbers several may have a rank


@triton.jit
def attend_to_new(q, k, v, highest, total, acc, SCALE: tl.constexpr):
    """The softmax with the new token's own slot: q (QUERIES, PADDED_HEAD), k and v (PADDED_HEAD,)."""
    score = tl.sum(q.to(tl.float32) * k[None, :].to(tl.float32), 1) * SCALE
    higher = tl.maximum(highest, score)
    weight = tl.exp(score - higher)
    shrink = tl.exp(highest - higher)
    weighted = weight.to(v.dtype).to(tl.float32)[:, None] * v[None, :].to(tl.float32)
    return higher, total * shrink + weight, acc * shrink[:, None] + weighted


@triton.jit
def attended(
    keys, values, q, k, v, begin, known, new, STEP: tl.constexpr, HEAD: tl.constexpr,
    PADDED_HEAD: tl.constexpr, QUERIES: tl.constexpr, SCALE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Softmax over slots begin to known − 1, and the new one where asked for; see `attend_to`."""
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, PADDED_HEAD), tl.float32)
    for start in tl.range(begin, known, STEP, num_stages=STAGES):
        some_keys = slots_of(keys, start, known, STEP, HEAD, PADDED_HEAD)
        some_values = slots_of(values, start, known, STEP, HEAD, PADDED_HEAD)
        highest, total, acc = attend_to(
            q, some_keys, some_values, start, known, highest, total, acc, STEP, SCALE
        )
    if new:
        highest, total, acc = attend_to_new(q, k, v, highest, total, acc, SCALE)
    return highest, total, acc


@triton.jit
def store_zeros(out, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """Leave zeros at so many channels."""
    channel = tl.arange(0, PADDED)
    tl.store(out + channel, tl.zeros((PADDED,), out.dtype.element_ty), mask=channel < CHANNELS)


@triton.jit
def selected_attention_kernel(
    sums, bias, query_gain, key_gain, keys, values, cosines, sines, lengths, firsts, scores, parts, counters,
    x_out,
    SUM_SPLITS: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
    BATCH: tl.constexpr, KEPT: tl.constexpr, KV_HEADS: tl.constexpr, PADDED_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr, QUERIES: tl.constexpr, HEAD: tl.constexpr,
    PADDED_HEAD: tl.constexpr, AT_ONCE: tl.constexpr, CAPACITY: tl.constexpr, SCALE: tl.constexpr,
    STAGES: tl.constexpr, EPSILON: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row, one group, one part of the context."""
    ITEMS: tl.constexpr = BATCH * KEPT
    LEFT: tl.constexpr = max(KV_HEADS - KEPT, 1)
    program = tl.program_id(0)
    split = program // ITEMS
    kept = split < SPLITS
    item = program % ITEMS
    rest = program - ITEMS * SPLITS
    row = tl.where(kept, item // KEPT, rest // LEFT)
    head = tl.where(kept, item % KEPT, KEPT + rest % LEFT)
    # Length, cache and scores were written by kernels before the one that this waits for.
    if scores is not None:
        head = ranked(scores + row * KV_HEADS, head, KV_HEADS, PADDED_KV_HEADS)
    slots = (row * KV_HEADS + head).to(tl.int64) * CAPACITY * HEAD
    length = tl.load(lengths)
    first = tl.load(firsts + row)
    lowest, share, active = context_of(length, first, WINDOW, STEP, SPLITS)
    begin = tl.where(kept, lowest + split * share, length)
    end = tl.where(kept, tl.minimum(begin + share, length + 1), length + 1)
    known = tl.minimum(end, length)
    d = tl.arange(0, PADDED_HEAD)
    real = d < HEAD
    cosine = tl.load(cosines + (length - first) * HEAD + d, mask=real, other=0.0)
    sine = tl.load(sines + (length - first) * HEAD + d, mask=real, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if (split < active) | (split >= SPLITS):
        own = sums + row * (GROUP + 2) * KV_HEADS * HEAD
        q, k, v = new_token(own, bias, query_gain, key_gain, keys, cosine, sine, head, SUM_SPLITS, BATCH,
                            KV_HEADS, GROUP, QUERIES, HEAD, PADDED_HEAD, EPSILON)  # fmt: skip
        if end == length + 1:
            tl.store(keys + slots + length * HEAD + d, k, mask=real)
            tl.store(values + slots + length * HEAD + d, v, mask=real)
        out = x_out + row * KV_HEADS * GROUP * HEAD
        if kept:
            new = end == length + 1
            highest, total, acc = attended(keys + slots, values + slots, q, k, v, begin, known, new, STEP, HEAD,
                                           PADDED_HEAD, QUERIES, SCALE, STAGES)  # fmt: skip
            own_parts = parts + item * SPLITS * GROUP * (HEAD + 2)
            finish(own_parts, counters + item, split, active, highest, total, acc, keys, head, out, None, None,
                   None, None, KV_HEADS, GROUP, PADDED_GROUP, QUERIES, HEAD, PADDED_HEAD, AT_ONCE,
                   False)  # fmt: skip
        else:
            store_zeros(out + head * GROUP * HEAD, GROUP * HEAD, PADDED_GROUP * PADDED_HEAD)


def selected_attention(
    sums: Tensor,
    bias: Tensor | None,
    cache: StaticCache,
    block: int,
    window: int | None,
    parts: Tensor,
    counters: Tensor,
    tile: AttentionTile,
    *,
    norms: HeadNorms | None = None,
    selection: Selection | None,
    x_out: Tensor,
    pdl: bool = False,
) -> None:
    """`attention.general.attention` for the whole activation x_out (batch, channels), over chosen groups.

    selection: the key-value groups that a row looks at; None: all. x_out is zero at the heads of the others,
    whose new keys and values are appended all the same. Counters: one for each row and group. Raises
    KernelError for what does not fit.
    """
    _, batch, kv_heads, _, head_dim = cache.keys.shape
    scores, kept = kept_groups(selection, cache)
    heads = query_heads(sums, cache)
    check_tensor("x_out", x_out, (batch, heads * head_dim), cache.keys.dtype)
    shared = shared_context(cache, heads, tile, parts, counters)
    token_and_cache, epsilon = given(sums, bias, norms, cache, block)
    launch(
        selected_attention_kernel,
        (batch * (kept * shared["SPLITS"] + kv_heads - kept),),
        *token_and_cache, scores, parts, counters, x_out,
        SUM_SPLITS=sums.shape[0], WINDOW=window or 0, KEPT=kept, PADDED_KV_HEADS=power_of_two(kv_heads),
        EPSILON=epsilon, **shared, pdl=pdl,
    )  # fmt: skip

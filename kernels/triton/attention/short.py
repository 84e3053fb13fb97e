"""Attention of one new token over a short context, and the compaction of its output for o: batch 1.

A program owns one query head and the whole context, so that nothing is combined between programs, and its
products are plain multiply-adds: what counts behind a few hundred slots is how many steps wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ...errors import KernelError
from ...model.decoder import DecoderShape
from ...model.static_cache import StaticCache
from ...stored_tile import StoredTile
from ..channel_lists import ChannelLists, check_written, written_to
from ..compact import rounded, store_list
from ..launch import launch, power_of_two
from .general import slots_of
from .new_token import HeadNorms, given, projected, query_heads, rotated


@triton.jit
def look_at(q, k, v, begin, end, highest, total, acc, STEP: tl.constexpr, SCALE: tl.constexpr):
    """One step of the softmax of q (head,): highest score, sum, weighted values after slots from `begin`."""
    slot = begin + tl.arange(0, STEP)
    scores = tl.sum(k.to(tl.float32) * q[None, :], 1) * SCALE
    scores = tl.where(slot < end, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 0))
    weights = tl.exp(scores - higher)
    shrink = tl.exp(highest - higher)
    total = total * shrink + tl.sum(weights, 0)
    acc = acc * shrink + tl.sum(v.to(tl.float32) * weights[:, None], 0)
    return higher, total, acc


@triton.jit
def short_attention_kernel(
    sums, bias, query_gain, key_gain, keys, values, cosines, sines, lengths, firsts,
    x_out, bounds, to_index, to_values, to_counts,
    SUM_SPLITS: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr, CAPACITY: tl.constexpr,
    SCALE: tl.constexpr, STAGES: tl.constexpr, COMPACT: tl.constexpr, EPSILON: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One query head over the whole context."""
    query = tl.program_id(0)
    head = query // (HEADS // KV_HEADS)
    STRIDE: tl.constexpr = (HEADS + 2 * KV_HEADS) * HEAD
    slots = head * CAPACITY * HEAD
    d = tl.arange(0, PADDED_HEAD)
    real = d < HEAD
    # What earlier tokens left is on its way while the kernel before this one still runs.
    length = tl.load(lengths)
    first = tl.load(firsts)
    lowest = first
    if WINDOW > 0:
        lowest = tl.maximum(first, length + 1 - WINDOW)
    k = slots_of(keys + slots, lowest, length, STEP, HEAD, PADDED_HEAD)
    v = slots_of(values + slots, lowest, length, STEP, HEAD, PADDED_HEAD)
    cosine = tl.load(cosines + (length - first) * HEAD + d, mask=real, other=0.0)
    sine = tl.load(sines + (length - first) * HEAD + d, mask=real, other=0.0)
    if COMPACT:
        bound = tl.load(bounds + query * HEAD + d, mask=real, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    q = rotated(
        sums, bias, query_gain, keys, query * HEAD, d, cosine, sine, SUM_SPLITS, STRIDE, HEAD, EPSILON, real
    )
    k_start = (HEADS + head) * HEAD
    new_key = rotated(
        sums, bias, key_gain, keys, k_start, d, cosine, sine, SUM_SPLITS, STRIDE, HEAD, EPSILON, real
    )
    new_value = projected(sums, bias, keys, k_start + KV_HEADS * HEAD + d, SUM_SPLITS, STRIDE, real)
    highest = tl.sum(q * new_key, 0) * SCALE
    highest, total, acc = look_at(q, k, v, lowest, length, highest, 1.0, new_value, STEP, SCALE)
    for start in tl.range(lowest + STEP, length, STEP, num_stages=STAGES):
        k = slots_of(keys + slots, start, length, STEP, HEAD, PADDED_HEAD)
        v = slots_of(values + slots, start, length, STEP, HEAD, PADDED_HEAD)
        highest, total, acc = look_at(q, k, v, start, length, highest, total, acc, STEP, SCALE)
    x = rounded(acc / total, keys)
    channel = query * HEAD + d
    if COMPACT:
        kept = tl.where(real, 1 - (tl.abs(x) < bound).to(tl.int32), 0)
        store_list(to_index, to_values, to_counts, 0, query, channel, x[None, :], kept[None, :],
                   CAPACITY=HEADS * HEAD, BLOCKS=HEADS, BLOCK=HEAD, BATCH=1, ROWS=1)  # fmt: skip
    else:
        tl.store(x_out + channel, x.to(x_out.dtype.element_ty), mask=real)
    if query % (HEADS // KV_HEADS) == 0:
        to = slots + length * HEAD + d
        tl.store(keys + to, new_key.to(keys.dtype.element_ty), mask=real)
        tl.store(values + to, new_value.to(keys.dtype.element_ty), mask=real)


@dataclass(frozen=True)
class ShortAttentionTile(StoredTile):
    """The steps of one program."""

    step: int = 128
    """Slots of one step; a power of two."""
    warps: int = 8
    stages: int = 2

    def list_block(self, shape: DecoderShape) -> int:
        """Channels of one list block of the output: a query head."""
        return shape.head_dim


def short_attention(
    sums: Tensor,
    bias: Tensor | None,
    cache: StaticCache,
    block: int,
    window: int | None,
    tile: ShortAttentionTile,
    *,
    norms: HeadNorms | None = None,
    bounds: Tensor | None = None,
    lists: ChannelLists | None = None,
    x_out: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """`attention.general.attention` for one row, with one list block a query head; no scratch is needed.

    Raises KernelError for what does not fit.
    """
    _, batch, kv_heads, capacity, head_dim = cache.keys.shape
    if batch != 1:
        raise KernelError(f"short attention takes one row, not {batch}; use attention for a batch")
    heads = query_heads(sums, cache)
    if lists is not None and (lists.block, lists.blocks) != (head_dim, heads):
        raise KernelError(f"o's list needs {heads} blocks of {head_dim}, not {lists.blocks} of {lists.block}")
    check_written(bounds, lists, x_out)
    token_and_cache, epsilon = given(sums, bias, norms, cache, block)
    launch(
        short_attention_kernel,
        (heads,),
        *token_and_cache, x_out, bounds, *written_to(lists),
        SUM_SPLITS=sums.shape[0], WINDOW=window or 0, STEP=tile.step, HEADS=heads, KV_HEADS=kv_heads,
        HEAD=head_dim, PADDED_HEAD=power_of_two(head_dim), CAPACITY=capacity, SCALE=head_dim**-0.5,
        STAGES=tile.stages, COMPACT=lists is not None, EPSILON=epsilon, warps=tile.warps, pdl=pdl,
    )  # fmt: skip

"""Attention of one new token over a static cache, and the compaction of its output for o.

A program owns one row, one key-value head with all query heads that share it, and a part of the context. The
grid is fixed, as CUDA graphs need; a program whose part lies beyond the context ends at once. The last program
of a row's key-value head combines its parts, and lists the channels where there is one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import KernelError
from ...model.decoder import DecoderShape
from ...model.static_cache import StaticCache
from ...stored_tile import StoredTile
from ..channel_lists import ChannelLists, check_written, written_to
from ..launch import blocks_of, launch, power_of_two
from ..product import WIDEN_DOTS
from .combine import context_of, finish
from .new_token import HeadNorms, given, new_token, query_heads


@triton.jit
def dot(a, b):
    """A · b in float32; see WIDEN_DOTS."""
    if WIDEN_DOTS:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        product = tl.dot(a, b, input_precision="ieee")
    return product


@triton.jit
def slots_of(values, begin, end, STEP: tl.constexpr, HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr):
    """Keys or values (STEP, PADDED_HEAD) of slots from `begin`, zeros from `end` on."""
    slot = begin + tl.arange(0, STEP)
    d = tl.arange(0, PADDED_HEAD)
    live = (slot[:, None] < end) & (d[None, :] < HEAD)
    return tl.load(values + slot[:, None] * HEAD + d[None, :], mask=live, other=0.0)


@triton.jit
def attend_to(q, k, v, begin, end, highest, total, acc, STEP: tl.constexpr, SCALE: tl.constexpr):
    """One step of the softmax: (highest score, sum, weighted values) by query after slots from `begin`."""
    slot = begin + tl.arange(0, STEP)
    scores = tl.where(slot[None, :] < end, dot(q, tl.trans(k)) * SCALE, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp(scores - higher[:, None])
    shrink = tl.exp(highest - higher)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + dot(weights.to(v.dtype), v)
    return higher, total, acc


@triton.jit
def attend(
    keys, values, q, first_keys, first_values, new_key, new_value, begin, end, length,
    STEP: tl.constexpr, HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr, QUERIES: tl.constexpr,
    SCALE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Softmax over slots begin to end − 1, unnormalised: (highest score, sum, weighted values) by query.

    The first step's keys and values are there already; those of slot `length`, the new token's, are given.
    """
    new = (begin + tl.arange(0, STEP) == length)[:, None]
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, PADDED_HEAD), tl.float32)
    k = tl.where(new, new_key[None, :], first_keys)
    v = tl.where(new, new_value[None, :], first_values)
    highest, total, acc = attend_to(q, k, v, begin, end, highest, total, acc, STEP, SCALE)
    for start in tl.range(begin + STEP, end, STEP, num_stages=STAGES):
        new = (start + tl.arange(0, STEP) == length)[:, None]
        k = slots_of(keys, start, tl.minimum(end, length), STEP, HEAD, PADDED_HEAD)
        v = slots_of(values, start, tl.minimum(end, length), STEP, HEAD, PADDED_HEAD)
        k = tl.where(new, new_key[None, :], k)
        v = tl.where(new, new_value[None, :], v)
        highest, total, acc = attend_to(q, k, v, start, end, highest, total, acc, STEP, SCALE)
    return highest, total, acc


@triton.jit
def attention_kernel(
    sums, bias, query_gain, key_gain, keys, values, cosines, sines, lengths, firsts, parts, counters,
    x_out, bounds, to_index, to_values, to_counts,
    SUM_SPLITS: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
    BATCH: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr, QUERIES: tl.constexpr, HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr,
    AT_ONCE: tl.constexpr, CAPACITY: tl.constexpr, SCALE: tl.constexpr, STAGES: tl.constexpr,
    COMPACT: tl.constexpr, EPSILON: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row, one key-value head, one part of the context."""
    head = tl.program_id(0) % KV_HEADS
    row = tl.program_id(0) // KV_HEADS
    split = tl.program_id(1)
    slots = (row * KV_HEADS + head).to(tl.int64) * CAPACITY * HEAD
    # Length and cache were written by kernels before the one that this waits for, which had waited for them.
    length = tl.load(lengths)
    first = tl.load(firsts + row)
    lowest, share, active = context_of(length, first, WINDOW, STEP, SPLITS)
    begin = lowest + split * share
    end = tl.minimum(begin + share, length + 1)
    # What earlier tokens left is on its way while the kernel before this one still runs.
    d = tl.arange(0, PADDED_HEAD)
    real = d < HEAD
    cosine = tl.load(cosines + (length - first) * HEAD + d, mask=real, other=0.0)
    sine = tl.load(sines + (length - first) * HEAD + d, mask=real, other=0.0)
    known = tl.minimum(end, length)
    first_keys = slots_of(keys + slots, begin, known, STEP, HEAD, PADDED_HEAD)
    first_values = slots_of(values + slots, begin, known, STEP, HEAD, PADDED_HEAD)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if split < active:
        own = sums + row * (GROUP + 2) * KV_HEADS * HEAD
        q, k, v = new_token(own, bias, query_gain, key_gain, keys, cosine, sine, head, SUM_SPLITS, BATCH,
                            KV_HEADS, GROUP, QUERIES, HEAD, PADDED_HEAD, EPSILON)  # fmt: skip
        if end == length + 1:
            tl.store(keys + slots + length * HEAD + d, k, mask=real)
            tl.store(values + slots + length * HEAD + d, v, mask=real)
        highest, total, acc = attend(keys + slots, values + slots, q, first_keys, first_values, k, v, begin,
                                     end, length, STEP, HEAD, PADDED_HEAD, QUERIES, SCALE, STAGES)  # fmt: skip
        output = x_out
        if not COMPACT:
            output += row * KV_HEADS * GROUP * HEAD
        own_parts = parts + tl.program_id(0) * SPLITS * GROUP * (HEAD + 2)
        finish(own_parts, counters + tl.program_id(0), split, active, highest, total, acc, keys, head, output,
               bounds, to_index, to_values, to_counts, KV_HEADS, GROUP, PADDED_GROUP, QUERIES, HEAD,
               PADDED_HEAD, AT_ONCE, COMPACT)  # fmt: skip


@dataclass(frozen=True)
class AttentionTile(StoredTile):
    """The share of one program."""

    step: int = 32
    """Slots of one step; a power of two of at least 16."""
    splits: int = 16
    """Most programs that share the context of one key-value head; short contexts use fewer."""
    warps: int = 4
    stages: int = 2

    def list_block(self, shape: DecoderShape) -> int:
        """Channels of one list block of the output: the query heads that share a key-value head."""
        return shape.attention_width // shape.kv_heads


def attention_parts(cache: StaticCache, heads: int, tile: AttentionTile) -> int:
    """float32 elements of scratch that `attention` needs."""
    return cache.batch * heads * tile.splits * (cache.keys.shape[4] + 2)


def scratch_of(cache: StaticCache, heads: int, tile: AttentionTile) -> dict[str, Tensor]:
    """Scratch of `attention`, or of attention over chosen groups: its parts, and counters that are zero."""
    device = cache.keys.device
    counters = torch.zeros(cache.batch * cache.keys.shape[2], dtype=torch.int32, device=device)
    return {
        "parts": torch.empty(attention_parts(cache, heads, tile), dtype=torch.float32, device=device),
        "counters": counters,
    }


def shared_context(
    cache: StaticCache, heads: int, tile: AttentionTile, parts: Tensor, counters: Tensor
) -> dict[str, object]:
    """Constants of a kernel whose programs share a context. Raises KernelError for too little scratch."""
    _, batch, kv_heads, capacity, head_dim = cache.keys.shape
    if parts.numel() < attention_parts(cache, heads, tile) or counters.numel() < batch * kv_heads:
        raise KernelError("the scratch of attention is too small; see scratch_of")
    splits = min(tile.splits, blocks_of(capacity, tile.step))
    group = heads // kv_heads
    padded_group, padded_head = power_of_two(group), max(16, power_of_two(head_dim))
    # 32 values a thread for what is combined at once.
    at_once = max(1, min(power_of_two(splits), tile.warps * 32 * 32 // (padded_group * padded_head)))
    return {
        "STEP": tile.step,
        "SPLITS": splits,
        "BATCH": batch,
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "PADDED_GROUP": padded_group,
        "QUERIES": max(16, padded_group),
        "HEAD": head_dim,
        "PADDED_HEAD": padded_head,
        "AT_ONCE": at_once,
        "CAPACITY": capacity,
        "SCALE": head_dim**-0.5,
        "STAGES": tile.stages,
        "warps": tile.warps,
    }


def attention(
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
    bounds: Tensor | None = None,
    lists: ChannelLists | None = None,
    x_out: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Attention of the token whose q, k, v are `sums` (splits, batch, q + 2·kv) float32, up to its own slot.

    norms: of the heads of q and k, before they are rotated.
    Its rotated key and its value go to slot `cache.length` of the block. With `bounds` (heads · head_dim,) the
    channels of one row with |x| ≥ bound go to `lists`, one list block a key-value head; else x_out (batch,
    channels) is written. `window`: the last so many tokens, this one included. Raises KernelError for what does
    not fit.
    """
    _, batch, kv_heads, _, head_dim = cache.keys.shape
    heads = query_heads(sums, cache)
    group = heads // kv_heads
    if lists is not None and (lists.block, lists.blocks) != (group * head_dim, kv_heads):
        raise KernelError(
            f"o's list needs {kv_heads} blocks of {group * head_dim}, not {lists.blocks} of {lists.block}"
        )
    if lists is not None and batch > 1:
        raise KernelError(f"attention lists the channels of one row, not of {batch}; give x_out")
    check_written(bounds, lists, x_out)
    shared = shared_context(cache, heads, tile, parts, counters)
    token_and_cache, epsilon = given(sums, bias, norms, cache, block)
    launch(
        attention_kernel,
        (batch * kv_heads, shared["SPLITS"]),
        *token_and_cache, parts, counters, x_out, bounds, *written_to(lists),
        SUM_SPLITS=sums.shape[0], WINDOW=window or 0, COMPACT=lists is not None, EPSILON=epsilon,
        **shared, pdl=pdl,
    )  # fmt: skip

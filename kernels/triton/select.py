"""The smallest score that per-token top-k keeps (WINA arXiv 2505.19427): one program for each list and row.

Scores are not negative, so their order is that of their bits: counting finds the k-th highest bit by bit. A
score of zero is never kept, so that the smallest is a normal number.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import KernelError
from .compact import inverse_norm, normalised
from .launch import launch, power_of_two

SMALLEST_NORMAL, INFINITE = tl.constexpr(0x00800000), tl.constexpr(0x7F800000)
"""Bits of float32 numbers."""


@triton.jit
def kth_highest(bits, inside, k):
    """Bits of the k-th highest of the scores whose bits are given, 1 ≤ k ≤ number inside; two bits a step."""
    found = k * 0
    for step in range(16):
        # Counting needs no shared bins, on which scores of nearly equal exponents would queue up. Three counts
        # below 2²⁰ are one sum, for which all warps wait once. The highest bit, a sign, is never set.
        unit = 1 << (30 - 2 * step)
        first = (inside & (bits >= found + unit)).to(tl.int64)
        second = (inside & (bits >= found + 2 * unit) & (step > 0)).to(tl.int64)
        third = (inside & (bits >= found + 3 * unit) & (step > 0)).to(tl.int64)
        reached = tl.sum(first + (second << 20) + (third << 40), 0)
        found += unit * ((reached & 0xFFFFF) >= k).to(tl.int32)
        found += unit * (((reached >> 20) & 0xFFFFF) >= k).to(tl.int32)
        found += unit * ((reached >> 40) >= k).to(tl.int32)
    return found


@triton.jit
def smallest_kept(score, inside, k, CHANNELS: tl.constexpr):
    """The k-th highest of the scores inside, but no zero: the smallest normal number for all, ∞ for none."""
    bits = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    found = kth_highest(bits, inside, tl.maximum(tl.minimum(k, CHANNELS), 1))
    found = tl.where(k >= CHANNELS, SMALLEST_NORMAL, tl.maximum(found, SMALLEST_NORMAL))
    return tl.where(k <= 0, INFINITE, found).to(tl.float32, bitcast=True)


@triton.jit
def select_kernel(
    source, squares, gain, score_weights, kept, fewest, smallest,
    NORM: tl.constexpr, EPSILON: tl.constexpr, TILES: tl.constexpr, PADDED_TILES: tl.constexpr,
    CHANNELS: tl.constexpr, BATCH: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """All channels of one row under one list's score."""
    projection = tl.program_id(0)
    one = tl.program_id(1) + tl.arange(0, 1)
    channel = tl.arange(0, WIDTH)
    inside = channel < CHANNELS
    weight = tl.load(score_weights + projection * CHANNELS + channel, mask=inside, other=0.0)
    k = tl.load(kept + projection)
    if fewest is not None:
        least = tl.load(fewest + projection)
    if NORM:
        scale = tl.load(gain + channel, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(source + tl.program_id(1) * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        inverse = inverse_norm(squares, one, CHANNELS, TILES, BATCH, EPSILON, PADDED_TILES)
        x = normalised(x, inverse, scale, gain)
    score = tl.abs(x) * weight
    if fewest is not None:
        reached = tl.sum((inside & (score >= 1.0)).to(tl.int32), 0)
        k = tl.minimum(tl.maximum(reached, least), k)
    found = smallest_kept(score, inside, k, CHANNELS)
    tl.store(smallest + projection * BATCH + tl.program_id(1), found)


def select_smallest(
    source: Tensor,
    score_weights: Tensor,
    kept: Tensor,
    smallest: Tensor,
    norm: tuple[Tensor, Tensor, float] | None = None,
    fewest: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Smallest (lists, batch): the k-th highest |x|·w of each row, but no zero; ∞ where k is 0.

    source (batch, channels): x, or the residual stream with norm = (squares, gain, ε); score_weights (lists,
    channels) float32; kept (lists,) int32 numbers k. fewest (lists,) int32: k is how many scores reach 1, from
    `fewest` to `kept`. Raises KernelError for tensors that do not fit.
    """
    batch, channels = source.shape
    lists = score_weights.shape[0]
    if score_weights.shape[1] != channels or kept.shape != (lists,) or smallest.shape != (lists, batch):
        raise KernelError(
            f"score weights {tuple(score_weights.shape)}, k {tuple(kept.shape)} and results "
            f"{tuple(smallest.shape)} do not fit x {tuple(source.shape)}"
        )
    if fewest is not None and (fewest.shape, fewest.dtype) != (kept.shape, torch.int32):
        raise KernelError(f"the fewest channels are {fewest.dtype} {tuple(fewest.shape)}, not as k is")
    if channels > 65536 or kept.dtype != torch.int32:
        raise KernelError("top-k takes at most 65536 channels, and k as int32")
    squares, gain, epsilon = norm or (None, None, 0.0)
    tiles = 0 if squares is None else squares.shape[1]
    launch(
        select_kernel,
        (lists, batch),
        source, squares, gain, score_weights, kept, fewest, smallest,
        NORM=norm is not None, EPSILON=epsilon, TILES=tiles, PADDED_TILES=power_of_two(max(tiles, 1)),
        CHANNELS=channels, BATCH=batch, WIDTH=power_of_two(channels),
        warps=8 if channels <= 4096 else 16, pdl=pdl,
    )  # fmt: skip

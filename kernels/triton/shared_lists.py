"""Channel lists by one top-k for all rows of a batch: what is read stays what one row reads.

|x| is summed over the rows, or its maximum taken; times a list's weights that is the score of a channel. Where
no launch before has found the smallest kept score, every program of a list does, from scores that lie in L2
anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ..errors import KernelError
from .channel_lists import ChannelLists
from .compact import inverse_norm, normalised
from .launch import blocks_of, check_tensor, launch, power_of_two, warps_of
from .select import smallest_kept


@triton.jit
def together(x, live, MAXIMUM: tl.constexpr):
    """Magnitudes (channels,) of x (ROWS, channels) over its rows."""
    magnitudes = tl.where(live, tl.abs(x), 0.0)
    return tl.max(magnitudes, 0) if MAXIMUM else tl.sum(magnitudes, 0)


@triton.jit
def magnitudes_kernel(
    source, squares, gain, x_out, magnitudes,
    NORM: tl.constexpr, EPSILON: tl.constexpr, TILES: tl.constexpr, PADDED_TILES: tl.constexpr,
    CHANNELS: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    MAXIMUM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of channels of all rows, normalised and stored if NORM."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    inside = channel < CHANNELS
    live = inside[None, :] & (row[:, None] < BATCH)
    at = row[:, None] * CHANNELS + channel[None, :]
    if NORM:
        scale = tl.load(gain + channel, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(source + at, mask=live, other=0.0).to(tl.float32)
    if NORM:
        inverse = inverse_norm(squares, row, CHANNELS, TILES, BATCH, EPSILON, PADDED_TILES)
        x = normalised(x, inverse[:, None], scale[None, :], gain)
        tl.store(x_out + at, x.to(x_out.dtype.element_ty), mask=live)
    tl.store(magnitudes + channel, together(x, live, MAXIMUM), mask=inside)


@triton.jit
def shared_lists_kernel(
    x, magnitudes, score_weights, kept, smallest, index, values, counts,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, SLICE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The kept ones of one slice of channels, at their places in the list of one projection."""
    projection = tl.program_id(1)
    begin = tl.program_id(0) * SLICE
    channel = tl.arange(0, WIDTH)
    inside = channel < CHANNELS
    own = begin + tl.arange(0, SLICE)
    owned = own < CHANNELS
    row = tl.arange(0, ROWS)
    live = owned[None, :] & (row[:, None] < BATCH)
    k = tl.load(kept + projection)
    weight = tl.load(score_weights + projection * CHANNELS + channel, mask=inside, other=0.0)
    own_weight = tl.load(score_weights + projection * CHANNELS + own, mask=owned, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    score = tl.load(magnitudes + channel, mask=inside, other=0.0) * weight
    own_score = tl.load(magnitudes + own, mask=owned, other=0.0) * own_weight
    values_of = tl.load(x + row[:, None] * CHANNELS + own[None, :], mask=live, other=0.0)
    cut = smallest_kept(score, inside, k, CHANNELS) if smallest is None else tl.load(smallest + projection)
    # NaN compares false, so a broken activation is kept and shows in the output.
    listed = (inside & ~(score < cut)).to(tl.int32)
    own_listed = (owned & ~(own_score < cut)).to(tl.int32)
    before = tl.sum(tl.where(channel < begin, listed, 0), 0)
    place = before + tl.cumsum(own_listed, 0) - 1
    tl.store(index + projection * CHANNELS + place, own, mask=own_listed > 0)
    to = values + (projection * BATCH + row[:, None]) * CHANNELS + place[None, :]
    tl.store(to, values_of, mask=(own_listed[None, :] > 0) & live)
    if begin == 0:
        tl.store(counts + projection, tl.sum(listed, 0))


@dataclass(frozen=True)
class SharedTopK:
    """One top-k for all rows, for each list of an activation."""

    score_weights: Tensor
    """(lists, channels) float32"""
    kept: Tensor
    """(lists,) int32 numbers k."""
    magnitudes: Tensor
    """(channels,) float32 buffer: |x| of all rows together."""
    maximum: bool
    """Together by the maximum; else by the sum."""
    smallest: Tensor | None = None
    """(lists, 1) float32 buffer: the smallest score that each list keeps; None: its programs find it."""


def magnitudes_of(
    source: Tensor,
    rule: SharedTopK,
    norm: tuple[Tensor, Tensor, float] | None = None,
    x_out: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Fill the rule's magnitudes from x (batch, channels), or from the residual stream.

    norm: (squares, gain, ε) of the residual stream, whose RMSNorm is stored in x_out. Raises KernelError for
    tensors that do not fit.
    """
    batch, channels = source.shape
    if (norm is None) != (x_out is None):
        raise KernelError("give norm and x_out, or neither")
    check_tensor("magnitudes", rule.magnitudes, (channels,))
    squares, gain, epsilon = norm or (None, None, 0.0)
    tiles, block = 0 if squares is None else squares.shape[1], min(128, power_of_two(channels))
    launch(
        magnitudes_kernel,
        (blocks_of(channels, block),),
        source, squares, gain, x_out, rule.magnitudes,
        NORM=norm is not None, EPSILON=epsilon, TILES=tiles, PADDED_TILES=power_of_two(max(tiles, 1)),
        CHANNELS=channels, BATCH=batch, ROWS=power_of_two(batch), BLOCK=block, MAXIMUM=rule.maximum,
        warps=warps_of(batch), pdl=pdl,
    )  # fmt: skip


def shared_lists(x: Tensor, rule: SharedTopK, lists: ChannelLists, pdl: bool = False) -> None:
    """Make the lists of x (batch, channels) from the rule's magnitudes; all rows of x have values there.

    The lists are one block each. Raises KernelError for tensors that do not fit.
    """
    batch, channels = x.shape
    if (lists.batch, lists.channels, lists.block) != (batch, channels, channels):
        raise KernelError(
            f"x is {tuple(x.shape)}, the lists are for {lists.batch} rows of {lists.channels} channels in "
            f"blocks of {lists.block}; one block must hold all"
        )
    check_tensor("score weights", rule.score_weights, (lists.projections, channels))
    check_tensor("k", rule.kept, (lists.projections,))
    width = power_of_two(channels)
    size = min(256, width)
    launch(
        shared_lists_kernel,
        (blocks_of(channels, size), lists.projections),
        x, rule.magnitudes, rule.score_weights, rule.kept, rule.smallest, lists.index, lists.values,
        lists.counts,
        CHANNELS=channels, WIDTH=width, BATCH=batch, ROWS=power_of_two(batch), SLICE=size,
        warps=8 if channels <= 4096 else 16, pdl=pdl,
    )  # fmt: skip

"""RMSNorm fused with the compaction of channels: one program for each block of channels and projection.

The sum of squares that RMSNorm needs comes in parts with the residual stream (see `epilogue`), so that
no program reads more than its own channels and a few sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import KernelError
from .channel_lists import ChannelLists, written_to
from .launch import blocks_of, launch, power_of_two, warps_of


@triton.jit
def rounded(x, like):
    """X as it is after being stored in the dtype that the pointer `like` points to."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def store_list(
    index, values, counts, projection, block, channel, x, kept,
    CAPACITY: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Append a block's kept channels: channel (BLOCK,), x (ROWS, BLOCK), kept (ROWS, BLOCK) int32 0 or 1."""
    row = tl.arange(0, ROWS)
    listed = tl.max(kept, 0)
    place = block * BLOCK + tl.cumsum(listed, 0) - 1
    tl.store(index + projection * CAPACITY + place, channel, mask=listed > 0)
    to = values + (projection * BATCH + row[:, None]) * CAPACITY + place[None, :]
    tl.store(to, tl.where(kept > 0, x, 0.0), mask=(listed[None, :] > 0) & (row[:, None] < BATCH))
    tl.store(counts + projection * BLOCKS + block, tl.sum(listed, 0))


@triton.jit
def inverse_norm(squares, row, CHANNELS: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr,
                 EPSILON: tl.constexpr, PADDED_TILES: tl.constexpr):  # fmt: skip
    """(ROWS,) 1/√(mean square + ε) from the sums of squares that each tile of the residual stream left."""
    tile = tl.arange(0, PADDED_TILES)
    live = (tile[None, :] < TILES) & (row[:, None] < BATCH)
    parts = tl.load(squares + row[:, None] * TILES + tile[None, :], mask=live, other=0.0)
    return tl.rsqrt(tl.sum(parts, 1) / CHANNELS + EPSILON)


@triton.jit
def normalised(x, inverse, scale, like):
    """X · inverse · scale, rounded where the model rounds: all that read the residual stream see the same x."""
    return rounded(rounded(x * inverse, like) * scale, like)


@triton.jit
def compact_kernel(
    source, squares, gain, x_out, bounds, score_weights, smallest, index, values, counts, length,
    NORM: tl.constexpr, EPSILON: tl.constexpr, TILES: tl.constexpr, PADDED_TILES: tl.constexpr,
    CHANNELS: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    LISTS: tl.constexpr, TOP_K: tl.constexpr, INVERTED: tl.constexpr, WRITE_X: tl.constexpr,
    ADVANCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of channels for one list: normalise, compare, append. TOP_K and INVERTED are bits by list."""
    block = tl.program_id(0)
    projection = tl.program_id(1)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    inside = channel < CHANNELS
    live = inside[None, :] & (row[:, None] < BATCH)
    # Parameters are read before the wait for the kernel that writes the activation.
    if NORM:
        scale = tl.load(gain + channel, mask=inside, other=0.0).to(tl.float32)
    if LISTS > 0:
        bound = tl.load(bounds + projection * CHANNELS + channel, mask=inside, other=0.0)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(source + row[:, None] * CHANNELS + channel[None, :], mask=live, other=0.0).to(tl.float32)
    if NORM:
        inverse = inverse_norm(squares, row, CHANNELS, TILES, BATCH, EPSILON, PADDED_TILES)
        x = normalised(x, inverse[:, None], scale[None, :], gain)
    if WRITE_X:
        at = x_out + row[:, None] * CHANNELS + channel[None, :]
        tl.store(at, x.to(x_out.dtype.element_ty), mask=live & (projection == 0))
    if LISTS > 0:
        score = tl.abs(x)
        if TOP_K != 0:
            by_rank = ((TOP_K >> projection) & 1) > 0
            weight = tl.load(score_weights + projection * CHANNELS + channel, mask=inside, other=0.0)
            cut = tl.load(smallest + projection * BATCH + row, mask=row < BATCH, other=0.0)
            score = tl.where(by_rank, score * weight[None, :], score)
            bound = tl.where(by_rank, cut[:, None], bound)
        # NaN compares false, so a broken activation is kept and shows in the output.
        dropped = (score < bound).to(tl.int32)
        inverted = (INVERTED >> projection) & 1
        kept = tl.where(live, (1 - dropped) ^ inverted, 0)
        store_list(index, values, counts, projection, block, channel, x, kept,
                   CAPACITY=BLOCKS * BLOCK, BLOCKS=BLOCKS, BLOCK=BLOCK, BATCH=BATCH, ROWS=ROWS)  # fmt: skip
    if ADVANCE:
        tl.store(length, tl.load(length) + 1, mask=(block == 0) & (projection == 0))


@dataclass(frozen=True)
class ListRules:
    """How lists of one activation are made, one row a list."""

    bounds: Tensor
    """(lists, channels) float32 thresholds on |x|; zeros for a list by top-k or of every channel."""
    score_weights: Tensor | None = None
    """(lists, channels) float32 weights of the score, used by lists of top-k."""
    smallest: Tensor | None = None
    """(lists, batch) float32: the smallest score that is kept, written by `select_smallest`."""
    top_k: int = 0
    """Bits by list: the bound is `smallest` instead of the thresholds."""
    inverted: int = 0
    """Bits by list: the dropped channels are listed (low-rank path)."""


def compact(x: Tensor, rules: ListRules, lists: ChannelLists, pdl: bool = False) -> None:
    """Make the lists of an activation x (batch, channels). NaN and infinity are kept; a bound of 0 keeps all.

    Raises KernelError for tensors that do not fit the lists.
    """
    _check(x, rules, lists)
    _start(x, None, None, 0, 0.0, None, rules, lists, None, pdl)


def norm_compact(
    residual: Tensor,
    squares: Tensor,
    gain: Tensor,
    epsilon: float,
    rules: ListRules | None,
    lists: ChannelLists | None,
    x_out: Tensor | None = None,
    length: Tensor | None = None,
    pdl: bool = False,
    block: int = 256,
) -> None:
    """RMSNorm of the residual stream (batch, channels) float32, then its lists, or x itself, or both.

    squares (batch, tiles) are sums of squares of parts of the stream; `length`, where given, is increased by 1.
    x is rounded to the dtype of `gain`, like the model does. Raises KernelError for tensors that do not fit.
    """
    if rules is not None and lists is not None:
        _check(residual, rules, lists)
    elif x_out is None:
        raise KernelError("RMSNorm has nothing to write: give lists or x_out")
    if gain.shape != residual.shape[1:]:
        raise KernelError(f"the gain of RMSNorm has shape {tuple(gain.shape)}, x {tuple(residual.shape)}")
    _start(residual, squares, gain, squares.shape[1], epsilon, x_out, rules, lists, length, pdl, block)


def _start(
    source: Tensor,
    squares: Tensor | None,
    gain: Tensor | None,
    tiles: int,
    epsilon: float,
    x_out: Tensor | None,
    rules: ListRules | None,
    lists: ChannelLists | None,
    length: Tensor | None,
    pdl: bool,
    block: int = 256,
) -> None:
    batch, channels = source.shape
    block = min(block, power_of_two(channels)) if lists is None else lists.block
    count = 0 if lists is None else lists.projections
    launch(
        compact_kernel,
        (blocks_of(channels, block), max(count, 1)),
        source, squares, gain, x_out,
        *((rules.bounds, rules.score_weights, rules.smallest) if rules else (None, None, None)),
        *written_to(lists),
        length,
        NORM=gain is not None, EPSILON=epsilon, TILES=tiles, PADDED_TILES=power_of_two(max(tiles, 1)),
        CHANNELS=channels, BATCH=batch, ROWS=power_of_two(batch), BLOCK=block,
        BLOCKS=blocks_of(channels, block), LISTS=count, TOP_K=rules.top_k if rules else 0,
        INVERTED=rules.inverted if rules else 0, WRITE_X=x_out is not None, ADVANCE=length is not None,
        warps=warps_of(batch), pdl=pdl,
    )  # fmt: skip


def _check(x: Tensor, rules: ListRules, lists: ChannelLists) -> None:
    if tuple(x.shape) != (lists.batch, lists.channels):
        raise KernelError(
            f"x is {tuple(x.shape)}, the lists are for a batch of {lists.batch} with {lists.channels} channels"
        )
    if tuple(rules.bounds.shape) != (lists.projections, lists.channels):
        raise KernelError(
            f"bounds are {tuple(rules.bounds.shape)}, expected {(lists.projections, lists.channels)}"
        )
    if rules.top_k and (rules.score_weights is None or rules.smallest is None):
        raise KernelError("a list by top-k needs score weights and the smallest kept score of each row")
    if not x.is_contiguous() or rules.bounds.dtype != torch.float32:
        raise KernelError("x must be contiguous, and bounds float32")


@triton.jit
def embed_kernel(
    tokens, embedding, residual, squares, CHANNELS: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One tile of one row of the residual stream."""
    tile = tl.program_id(0)
    row = tl.program_id(1)
    channel = tile * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    at = tl.load(tokens + row) * CHANNELS + channel  # int64, like the tokens
    x = tl.load(embedding + at, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    tl.store(residual + row * CHANNELS + channel, x, mask=channel < CHANNELS)
    tl.store(squares + row * TILES + tile, tl.sum(x * x, 0))


def embed(tokens: Tensor, embedding: Tensor, residual: Tensor, squares: Tensor, pdl: bool = False) -> None:
    """Residual stream (batch, channels) float32 of tokens (batch,) int64, and squares (batch, tiles)."""
    batch, channels = residual.shape
    block = power_of_two(blocks_of(channels, squares.shape[1]))
    if tokens.shape != (batch,) or tokens.dtype != torch.int64:
        raise KernelError(f"token ids are {tokens.dtype} {tuple(tokens.shape)}, expected int64 ({batch},)")
    launch(
        embed_kernel, (squares.shape[1], batch), tokens, embedding, residual, squares,
        CHANNELS=channels, TILES=squares.shape[1], BLOCK=block, warps=4, pdl=pdl,
    )  # fmt: skip

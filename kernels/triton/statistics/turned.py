"""Steps of the slope of a basis beside products of matrices, each in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import blocks_of, repeated, require_runnable

TOKENS, WIDTH = 64, 64
"""Activations of a program."""


@triton.jit
def relative_slopes_kernel(
    turned, curvatures, outs, readers, by_turned, sums, tokens, channels, projections,
    READERS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Some tokens and channels of a site, for one of its readers after the other."""
    site, part = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    token = part * TOKENS + tl.arange(0, TOKENS)[:, None]
    inside = (token < tokens) & (channel[None, :] < channels)
    place = (site.to(tl.int64) * tokens + token) * channels + channel[None, :]
    y = tl.load(turned + place, mask=inside, other=0.0)
    squared = y * y
    found = tl.zeros((TOKENS, WIDTH), tl.float32)
    for number in tl.static_range(READERS):
        projection = tl.load(readers + site * READERS + number)
        if projection >= 0:
            of_channel = projection * channels + channel
            curvature = tl.load(curvatures + of_channel, mask=channel < channels, other=0.0)[None, :]
            left = 1.0 / (1.0 + squared * curvature)
            slope = tl.load(outs + projection) * left * left
            found += slope * curvature
            total = tl.sum(squared * slope, 0)
            tl.store(sums + part * projections * channels + of_channel, total, mask=channel < channels)
    tl.store(by_turned + place, found * y, mask=inside)


def relative_slopes(turned: Tensor, curvatures: Tensor, outs: Tensor, readers: Tensor) -> tuple[Tensor, Tensor]:
    """Half the slope by y (sites, tokens, channels), and that by c (projections, channels), float32.

    turned: y; curvatures: c; outs: (projections,) float32; readers: (sites, most) int32 projections that read a
    site, -1 where there are fewer; each projection reads one. Raises KernelError where Triton kernels do not
    run.
    """
    require_runnable(turned.device)
    sites, tokens, channels = turned.shape
    parts, projections = blocks_of(tokens, TOKENS), len(curvatures)
    by_turned = torch.empty_like(turned)
    sums = torch.empty(parts, projections, channels, dtype=torch.float32, device=turned.device)
    find = repeated(
        relative_slopes_kernel, (sites, parts, blocks_of(channels, WIDTH)), READERS=readers.shape[1],
        TOKENS=TOKENS, WIDTH=WIDTH,
    )  # fmt: skip
    find(
        turned.contiguous(),
        curvatures.contiguous(),
        outs,
        readers,
        by_turned,
        sums,
        tokens,
        channels,
        projections,
    )
    return by_turned, sums.sum(dim=0)


DOT_ROWS, SUM_ROWS, COLUMNS = 32, 16, 64
"""Entries of a matrix that a program holds."""


@triton.jit
def column_dots_kernel(
    left, right, found, size, matrices, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Some columns of one matrix with those of its group's."""
    matrix = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    left += matrix * size * size
    right += matrix // matrices * size * size
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, size, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < size) & (column < size)
        place = row * size + column
        total += tl.load(left + place, mask=inside, other=0.0) * tl.load(right + place, mask=inside, other=0.0)
    dots = tl.sum(total, 0, keep_dims=True)
    tl.store(found + matrix * size + column, dots, mask=column < size)


def column_dots(left: Tensor, right: Tensor) -> Tensor:
    """Σ_i L_ij·R_ij of square matrices L (groups, matrices, size, size) and R (groups, size, size), float32.

    Returns (groups, matrices, size). Raises KernelError where Triton kernels do not run.
    """
    require_runnable(left.device)
    groups, matrices, size, _ = left.shape
    found = left.new_empty(groups, matrices, size)
    grid = groups * matrices, blocks_of(size, COLUMNS)
    find = repeated(column_dots_kernel, grid, ROWS=DOT_ROWS, COLUMNS=COLUMNS)
    find(left.contiguous(), right.contiguous(), found, size, matrices)
    return found


@triton.jit
def columns_weighted_kernel(
    source, weights, found, size, matrices, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """A tile of all matrices of a group, one after the other."""
    group = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < size) & (column < size)
    place = row * size + column
    source += group * matrices * size * size
    weights += group * matrices * size
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for matrix in range(matrices):
        weight = tl.load(weights + matrix * size + column, mask=column < size, other=0.0)
        total += tl.load(source + place, mask=inside, other=0.0) * weight
        source += size * size
    tl.store(found + group * size * size + place, total, mask=inside)


def columns_weighted(matrices: Tensor, weights: Tensor) -> Tensor:
    """Σ_p M_pij·w_pj of M (groups, matrices, size, size) and weights (groups, matrices, size), float32.

    Returns (groups, size, size). Raises KernelError where Triton kernels do not run.
    """
    require_runnable(matrices.device)
    groups, count, size, _ = matrices.shape
    found = matrices.new_empty(groups, size, size)
    grid = blocks_of(size, SUM_ROWS), blocks_of(size, COLUMNS), groups
    find = repeated(columns_weighted_kernel, grid, ROWS=SUM_ROWS, COLUMNS=COLUMNS)
    find(matrices.contiguous(), weights.contiguous(), found, size, count)
    return found

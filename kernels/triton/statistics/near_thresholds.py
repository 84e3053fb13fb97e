"""What activations near their thresholds cost, summed over the tokens of each row, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import blocks_of, repeated, require_runnable

TOKENS, STEP, WIDTH = 256, 16, 128
"""Tokens and channels of a program, and tokens that it reads at once."""


@triton.jit
def near_costs_kernel(
    inputs, gradients, thresholds, curvatures, positions, sums, length, channels, position_stride,
    FACTOR: tl.constexpr, TOKENS: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Sums of one row's part: costs, and behind those of all rows and parts the numbers of activations."""
    row, part = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)[None, :]
    of_row = row.to(tl.int64) * length * channels
    threshold = tl.load(thresholds + channel, mask=channel < channels, other=0.0)
    curvature = tl.load(curvatures + channel, mask=channel < channels, other=0.0)
    lowest, highest = threshold / FACTOR, threshold * FACTOR
    cost = tl.zeros((STEP, WIDTH), tl.float32)
    near = tl.zeros((STEP, WIDTH), tl.float32)
    for first in range(0, TOKENS, STEP):
        token = part * TOKENS + first + tl.arange(0, STEP)[:, None]
        inside = (token < length) & (channel < channels)
        place = of_row + token * channels + channel
        x = tl.load(inputs + place, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(gradients + place, mask=inside, other=0.0).to(tl.float32)
        magnitude = tl.abs(x)
        close = inside & (magnitude >= lowest) & (magnitude < highest)
        if positions is not None:
            close = close & (
                tl.load(positions + row * position_stride + token, mask=token < length, other=0) != 0
            )
        second = 0.5 * curvature * x
        slope = tl.where(magnitude >= threshold, second, -second) - gradient
        cost += tl.where(close, slope * x, 0.0)
        near += tl.where(close, 1.0, 0.0)
    found = (row * tl.num_programs(1) + part) * channels + channel
    behind = tl.num_programs(0) * tl.num_programs(1) * channels
    tl.store(sums + found, tl.sum(cost, 0)[None, :], mask=channel < channels)
    tl.store(sums + behind + found, tl.sum(near, 0)[None, :], mask=channel < channels)


def near_costs(
    x: Tensor, gradient: Tensor, thresholds: Tensor, curvature: Tensor, positions: Tensor | None, factor: float
) -> Tensor:
    """(2, rows, channels) float32 of x, gradient (rows, length, channels): costs, and activations that count.

    Those count that lie within `factor` of their thresholds (channels,) float32; what one costs is
    (±½·curvature·x - gradient)·x, + where it is kept. positions (rows or 1, length) bool; None: all.
    Raises KernelError where Triton kernels do not run.
    """
    require_runnable(x.device)
    rows, length, channels = x.shape
    parts = blocks_of(length, TOKENS)
    sums = torch.empty(2, rows, parts, channels, dtype=torch.float32, device=x.device)
    stride = 0 if positions is None or len(positions) == 1 else length
    bits = None if positions is None else positions.contiguous().view(torch.uint8)
    measure = repeated(
        near_costs_kernel, (rows, parts, blocks_of(channels, WIDTH)), FACTOR=factor, TOKENS=TOKENS, STEP=STEP,
        WIDTH=WIDTH,
    )  # fmt: skip
    measure(x.contiguous(), gradient.contiguous(), thresholds, curvature, bits, sums, length, channels, stride)
    return sums.sum(dim=2)

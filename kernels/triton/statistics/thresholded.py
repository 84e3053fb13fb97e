"""Activations with zeros below their thresholds, and the gradients of that, each in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import blocks_of, repeated, require_runnable

TOKENS, WIDTH = 16, 128
"""Activations of a program."""


@triton.jit
def thresholded_kernel(
    values, inputs, thresholds, positions, found, tokens, length, channels, position_stride,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Values where an input reaches its threshold or its token is dense, and nought times them elsewhere."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = (token < tokens) & (channel < channels)
    place = token.to(tl.int64) * channels + channel
    x = tl.load(inputs + place, mask=inside, other=0.0).to(tl.float32)
    kept = tl.abs(x) >= tl.load(thresholds + channel, mask=channel < channels, other=0.0)
    if positions is not None:
        of_token = token // length * position_stride + token % length
        kept = kept | (tl.load(positions + of_token, mask=token < tokens, other=0) == 0)
    value = tl.load(values + place, mask=inside, other=0.0)
    tl.store(found + place, (value.to(tl.float32) * kept.to(tl.float32)).to(value.dtype), mask=inside)


class _Thresholded(torch.autograd.Function):
    """Which channels are kept has no gradient, and is found again from the inputs, which are there anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, thresholds: Tensor, positions: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, thresholds, positions)
        return _times_kept(x, x, thresholds, positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _times_kept(gradient.contiguous(), *ctx.saved_tensors), None, None


def _times_kept(values: Tensor, x: Tensor, thresholds: Tensor, positions: Tensor | None) -> Tensor:
    found = torch.empty_like(values)
    length, channels = x.shape[-2:]
    stride = 0 if positions is None or len(positions) == 1 else length
    tokens = x.numel() // channels
    grid = blocks_of(tokens, TOKENS), blocks_of(channels, WIDTH)
    multiply = repeated(thresholded_kernel, grid, TOKENS=TOKENS, WIDTH=WIDTH)
    multiply(values, x, thresholds, positions, found, tokens, length, channels, stride)
    return found


def thresholded(x: Tensor, thresholds: Tensor, positions: Tensor | None) -> Tensor:
    """X (rows, length, channels) with zeros where |x| is below its threshold, at the tokens that are sparse.

    thresholds: (channels,) float32; positions: (rows or 1, length) bool, None: every token. Raises KernelError
    where Triton kernels do not run.
    """
    require_runnable(x.device)
    bits = None if positions is None else positions.contiguous().view(torch.uint8)
    return _Thresholded.apply(x.contiguous(), thresholds, bits)

"""Slopes of Σ out·u/(1+u), u = y²·c, of activations y that several projections read, in one pass over them."""

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

"""Histograms of log2|x| by channel, counted where activations lie: one launch for a dozen of torch's."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..launch import blocks_of, repeated, require_runnable

ROWS, WIDTH = 32, 128
"""Activations of a program."""


@triton.jit
def histogram_kernel(
    source, counts, not_finite, rows, channels,
    LOWEST: tl.constexpr, BINS: tl.constexpr, BINS_PER_OCTAVE: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of rows and channels; zeros count in the first bin, what is not finite in the last."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = (row < rows) & (channel < channels)
    x = tl.load(source + row.to(tl.int64) * channels + channel, mask=inside, other=0.0).to(tl.float32)
    magnitude = tl.abs(x)
    finite = magnitude < float("inf")
    # A zero has no logarithm, and lies below all bins.
    logarithm = tl.log2(tl.where(finite & (magnitude > 0.0), magnitude, 1.0))
    place = tl.minimum(tl.maximum((logarithm - LOWEST) * BINS_PER_OCTAVE, 0.0), BINS - 1.0).to(tl.int32)
    place = tl.where(finite, tl.where(magnitude > 0.0, place, 0), BINS - 1)
    tl.atomic_add(counts + channel * BINS + place, 1, mask=inside, sem="relaxed")
    broken = tl.sum(tl.sum((inside & (finite == 0)).to(tl.int64), 1), 0)
    tl.atomic_add(not_finite, broken, mask=broken > 0, sem="relaxed")


def count_magnitudes(
    x: Tensor, counts: Tensor, not_finite: Tensor, lowest_octave: int, bins_per_octave: int
) -> None:
    """Add activations (..., channels) to counts (channels, bins) int32, and what is not finite to (), int64.

    Raises KernelError where Triton kernels do not run.
    """
    require_runnable(x.device)
    channels, bins = counts.shape
    x = x.reshape(-1, channels).contiguous()
    grid = blocks_of(len(x), ROWS), blocks_of(channels, WIDTH)
    count = repeated(
        histogram_kernel, grid, LOWEST=lowest_octave, BINS=bins, BINS_PER_OCTAVE=bins_per_octave, ROWS=ROWS,
        WIDTH=WIDTH,
    )  # fmt: skip
    count(x, counts, not_finite, len(x), channels)

"""Products with weights in 8 and 4 bits: the CUDA source as it is, emulated on a CPU, and on a GPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from wisparse.kernels.cuda.product import (
    CUDATile,
    Given,
    cuda_product,
)
from wisparse.kernels.cuda.stored_weight import CUDAWeight
from wisparse.kernels.quantised.int4 import int4_rounded
from wisparse.kernels.quantised.int8 import int8_rounded
from wisparse.kernels.quantised.packed import side_by_side

from ..triton_cases import DEVICE
from .test_cuda_product import assert_close, drawn, masked_product

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")
TILES = (
    CUDATile(warps=2, unroll=2),
    CUDATile(columns=128, warps=4, cluster=3, unroll=4),
    CUDATile(columns=256, warps=8, cluster=2, unroll=2),
)
FORMATS = {
    "int8": int8_rounded,
    "int4 by 64": partial(int4_rounded, group=64, symmetric=True),
    "int4 by 128, zero points": partial(int4_rounded, group=128, symmetric=False),
}
TOLERANCE = 1e-6
"""Sums are exact but for 2^-30 of the largest activation in each, float32 sums of a few of them, and scales."""


def case(format: str, channels: int, multiples: tuple[int, ...]) -> tuple[Tensor, Tensor, CUDAWeight, Tensor]:
    """x (1, channels), bounds that drop about half, a weight of uneven rows, the same dequantised."""
    widths = widths_of(format, multiples)
    x = drawn(1, channels, dtype=torch.bfloat16)
    bounds = drawn(len(widths), channels, seed=1).abs()
    stored = [
        FORMATS[format](drawn(channels, width, seed=2 + place) * drawn(channels, 1, seed=9).exp() + 0.3)
        for place, width in enumerate(widths)
    ]
    return (
        x,
        bounds,
        CUDAWeight.of(side_by_side(*stored)),
        torch.cat([one.dequantised() for one in stored], dim=1),
    )


def widths_of(format: str, multiples: tuple[int, ...]) -> tuple[int, ...]:
    step = 128 if "128" in format else 64 if "64" in format else 16
    return tuple(step * multiple for multiple in multiples)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tile", TILES)
def test_a_product_of_three_projections(tile: CUDATile, format: str) -> None:
    """Widths that fill no tile, channels that fill no step, each projection with its own list, and a bias."""
    if "128" in format and tile.columns == 64:
        tile = CUDATile(columns=128, warps=4, unroll=2)
    multiples = (5, 2, 1)
    widths = widths_of(format, multiples)
    x, bounds, weight, exact = case(format, 203, multiples)
    out, bias = (
        torch.full((1, sum(widths)), 7.0, device=DEVICE),
        drawn(sum(widths), seed=5, dtype=torch.bfloat16),
    )
    cuda_product(Given(x), bounds, weight, widths, out, tile, bias)
    assert_close(out, masked_product(x, bounds, exact, widths) + bias.double(), TOLERANCE)

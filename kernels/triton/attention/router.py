"""Scores of a block's key-value groups: a linear router on what q, k and v read (Polar Sparsity).

A group's score is the highest of its heads' logits, as in the published code.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...errors import KernelError
from ..compact import inverse_norm, rounded
from ..launch import check_tensor, launch, power_of_two


@triton.jit
def router_kernel(
    residual, squares, gain, weight, bias, scores,
    EPSILON: tl.constexpr, TILES: tl.constexpr, PADDED_TILES: tl.constexpr, CHANNELS: tl.constexpr,
    BATCH: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row and one group."""
    group = tl.program_id(0)
    row = tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    inside = channel < CHANNELS
    scale = tl.load(gain + channel, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(residual + row * CHANNELS + channel, mask=inside, other=0.0)
    x = x * inverse_norm(squares, row + tl.arange(0, 1), CHANNELS, TILES, BATCH, EPSILON, PADDED_TILES)
    x = rounded(rounded(x, gain) * scale, gain)
    highest = float("-inf")
    for each in tl.static_range(GROUP):
        head = group * GROUP + each
        of_head = tl.load(weight + head * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
        logit = tl.sum(x * of_head, 0) + tl.load(bias + head).to(tl.float32)
        highest = tl.maximum(highest, logit)
    tl.store(scores + row * GROUPS + group, highest)


def group_scores(
    residual: Tensor,
    squares: Tensor,
    gain: Tensor,
    epsilon: float,
    weight: Tensor,
    bias: Tensor,
    scores: Tensor,
    pdl: bool = False,
) -> None:
    """Fill scores (batch, groups) float32 with the highest logit of each group's heads, behind RMSNorm.

    residual: (batch, channels) float32, the residual stream, and squares (batch, tiles) its sums of squares;
    gain: (channels,) of the norm; weight (heads, channels) and bias (heads,) of the router, in the gain's
    dtype. Raises KernelError for tensors that do not fit.
    """
    batch, channels = residual.shape
    heads, groups = weight.shape[0], scores.shape[1]
    if heads % groups:
        raise KernelError(f"{heads} heads are no {groups} equal groups")
    check_tensor("router", weight, (heads, channels), gain.dtype)
    check_tensor("the router's bias", bias, (heads,), gain.dtype)
    tiles = squares.shape[1]
    launch(
        router_kernel,
        (groups, batch),
        residual, squares, gain, weight, bias, scores,
        EPSILON=epsilon, TILES=tiles, PADDED_TILES=power_of_two(tiles), CHANNELS=channels, BATCH=batch,
        GROUPS=groups, GROUP=heads // groups, WIDTH=power_of_two(channels),
        warps=8 if channels <= 4096 else 16, pdl=pdl,
    )  # fmt: skip

"""RMSNorm before q, k and v, and scores of a block's key-value groups of it: a linear router (Polar Sparsity).

A group's score is the highest of its heads' logits, as in the published code. One launch does both: the scores
alone would take one more between the residual stream and the product of q, k and v.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...errors import KernelError
from ..compact import inverse_norm, normalised
from ..launch import check_tensor, launch, power_of_two


@triton.jit
def router_kernel(
    residual, squares, gain, weight, bias, scores, x_out,
    EPSILON: tl.constexpr, TILES: tl.constexpr, PADDED_TILES: tl.constexpr, CHANNELS: tl.constexpr,
    BATCH: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr,
    WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row and one group: its score, and a share of x as large as that of each other group."""
    group = tl.program_id(0)
    row = tl.program_id(1)
    SHARE: tl.constexpr = (CHANNELS + GROUPS - 1) // GROUPS
    channel = tl.arange(0, WIDTH)
    inside = channel < CHANNELS
    each = tl.arange(0, PADDED_GROUP)
    real = each < GROUP
    # Parameters are read before the wait for the kernel that writes the residual stream.
    scale = tl.load(gain + channel, mask=inside, other=0.0).to(tl.float32)
    head = group * GROUP + each
    at = weight + head[:, None] * CHANNELS + channel[None, :]
    of_heads = tl.load(at, mask=real[:, None] & inside[None, :], other=0.0)
    added = tl.load(bias + head, mask=real, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(residual + row * CHANNELS + channel, mask=inside, other=0.0)
    inverse = inverse_norm(squares, row + tl.arange(0, 1), CHANNELS, TILES, BATCH, EPSILON, PADDED_TILES)
    x = normalised(x, inverse, scale, gain)
    own = inside & (channel // SHARE == group)
    tl.store(x_out + row * CHANNELS + channel, x.to(x_out.dtype.element_ty), mask=own)
    logits = tl.sum(x[None, :] * of_heads.to(tl.float32), 1) + added
    tl.store(scores + row * GROUPS + group, tl.max(tl.where(real, logits, float("-inf")), 0))


def group_scores(
    residual: Tensor,
    squares: Tensor,
    gain: Tensor,
    epsilon: float,
    weight: Tensor,
    bias: Tensor,
    scores: Tensor,
    x_out: Tensor,
    pdl: bool = False,
) -> None:
    """Normalise the residual stream to x_out, and score each group by the highest logit of its heads.

    residual: (batch, channels) float32, the residual stream, and squares (batch, tiles) its sums of squares;
    gain: (channels,) of the norm; weight (heads, channels) and bias (heads,) of the router, in the gain's
    dtype. x_out: (batch, channels) in it; scores: (batch, groups) float32. Raises KernelError
    for tensors that do not fit.
    """
    batch, channels = residual.shape
    heads, groups = weight.shape[0], scores.shape[1]
    if heads % groups:
        raise KernelError(f"{heads} heads are no {groups} equal groups")
    check_tensor("router", weight, (heads, channels), gain.dtype)
    check_tensor("the router's bias", bias, (heads,), gain.dtype)
    check_tensor("x_out", x_out, (batch, channels), gain.dtype)
    tiles = squares.shape[1]
    launch(
        router_kernel,
        (groups, batch),
        residual, squares, gain, weight, bias, scores, x_out,
        EPSILON=epsilon, TILES=tiles, PADDED_TILES=power_of_two(tiles), CHANNELS=channels, BATCH=batch,
        GROUPS=groups, GROUP=heads // groups, PADDED_GROUP=power_of_two(heads // groups),
        WIDTH=power_of_two(channels), warps=8 if channels <= 4096 else 16, pdl=pdl,
    )  # fmt: skip

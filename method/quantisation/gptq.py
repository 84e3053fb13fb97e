"""GPTQ (arXiv 2210.17323) for weights in 4 bits whose groups lie along the outputs.

Input channels are rounded one after the other; what rounding one changes in the product is made up for by those
that are still to come. The scales of a channel's groups are those of its weights at that moment.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.quantised.int4 import Int4Weight, check_groups, rows_rounded
from ..errors import UserError

DAMPED_BY = ("mean", "own")
"""What the share that is added to the diagonal of XᵀX is of."""


def gptq(weight: Tensor, factor: Tensor, group: int, symmetric: bool) -> Int4Weight:
    """The weight (in, out) in 4 bits with about the least ‖X·W − X·Ŵ‖ that rounding channel by channel finds.

    factor: `inverse_factor` of XᵀX, X being the calibration inputs. In float64. Raises KernelError as
    `int4_rounded`.
    """
    check_groups(weight, group, symmetric)
    rows = []

    def rounded(_: int, remaining: Tensor) -> Tensor:
        rows.append(rows_rounded(remaining[:1], group, symmetric))
        return rows[-1].dequantised()[0]

    compensated(weight, factor, rounded)
    return Int4Weight(
        torch.cat([row.values for row in rows]),
        torch.cat([row.scales for row in rows]),
        None if symmetric else torch.cat([row.zeros for row in rows]),
        weight.shape[1],
    )


def compensated(weight: Tensor, factor: Tensor, stored: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The weight (in, out) float64 after each channel was stored, the error made up for by those after it.

    stored: makes of a channel and the rows (rest, out) from it on, as they are by then, that channel's row
    (out,). factor: see `gptq`.
    """
    exact = weight.detach().double().clone()
    factor = factor.to(exact.device)
    for channel in range(len(exact)):
        row = stored(channel, exact[channel:]).double()
        error = (exact[channel] - row) / factor[channel, channel]
        exact[channel + 1 :] -= factor[channel, channel + 1 :, None] * error
        exact[channel] = row
    return exact


def damped_channels(diagonal: Tensor, damping: float, damped_by: str) -> Tensor:
    """What is added to H's diagonal (in,) float64, by one of DAMPED_BY; above 0 everywhere.

    `mean`: a share of the diagonal's mean, as GPTQ and SparseGPT have it. `own`: a share of each channel's own
    entry, so that it does not matter how channels are scaled: beside one of massive activations the mean is
    larger than what all others hold, and nothing would be made up for there. Channels that no input reached get
    that of the least other one. Where no input was other than zero it is 1, so that nothing is made up for.
    """
    if not (reached := diagonal > 0).any():
        return torch.ones_like(diagonal)
    if damped_by == "mean":
        return torch.full_like(diagonal, damping * float(diagonal.mean()))
    return damping * diagonal.where(reached, diagonal[reached].min())


def check_damped_by(damped_by: str) -> None:
    """Raises UserError for a name that is none of DAMPED_BY."""
    if damped_by not in DAMPED_BY:
        raise UserError(f"quantisation.damped_by is {damped_by!r}; choose {' or '.join(DAMPED_BY)}")


def inverse_factor(hessian: Tensor, damping: float, damped_by: str = "mean") -> Tensor:
    """Upper triangular U (in, in) float64 with UᵀU = (H + Λ)⁻¹ of H = XᵀX (in, in).

    Λ is the diagonal of `damped_channels`, damping above 0. Raises UserError where it is too small for H + Λ to
    have an inverse in float64.
    """
    exact = hessian.double()
    damped = exact + damped_channels(exact.diagonal(), damping, damped_by).diag()
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise UserError(
            f"quantisation.damping={damping:g} is too small for the calibration text: channels that hardly any "
            "token reaches leave nothing to invert; try 0.01"
        ) from error

"""GPTQ (arXiv 2210.17323) for weights in 4 bits whose groups lie along the outputs.

Input channels are rounded one after the other; what rounding one changes in the product is made up for by those
that are still to come. The scales of a channel's groups are those of its weights at that moment.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.quantised.int4 import Int4Weight, int4_rounded


def gptq(weight: Tensor, factor: Tensor, group: int, symmetric: bool) -> Int4Weight:
    """The weight (in, out) in 4 bits with about the least ‖X·W − X·Ŵ‖ that rounding channel by channel finds.

    factor: `inverse_factor` of XᵀX, X being the calibration inputs. In float64. Raises KernelError as
    `int4_rounded`.
    """
    rows = []

    def rounded(_: int, remaining: Tensor) -> Tensor:
        rows.append(int4_rounded(remaining[:1], group, symmetric))
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


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper triangular U (in, in) float64 with UᵀU = (H + λI)⁻¹ of H = XᵀX (in, in).

    λ is `damping`, above 0, times the mean of H's diagonal; 1 where no input was other than zero, so that
    nothing is made up for.
    """
    exact = hessian.double()
    mean = exact.diagonal().mean()
    ridge = damping * mean if mean > 0 else 1.0
    damped = exact + ridge * torch.eye(len(exact), dtype=exact.dtype, device=exact.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)

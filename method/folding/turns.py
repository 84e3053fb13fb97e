"""Steps of orthogonal matrices along their group, against a slope."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN_KEPT, SIZE_KEPT = 0.9, 0.98
"""Shares that the means of slopes and of their squares keep at a step."""
NEWTON_STEPS = 6
"""Enough for turns by up to a radian, tens of times what a step turns."""


class Turns:
    """Turns by the Cayley transform of a skew matrix: the mean of past slopes over their size.

    As Adam, with one size for all entries of a matrix, so that what has no slope does not wander.
    """

    def __init__(self, basis: Tensor) -> None:
        self._own = torch.eye(basis.shape[-1], device=basis.device, dtype=basis.dtype)
        self._mean, self._size = torch.zeros_like(basis), torch.zeros_like(basis)
        self._steps = torch.zeros((), dtype=torch.float64, device=basis.device)

    def turned(self, basis: Tensor, slope: Tensor, angle: float | Tensor) -> Tensor:
        """`basis` (..., channels, channels) turned against its slope; `angle`: typical, in radians.

        What is kept between steps stays where it lies: a step may be captured as a CUDA graph.
        """
        self._steps += 1
        skew = basis.mT @ slope
        skew = skew - skew.mT
        self._mean.lerp_(skew, 1 - MEAN_KEPT)
        self._size.lerp_(skew.square(), 1 - SIZE_KEPT)
        bias = (1 - MEAN_KEPT**self._steps) / (1 - SIZE_KEPT**self._steps) ** 0.5
        size = bias * self._size.sqrt().mean(dim=(-2, -1), keepdim=True) + torch.finfo(basis.dtype).tiny
        half = 0.5 * angle * self._mean / size
        # Cayley's (1 + A)⁻¹(1 - A) is 1 - 2·A·(1 + A)⁻¹: products of few digits blur the angle, not the basis.
        return _orthogonal(basis - 2.0 * (basis @ half) @ self._inverse(half))

    def _inverse(self, skew: Tensor) -> Tensor:
        """(1 + skew)⁻¹ by Newton's iteration, in products alone: a GPU factorises small matrices slowly.

        From (1 - A)/α, for an α of at least 1 + |A|², what is lacking is at most 1 - 1/α, and its square at
        each step.
        """
        largest = (skew @ skew).abs().sum(dim=-1).amax(dim=-1)[..., None, None]
        plus = self._own + skew
        inverse = (self._own - skew) / (1.0 + largest)
        for _ in range(NEWTON_STEPS):
            inverse = _less(2.0, inverse, 1.0, inverse, plus @ inverse)
        return inverse


def _orthogonal(basis: Tensor) -> Tensor:
    """The same basis without what rounding has added: one step of Newton towards the nearest orthogonal one."""
    exact = basis.double()
    return _less(1.5, exact, 0.5, exact, exact.mT @ exact).to(basis.dtype)


def _less(share: float, whole: Tensor, factor: float, left: Tensor, right: Tensor) -> Tensor:
    """share·whole - factor·left·right of square matrices (..., channels, channels), in one launch."""
    many = [one.reshape(-1, *one.shape[-2:]) for one in (whole, left, right)]
    return torch.baddbmm(*many, beta=share, alpha=-factor).view_as(whole)

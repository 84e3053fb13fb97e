"""Steps of orthogonal matrices along their group, against a slope."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN_KEPT, SIZE_KEPT = 0.9, 0.98
"""Shares that the means of slopes and of their squares keep at a step."""


class Turns:
    """Turns by the Cayley transform of a skew matrix: the mean of past slopes over their size.

    As Adam, with one size for all entries of a matrix, so that what has no slope does not wander.
    """

    def __init__(self, basis: Tensor) -> None:
        self._own = torch.eye(basis.shape[-1], device=basis.device, dtype=basis.dtype)
        self._mean, self._size = torch.zeros_like(basis), torch.zeros_like(basis)
        self._steps = 0

    def turned(self, basis: Tensor, slope: Tensor, angle: float) -> Tensor:
        """`basis` (..., channels, channels) turned against its slope; `angle`: typical, in radians."""
        self._steps += 1
        skew = basis.mT @ slope
        skew = skew - skew.mT
        self._mean = MEAN_KEPT * self._mean + (1 - MEAN_KEPT) * skew
        self._size = SIZE_KEPT * self._size + (1 - SIZE_KEPT) * skew.square()
        bias = (1 - MEAN_KEPT**self._steps) / (1 - SIZE_KEPT**self._steps) ** 0.5
        size = bias * self._size.sqrt().mean(dim=(-2, -1), keepdim=True) + torch.finfo(basis.dtype).tiny
        half = 0.5 * angle * self._mean / size
        return _orthogonal(basis @ torch.linalg.solve(self._own + half, self._own - half))


def _orthogonal(basis: Tensor) -> Tensor:
    """The same basis without what rounding has added: one step of Newton towards the nearest orthogonal one."""
    exact = basis.double()
    return (1.5 * exact - 0.5 * exact @ exact.mT @ exact).to(basis.dtype)

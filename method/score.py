"""Channel scores |x_i|·c_i^α: α = 0 is TEAL's, α = 1 WINA's, α by layer WiSparse's."""

from __future__ import annotations

from torch import Tensor

SMALLEST_WEIGHT = 1e-4
"""Clamp of c^α (WiSparse, arXiv 2602.14452, sec. 4.1), so that a zero column does not divide by zero."""


def channel_weights(column_norms: Tensor, alpha: float | Tensor) -> Tensor:
    """The weight c_i^α of each channel's score.

    column_norms: (in,); alpha: a number, or (candidates, 1). Returns (in,) or (candidates, in) float32.
    """
    return column_norms.float().pow(alpha).clamp_min(SMALLEST_WEIGHT)

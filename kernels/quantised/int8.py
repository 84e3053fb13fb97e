"""Weights in 8 bits, symmetric, with a scale for each row and each column: w ≈ r_i · q_ij · c_j.

The scale of a row folds into its activation, that of a column into the sum: a product skips rows as it does
with weights in floating point, and multiplies nothing else inside of its loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .stored import (
    Dequantised,
    StoredBytes,
    UngroupedValues,
    bytes_of,
    check_not_below,
    check_not_beyond,
    check_weight,
    exact_room,
)

LARGEST = 127
"""Largest magnitude of a value; -128 is not used, so that signs are alike."""


@dataclass(frozen=True)
class Int8Weight(UngroupedValues, Dequantised):
    """A weight `(in, out)` in 8 bits: dequantised, its values are r_i · q_ij · c_j."""

    values: Tensor
    """(in, out) int8, from -127 to 127."""
    row_scales: Tensor
    """(in,) float32."""
    column_scales: Tensor
    """(out,) float32."""
    format = "int8"

    def columns(self, some: slice) -> Int8Weight:
        """See `Dequantised`."""
        return Int8Weight(self.values[:, some], self.row_scales, self.column_scales[some])

    def dequantise_into(self, rows: Tensor) -> None:
        """See `Dequantised`."""
        exact = exact_room(rows).copy_(self.values)
        exact.mul_(self.row_scales[:, None]).mul_(self.column_scales)
        if exact is not rows:
            rows.copy_(exact)

    def stored_bytes(self) -> StoredBytes:
        """A byte for each value; a dropped row takes its scale with it, those of the columns stay."""
        return StoredBytes(bytes_of(self.values), bytes_of(self.row_scales), bytes_of(self.column_scales))

    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by the name of their field."""
        return vars(self)


def int8_rounded(weight: Tensor) -> Int8Weight:
    """The nearest weight in 8 bits to `weight` (in, out), under scales that its largest values set.

    A column's scale is its largest magnitude; a row's is the largest of what is left, over 127. It is at most
    1/127, so that no value is farther off than under scales of the columns alone. Rows and columns of zeros
    have the scale 1. Raises KernelError for weights that are not finite, or beyond float32's normal numbers.
    """
    check_weight(weight)
    exact = weight.detach().double()
    largest = exact.abs().amax(dim=0)
    check_not_beyond(largest, torch.float32, weight)
    check_not_below(largest, torch.float32, weight)
    column_scales = _or_one(largest.float())
    relative = exact / column_scales.double()
    row_scales = _or_one((relative.abs().amax(dim=1) / LARGEST).float())
    values = (relative / row_scales.double()[:, None]).round().clamp(-LARGEST, LARGEST)
    return Int8Weight(values.to(torch.int8), row_scales, column_scales)


def _or_one(scales: Tensor) -> Tensor:
    return scales.where(scales > 0, 1.0)

"""Weights in 4 bits, in groups of neighbouring outputs of one input channel: w ≈ s · (q − z).

Scales and zero points lie with the row of their channel. A channel that is dropped costs nothing, neither its
values nor what is needed to read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import KernelError
from .stored import (
    Dequantised,
    StoredBytes,
    bytes_of,
    check_not_below,
    check_not_beyond,
    check_weight,
    exact_room,
)

LEVELS = 15
"""Largest stored value; the smallest is 0."""
MIDDLE = 8
"""Zero point of symmetric groups, whose values are 1 to 15."""


def packed(values: Tensor) -> Tensor:
    """Two values from 0 to 15 a byte, the earlier in the lower bits: (rows, n) uint8 → (rows, ⌈n / 2⌉) uint8.

    An odd n leaves the last four bits at zero.
    """
    values = torch.nn.functional.pad(values, (0, values.shape[1] % 2))
    return values[:, 0::2] | (values[:, 1::2] << 4)


def unpacked(found: Tensor, outputs: int) -> Tensor:
    """Inverse of `packed`: (rows, ⌈outputs / 2⌉) uint8 → (rows, outputs) uint8."""
    return torch.stack([found & 0xF, found >> 4], dim=2).flatten(1)[:, :outputs]


@dataclass(frozen=True)
class Int4Weight(Dequantised):
    """A weight `(in, out)` in 4 bits: dequantised, its values are s · (q − z)."""

    values: Tensor
    """(in, ⌈out / 2⌉) uint8, two values a byte."""
    scales: Tensor
    """(in, groups) float16."""
    zeros: Tensor | None
    """(in, groups) uint8; None where groups are symmetric."""
    outputs: int
    format = "int4"

    @property
    def group(self) -> int:
        """Outputs of a row that share a scale."""
        return self.outputs // self.scales.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return self.values.shape[0], self.outputs

    @property
    def together(self) -> int:
        """Whole groups and whole bytes."""
        return math.lcm(self.group, 2)

    def columns(self, some: slice) -> Int4Weight:
        """See `Dequantised`; from the first output of a group and of a byte on, to one that ends both."""
        groups = slice(some.start // self.group, some.stop // self.group)
        zeros = None if self.zeros is None else self.zeros[:, groups]
        values = self.values[:, some.start // 2 : (some.stop + 1) // 2]
        return Int4Weight(values, self.scales[:, groups], zeros, some.stop - some.start)

    def dequantise_into(self, rows: Tensor) -> None:
        """See `Dequantised`."""
        exact = exact_room(rows)
        exact[:, 0::2] = self.values & 0xF
        exact[:, 1::2] = self.values[:, : self.outputs // 2] >> 4
        grouped = exact.unflatten(1, (self.scales.shape[1], self.group))
        grouped.sub_(MIDDLE if self.zeros is None else self.zeros[..., None]).mul_(self.scales[..., None])
        if exact is not rows:
            rows.copy_(exact)

    def stored_bytes(self) -> StoredBytes:
        """Half a byte for each value, and with each row the scales and zero points of its groups."""
        return StoredBytes(bytes_of(self.values), bytes_of(self.scales, self.zeros), 0)

    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by the name of their field."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def int4_rounded(weight: Tensor, group: int, symmetric: bool) -> Int4Weight:
    """The nearest weight in 4 bits to `weight` (in, out), under scales that each group's extremes set.

    group: outputs that share a scale. symmetric: from -7 to 7 times the scale; otherwise 16 levels from the
    least value, or 0 where that is above it, to the greatest. Raises KernelError for a group that does not
    divide the outputs, for weights that are not finite, and for such as are too large or, all together, too
    small for scales in float16.
    """
    return _rounded(weight, check_groups(weight, group, symmetric), symmetric)


def check_groups(weight: Tensor, group: int, symmetric: bool) -> _Groups:
    """Groups of a weight (in, out); raises KernelError where 4 bits do not hold it, see `int4_rounded`."""
    check_weight(weight)
    if weight.shape[1] % group:
        raise KernelError(f"groups of {group} do not divide {weight.shape[1]} outputs; take one that does")
    groups = _groups_of(weight, group, symmetric)
    check_not_below(groups.scales, torch.float16, weight)
    return groups


def rows_rounded(rows: Tensor, group: int, symmetric: bool) -> Int4Weight:
    """What `int4_rounded` makes of some rows of a weight that `check_groups` has passed.

    Raises KernelError for such as are too large by now.
    """
    return _rounded(rows, _groups_of(rows, group, symmetric), symmetric)


def _rounded(rows: Tensor, groups: _Groups, symmetric: bool) -> Int4Weight:
    check_not_beyond(groups.scales, torch.float16, rows)
    scales = groups.scales.to(torch.float16)
    zeros = torch.full_like(scales, MIDDLE, dtype=torch.uint8)
    if not symmetric:
        zeros = (-groups.least / _divisor(scales)).round().clamp(0, LEVELS).to(torch.uint8)
    shifted = (groups.values / _divisor(scales)[..., None]).round() + zeros[..., None]
    values = shifted.clamp(1 if symmetric else 0, LEVELS).to(torch.uint8).flatten(1)
    return Int4Weight(packed(values), scales, None if symmetric else zeros, rows.shape[1])


class _Groups(NamedTuple):
    """A weight by groups of outputs, in float64."""

    values: Tensor
    """(in, groups, group)."""
    scales: Tensor
    """(in, groups), before they are rounded."""
    least: Tensor
    """(in, groups) value of the lowest level."""


def _groups_of(weight: Tensor, group: int, symmetric: bool) -> _Groups:
    values = weight.detach().double().unflatten(1, (-1, group))
    if symmetric:
        scales = values.abs().amax(dim=2) / (LEVELS - MIDDLE)
        return _Groups(values, scales, -scales * (LEVELS - MIDDLE))
    least, greatest = values.amin(dim=2).clamp_max(0), values.amax(dim=2).clamp_min(0)
    return _Groups(values, (greatest - least) / LEVELS, least)


def _divisor(scales: Tensor) -> Tensor:
    """Scales in float64; 1 where there is none: for float16 all of the group is 0."""
    return scales.double().where(scales > 0, 1.0)

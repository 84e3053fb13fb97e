"""Stored weights of projections that read the same activation, side by side in one tensor, for kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import KernelError
from ..weight_samples import Samples
from .int4 import Int4Weight
from .int8 import Int8Weight
from .stored import StoredWeight

FewBitsWeight = Int8Weight | Int4Weight
FORMATS = (Int8Weight.format, Int4Weight.format)
"""All formats that can be packed."""


class QuantisedModel(Protocol):
    """Interface of a model's weights in few bits."""

    description: str
    """Format and settings in words, as plans name them."""
    weights: Mapping[str, StoredWeight]
    """Every block projection by its key, and `lm_head` where that is quantised."""
    weight_samples: Samples | None
    """Samples of the weights that were quantised; None: nobody knows them."""


@dataclass(frozen=True, eq=False)
class PackedInt8:
    """Projections in 8 bits: w ≈ r_pi · q_ij · c_j, each projection p with row scales of its own."""

    values: Tensor
    """(in, total out) int8, one contiguous row for each input channel."""
    row_scales: Tensor
    """(projections, in) float32."""
    column_scales: Tensor
    """(total out,) float32."""
    widths: tuple[int, ...]
    """Outputs of each projection."""
    format = Int8Weight.format
    bits = 8

    @property
    def shape(self) -> tuple[int, int]:
        """(in, total out)."""
        return self.values.shape[0], sum(self.widths)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.values.nbytes + self.row_scales.nbytes + self.column_scales.nbytes


@dataclass(frozen=True, eq=False)
class PackedInt4:
    """Projections in 4 bits: w ≈ s · (q − z), in groups of neighbouring outputs of one input channel."""

    values: Tensor
    """(in, total out / 2) uint8, the earlier of two values in the lower bits."""
    scales: Tensor
    """(in, groups) float16."""
    zeros: Tensor | None
    """(in, groups) uint8; None: 8 for all."""
    widths: tuple[int, ...]
    """Outputs of each projection, multiples of `group`."""
    format = Int4Weight.format
    bits = 4

    @property
    def shape(self) -> tuple[int, int]:
        """(in, total out)."""
        return self.values.shape[0], sum(self.widths)

    @property
    def group(self) -> int:
        """Outputs that share a scale."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        return self.values.nbytes + self.scales.nbytes + zeros


PackedWeight = PackedInt8 | PackedInt4


def side_by_side(*stored: StoredWeight) -> PackedWeight:
    """The weights (in, out each) as one (in, total out), bit by bit, one contiguous row for each input channel.

    They become views of it, so that all are held once. Raises KernelError for formats that differ or are not
    known, and for groups that differ.
    """
    widths = tuple(weight.shape[1] for weight in stored)
    if all(isinstance(weight, Int8Weight) for weight in stored):
        return PackedInt8(
            _joined([weight.values for weight in stored], 1),
            torch.stack([weight.row_scales for weight in stored]),
            _joined([weight.column_scales for weight in stored], 0),
            widths,
        )
    if not all(isinstance(weight, Int4Weight) for weight in stored):
        formats = " and ".join(sorted({weight.format for weight in stored}))
        raise KernelError(f"weights in {formats} do not lie side by side")
    groups = {weight.shape[1] // weight.scales.shape[1] for weight in stored}
    kinds = {weight.zeros is None for weight in stored}
    if len(groups) > 1 or len(kinds) > 1:
        raise KernelError(
            "weights in 4 bits lie side by side in groups of one size, zero points in all or none"
        )
    check_widths(widths)
    zeros = None if stored[0].zeros is None else _joined([weight.zeros for weight in stored], 1)
    return PackedInt4(
        _joined([weight.values for weight in stored], 1),
        _joined([weight.scales for weight in stored], 1),
        zeros,
        widths,
    )


def check_widths(widths: Sequence[int]) -> None:
    """Raise KernelError for projections of so many outputs that do not lie side by side in 4 bits."""
    if any(width % 2 for width in widths[:-1]):
        found = ", ".join(map(str, widths))
        raise KernelError(
            f"two values in 4 bits share a byte: projections of {found} outputs do not lie side by side; take "
            "8 bits (quantisation=int8), or evaluate the plan without the engine (latency=none)"
        )


def separate(packed: PackedWeight) -> tuple[FewBitsWeight, ...]:
    """Each projection's weight (in, out) again: views of what `side_by_side` joined."""
    return tuple(some_of(packed, index, 1) for index in range(len(packed.widths)))


def some_of(packed: PackedWeight, first: int, count: int) -> FewBitsWeight:
    """Weight (in, out) of `count` projections beside each other from number `first` on: a view.

    Raises KernelError for several in 8 bits, whose rows have a scale in each.
    """
    start, end = sum(packed.widths[:first]), sum(packed.widths[: first + count])
    if isinstance(packed, PackedInt8):
        if count != 1:
            raise KernelError("projections in 8 bits have row scales of their own, and are one weight each")
        whole: FewBitsWeight = Int8Weight(packed.values, packed.row_scales[first], packed.column_scales)
    else:
        whole = Int4Weight(packed.values, packed.scales, packed.zeros, sum(packed.widths))
    return whole.columns(slice(start, end))


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    """One tensor, contiguous, of which these become parts."""
    if (whole := beside_each_other(tensors, dim)) is not None:
        return whole
    whole = torch.cat(tensors, dim=dim)
    for tensor, part in zip(tensors, whole.split([tensor.shape[dim] for tensor in tensors], dim), strict=True):
        tensor.data = part
    return whole


def beside_each_other(tensors: list[Tensor], dim: int = 1) -> Tensor | None:
    """The contiguous tensor that these are neighbouring parts of along a dimension; None: there is none."""
    first, total = tensors[0], sum(tensor.shape[dim] for tensor in tensors)
    shape = (*first.shape[:dim], total)
    strides = torch.empty(shape, device="meta").stride()
    place = first.storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or tensor.stride() != strides or tensor.storage_offset() != place:
            return None
        place += tensor.shape[dim]
    return first.as_strided(shape, strides)

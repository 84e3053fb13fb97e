"""Weights (in, out) as product.cu reads them: in half precision, or in 8 or 4 bits with their scales."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import KernelError
from ..quantised.packed import PackedInt8, PackedWeight
from ..triton.launch import check_tensor

LEAST_GROUP = 64
"""Columns of 4 bits that eight lanes read at once, which share a scale."""
VECTOR_BYTES = 16
VECTOR = 8
"""Values in half precision of sixteen bytes."""


@dataclass(frozen=True)
class Storage:
    """How values are stored, as far as kernels are compiled for it."""

    bits: int = 16
    group: int = 0
    """Columns that share a scale; 0: there are none, or scales of whole rows."""

    def __str__(self) -> str:
        return f"{self.bits} bits" + (f" in groups of {self.group}" if self.group else "")

    @property
    def multiple(self) -> int:
        """Columns of every projection are a multiple of this."""
        return max(VECTOR_BYTES * 8 // self.bits, self.group)

    def suits(self, widths: tuple[int, ...]) -> bool:
        """Whether kernels read projections of so many columns."""
        known = self.bits != 4 or self.group % LEAST_GROUP == 0 < self.group
        return known and all(width % self.multiple == 0 for width in widths)

    def scales_of_tile(self, columns: int) -> int:
        """Scales that a row has in a tile of so many columns."""
        return 1 if self.group in (0, columns) else max(1, columns // self.group)

    def entry_bytes(self, columns: int) -> int:
        """Shared memory of one listed channel: its index, and what its row is multiplied with."""
        return 4 if self.bits == 16 else 2 + 4 * self.scales_of_tile(columns)


HALF = Storage()


def storage_of(packed: PackedWeight) -> Storage:
    """How the values of a packed weight are stored."""
    return Storage(8) if isinstance(packed, PackedInt8) else Storage(4, packed.group)


@dataclass(frozen=True)
class CUDAWeight:
    """A weight of one to three projections."""

    values: Tensor
    """(in, out) in half precision or int8, (in, out / 2) uint8."""
    storage: Storage = HALF
    scales: Tensor | None = None
    """8 bits: (projections, in) float32; 4 bits: (groups, in) float16."""
    zeros: Tensor | None = None
    """(groups, in) uint8; None: 8 for all."""
    column_scales: Tensor | None = None
    """(out,) float32 of 8 bits."""

    @classmethod
    def of(cls, packed: PackedWeight) -> CUDAWeight:
        """The same values; scales of groups are laid out by channel within each group, once for all steps."""
        if packed not in _LAID_OUT:
            _LAID_OUT[packed] = cls(packed.values, storage_of(packed), *_scales(packed))
        return _LAID_OUT[packed]

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return self.values.shape[0], self.values.shape[1] * (2 if self.storage.bits == 4 else 1)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Tensors in the order in which the kernel takes them."""
        return self.values, self.scales, self.zeros, self.column_scales

    @property
    def constants(self) -> dict[str, object]:
        """Constants that the kernel is compiled for."""
        if self.storage.bits == 16:
            return {"BITS": 16}
        return {"BITS": self.storage.bits, "GROUP": self.storage.group, "ZEROS": int(self.zeros is not None)}

    def check(self, widths: tuple[int, ...]) -> None:
        """Raises KernelError for tensors that are not those of so many columns."""
        channels, row = self.shape
        values = self.values
        if sum(widths) != row or not values.is_contiguous() or values.data_ptr() % VECTOR_BYTES:
            raise KernelError(f"the weight must be a contiguous, aligned (in, {sum(widths)}) matrix")
        if self.storage.bits == 8:
            check_tensor("row scales", self.scales, (len(widths), channels), torch.float32)
            check_tensor("column scales", self.column_scales, (row,), torch.float32)
        if self.storage.bits == 4:
            groups = (row // self.storage.group, channels)
            check_tensor("scales", self.scales, groups, torch.float16)
            if self.zeros is not None:
                check_tensor("zero points", self.zeros, groups, torch.uint8)


_LAID_OUT: WeakKeyDictionary[PackedWeight, CUDAWeight] = WeakKeyDictionary()


def _scales(packed: PackedWeight) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if isinstance(packed, PackedInt8):
        return packed.row_scales.contiguous(), None, packed.column_scales.contiguous()
    zeros = None if packed.zeros is None else packed.zeros.T.contiguous()
    return packed.scales.T.contiguous(), zeros, None

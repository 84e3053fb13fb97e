"""What every format of quantised weights has in common: a row for each input channel, and its bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import KernelError


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of one stored weight `(in, out)`, by what a product that skips channels leaves unread."""

    values: int
    """Packed values, which belong to a row and to a column."""
    with_rows: int
    """Scales and zero points that lie with the rows."""
    with_columns: int
    """Scales of the columns, which the rows share."""

    @property
    def total(self) -> int:
        """All of them: what a dense product reads."""
        return self.values + self.with_rows + self.with_columns

    def read(self, rows: float, columns: float = 1.0) -> float:
        """Bytes read where these shares of the input channels and of the output neurons are kept."""
        return rows * columns * self.values + rows * self.with_rows + columns * self.with_columns


class StoredWeight(Protocol):
    """Interface of a quantised weight `(in, out)`."""

    format: str
    """Name of the format in files."""

    @property
    def group(self) -> int:
        """Outputs of a row that share a scale; 0: all do."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        ...

    def dequantised(self) -> Tensor:
        """The values that products are computed with, (in, out) float32."""
        ...

    def stored_bytes(self) -> StoredBytes:
        """Bytes of the packed values and of all that is needed to read them."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by the name of their field."""
        ...


PIECE = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Values that are dequantised at once, by the type of device: on a CPU as many as its second cache holds, on a
GPU as a linear of a model of 8B has, for two launches of more take longer than a journey to its memory."""


class Dequantised(ABC):
    """What formats in few bits have in common: values that are made of some columns at a time."""

    values: Tensor
    """One row for each input channel."""
    shape: tuple[int, int]
    """(in, out)."""
    together = 1
    """Columns that are not parted from each other."""

    @abstractmethod
    def columns(self, some: slice) -> Dequantised:
        """The weight of some outputs alone, a view."""

    @abstractmethod
    def dequantise_into(self, rows: Tensor) -> None:
        """Write the values into a tensor (in, out) of any floating type, rounded once from float32."""

    def pieces(self) -> Iterator[tuple[slice, Dequantised]]:
        """Columns of about PIECE values, and the weight of these."""
        inner, out = self.shape
        fitting = PIECE[self.values.device.type] // max(1, inner)
        step = max(self.together, fitting // self.together * self.together)
        for start in range(0, out, step):
            some = slice(start, min(start + step, out))
            yield some, self.columns(some)

    def dequantised(self) -> Tensor:
        """The values that products are computed with, (in, out) float32."""
        rows = torch.empty(self.shape, dtype=torch.float32, device=self.values.device)
        for some, piece in self.pieces():
            piece.dequantise_into(rows[:, some])
        return rows


class UngroupedValues:
    """What formats have in common that store a value for each weight, and no scales of groups."""

    values: Tensor
    """(in, out)"""
    group = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        inner, out = self.values.shape
        return inner, out


def exact_room(rows: Tensor) -> Tensor:
    """Where float32 values are made that belong into rows: rows itself, or room of the same shape."""
    if rows.dtype is torch.float32:
        return rows
    return torch.empty(rows.shape, dtype=torch.float32, device=rows.device)


def check_weight(weight: Tensor) -> None:
    """Raises KernelError for a weight that is no matrix of real numbers, or holds what is not finite."""
    if weight.ndim != 2 or not weight.numel():
        raise KernelError(f"a weight to be quantised has the shape (in, out), not {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise KernelError(f"a weight to be quantised is in floating point, not in {weight.dtype}")
    if wrong := int((~weight.isfinite()).sum()):
        raise KernelError(f"{wrong} weights are infinite or not a number and cannot be quantised")


def check_not_beyond(scales: Tensor, dtype: torch.dtype, weight: Tensor) -> None:
    """Raises KernelError where one of a weight's scales, given in float64, is beyond the type that keeps it."""
    if not float(scales.max()) <= torch.finfo(dtype).max:
        raise KernelError(_no_scales("large", dtype, weight))


def check_not_below(scales: Tensor, dtype: torch.dtype, weight: Tensor) -> None:
    """Raises KernelError where the largest of a weight's scales is below the normal numbers of their type.

    There the largest values would lose digits that their bits have, and the others vanish. Where the largest is
    normal others may vanish: what they scale is small beside the rest of the weight.
    """
    if 0 < float(scales.max()) < torch.finfo(dtype).tiny:
        raise KernelError(_no_scales("small", dtype, weight))


def _no_scales(how: str, dtype: torch.dtype, weight: Tensor) -> str:
    largest, kept = float(weight.abs().max()), str(dtype).removeprefix("torch.")
    instead = "; use 8 bits" if dtype is torch.float16 else ""
    return f"weights up to {largest:.3g} are too {how} for scales in {kept}{instead}"


def bytes_of(*tensors: Tensor | None) -> int:
    """Bytes of the elements of some tensors; none of what is not there."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)

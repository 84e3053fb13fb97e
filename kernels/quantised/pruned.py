"""Weights of which some are zero: only the others are stored, and with them where they stand or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .stored import StoredBytes, UngroupedValues

INDICES = {"none": 0, "bitmap": 1}
"""Bits of each place, kept or not, that say which are kept; without any, bytes are a bound beyond reach."""


@dataclass(frozen=True)
class PrunedWeight(UngroupedValues):
    """A weight `(in, out)` with zeros anywhere."""

    values: Tensor
    """(in, out), zeros included, in the type that those kept are stored in."""
    index: str
    """One of INDICES."""
    format = "pruned"

    def dequantised(self) -> Tensor:
        """The values, (in, out) float32."""
        return self.values.float()

    def stored_bytes(self) -> StoredBytes:
        """Values other than zero and the index; rows of a bitmap lie with the rows."""
        inner, out = self.values.shape
        kept = int(torch.count_nonzero(self.values)) * self.values.element_size()
        return StoredBytes(kept, -(-out * INDICES[self.index] // 8) * inner, 0)

    def tensors(self) -> Mapping[str, Tensor]:
        """The values, by the name of their field."""
        return {"values": self.values}

"""Tiles of products that list their channels themselves: the share of one thread block."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import KernelError
from ..stored_tile import StoredTile
from ..triton.launch import blocks_of
from .stored_weight import HALF, Storage

LARGEST_CLUSTER = 8
SHARED_BYTES = 48 << 10
"""Shared memory that a thread block has without asking."""
LANES = 32


@dataclass(frozen=True)
class CUDATile(StoredTile):
    """The share of one thread block."""

    columns: int = 64
    """Columns; 32 · 2^n, so that whole warps finish them, at most 256."""
    warps: int = 8
    cluster: int = 1
    """Thread blocks that share the channels of a tile."""
    unroll: int = 8
    """Rows that one lane has on their way."""
    resident: int = 2
    """Thread blocks that a multiprocessor must have registers for."""
    ahead: int = 0
    """Rows of a lane that are brought into the second cache before x is there, where all are kept."""

    def __post_init__(self) -> None:
        if self.columns not in (64, 128, 256):
            raise KernelError(f"tile: columns must be 64, 128 or 256, not {self.columns}")
        if not self.columns <= self.warps * LANES <= 1024:
            raise KernelError(f"tile: {self.warps} warps do not suit {self.columns} columns")
        if not 1 <= self.cluster <= LARGEST_CLUSTER:
            raise KernelError(f"tile: a cluster has 1 to {LARGEST_CLUSTER} thread blocks, not {self.cluster}")

    def shared_bytes(self, channels: int, lists: int, storage: Storage = HALF) -> int:
        """Shared memory of one thread block of a product with so many channels and lists."""
        steps = blocks_of(self._share(channels), self.warps * LANES)
        entries = steps * self.warps * LANES * storage.entry_bytes(self.columns)
        words = self.warps + (self.warps + self.cluster) * self.columns
        if storage.bits < 16:
            words += self.warps * storage.scales_of_tile(self.columns)
        squares = blocks_of(blocks_of(channels, LANES), LANES)  # sums of the residual stream's, in float32
        return lists * (entries + 4 * words) + 4 * squares

    def fits(self, channels: int, widths: tuple[int, ...], storage: Storage = HALF) -> bool:
        """Whether it is a tile for values so stored, and a thread block has shared memory for its lists.

        Gate and up, two widths, have one each.
        """
        if storage.bits < 16 and self.unroll % 2:  # rows are multiplied in pairs
            return False
        if storage.group and self.columns % storage.group and storage.group % self.columns:
            return False
        return self.shared_bytes(channels, 2 if len(widths) == 2 else 1, storage) <= SHARED_BYTES

    def blocks(self, widths: tuple[int, ...]) -> int:
        """Thread blocks of a launch: gate and up share theirs, and are one width here."""
        return sum(blocks_of(width, self.columns) for width in widths) * self.cluster

    def _share(self, channels: int) -> int:
        return blocks_of(blocks_of(channels, self.cluster), LANES) * LANES

    def constants(self, channels: int, row: int) -> dict[str, object]:
        """Constants of the tile and of the weight's sizes that the kernel is compiled for."""
        return {
            "IN": channels,
            "COLUMNS": row,
            "TILE": self.columns,
            "WARPS": self.warps,
            "CLUSTER": self.cluster,
            "UNROLL": self.unroll,
            "SHARE": self._share(channels),
            "RESIDENT": self.resident,
            "AHEAD": self.ahead,
        }

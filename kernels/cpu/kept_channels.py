"""Which input channels of a matrix-vector product are kept, and their values: what the CPU kernels hand on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KernelError

LARGEST_BATCH = 8
"""Rows of x in one call. With more, hardly any channel is dropped by all of them: use a matrix product."""


class KeptChannels:
    """A list of kept channels with room for all of them, made once for each shape and filled at every token.

    capacity: channels of x; batch: rows of x, 1 to 8. Raises KernelError outside these.
    """

    __slots__ = ("batch", "capacity", "channels_pointer", "count", "row_counts", "row_counts_pointer")
    __slots__ += ("_channels", "_values", "values_pointer")

    def __init__(self, capacity: int, batch: int = 1) -> None:
        if capacity < 1 or not 1 <= batch <= LARGEST_BATCH:
            raise KernelError(
                f"kept channels need at least one channel and a batch of 1 to {LARGEST_BATCH}, "
                f"not {capacity} channels and a batch of {batch}"
            )
        self.capacity = capacity
        self.batch = batch
        self.count = 0
        """Number of channels kept by any row."""
        self._channels = torch.zeros(capacity, dtype=torch.int32)
        self._values = torch.zeros(capacity, batch, dtype=torch.float32)
        self.row_counts = torch.zeros(batch, dtype=torch.int64)
        """(batch,) number of channels that each row keeps."""
        # Asking a tensor for its address takes longer than all else that a call needs of it.
        self.channels_pointer = self._channels.data_ptr()
        self.values_pointer = self._values.data_ptr()
        self.row_counts_pointer = self.row_counts.data_ptr()

    @property
    def channels(self) -> Tensor:
        """(count,) int32, ascending: a view, overwritten by the next selection into this object."""
        return self._channels[: self.count]

    @property
    def values(self) -> Tensor:
        """(count, batch) float32, 0 where a row drops a channel that another keeps: a view, may be changed."""
        return self._values[: self.count]

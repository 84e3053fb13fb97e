"""Lists of kept channels, the form in which activations reach the sparse kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import KernelError
from .launch import blocks_of

MAX_BATCH = 64


def written_to(lists: ChannelLists | None) -> tuple[Tensor | None, ...]:
    """Index, values and counts of lists as kernels take them, which write to x where there are none."""
    return (None, None, None) if lists is None else (lists.index, lists.values, lists.counts)


def check_written(bounds: Tensor | None, lists: ChannelLists | None, x_out: Tensor | None) -> None:
    """Raises KernelError unless a kernel is to write either lists, by bounds, or the whole activation."""
    if (lists is None) == (x_out is None) or (lists is None) != (bounds is None):
        raise KernelError("give bounds and lists, or x_out")


@dataclass(frozen=True)
class ChannelLists:
    """Kept channels of each projection that reads one activation, in blocks of `block` channels.

    A block's list starts at the block's own offset, so that programs which write different blocks need to know
    nothing of each other. A batch shares one list, the union of what its rows keep.
    """

    index: Tensor
    """(projections, blocks · block) int32; the first `counts` of each block are kept channels, ascending."""
    values: Tensor
    """(projections, batch, blocks · block) activations at listed channels, 0 where a row drops it; float32, or
    in the weights' dtype where the batch shares its mask."""
    counts: Tensor
    """(projections, blocks) int32."""
    channels: int
    block: int

    @classmethod
    def empty(
        cls,
        projections: int,
        batch: int,
        channels: int,
        block: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> ChannelLists:
        """Buffers for the lists. Raises KernelError for a batch that the kernels do not take."""
        if not 1 <= batch <= MAX_BATCH:
            raise KernelError(f"sparse kernels take batches of 1 to {MAX_BATCH}, not {batch}; split the batch")
        blocks = blocks_of(channels, block)
        return cls(
            index=torch.zeros(projections, blocks * block, dtype=torch.int32, device=device),
            values=torch.zeros(projections, batch, blocks * block, dtype=dtype, device=device),
            counts=torch.zeros(projections, blocks, dtype=torch.int32, device=device),
            channels=channels,
            block=block,
        )

    @classmethod
    def by_threshold(cls, x: Tensor, thresholds: Tensor, block: int) -> ChannelLists:
        """The lists of x (batch, channels) under thresholds (projections, channels), made in plain torch."""
        lists = cls.empty(len(thresholds), *x.shape, block, x.device)
        for projection, bounds in enumerate(thresholds):
            kept = x.float() * ~(x.float().abs() < bounds)
            listed = (~(x.float().abs() < bounds)).any(0).nonzero().flatten()
            # Entries of a block start at the block's own offset.
            begins = listed // block * block
            order = torch.arange(len(listed), device=x.device) - torch.searchsorted(listed, begins)
            places = begins + order
            lists.index[projection, places] = listed.int()
            lists.values[projection][:, places] = kept[:, listed]
            lists.counts[projection] = torch.bincount(listed // block, minlength=lists.blocks).int()
        return lists

    @property
    def projections(self) -> int:
        """Lists side by side."""
        return self.index.shape[0]

    @property
    def batch(self) -> int:
        """Rows of values."""
        return self.values.shape[1]

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return self.counts.shape[1]

    @property
    def capacity(self) -> int:
        """Entries a projection has room for."""
        return self.index.shape[1]

    def of(self, first: int, last: int) -> ChannelLists:
        """The lists of projections first to last − 1, on the same storage."""
        return ChannelLists(
            self.index[first:last], self.values[first:last], self.counts[first:last], self.channels, self.block
        )

    def dense(self) -> Tensor:
        """Activations behind the lists: (projections, batch, channels) float32, zeros at dropped channels."""
        places = torch.arange(self.block, device=self.index.device)
        kept = (places < self.counts[..., None]).flatten(1)
        full = torch.zeros(*self.values.shape[:2], self.channels, dtype=torch.float32, device=self.index.device)
        for projection, listed in enumerate(kept):
            channels = self.index[projection, listed].long()
            full[projection][:, channels] = self.values[projection][:, listed]
        return full

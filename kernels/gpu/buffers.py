"""Buffers of a decode step. All blocks share those of the same kind: their launches follow each other."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..triton.channel_lists import ChannelLists
from ..triton.gemv_tiles import Workspace

B = TypeVar("B")


class Buffers:
    """Tensors and lists by what they are for, made at first use."""

    def __init__(self, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.batch = batch
        self.dtype = dtype
        self.device = device
        self.workspace = Workspace(device)
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, made: B) -> B:
        """The first object that was made for this key."""
        return self._made.setdefault(key, made)

    def x(self, name: str, channels: int) -> Tensor:
        """(batch, channels) activation in the dtype of the weights."""
        return self.once(("x", name), torch.zeros(self.batch, channels, dtype=self.dtype, device=self.device))

    def sums(self, name: Hashable, *shape: int) -> Tensor:
        """float32 tensor of this shape, zeros at first."""
        return self.once(("sums", name, shape), torch.zeros(shape, dtype=torch.float32, device=self.device))

    def lists(self, name: str, projections: int, channels: int, block: int) -> ChannelLists:
        """Lists of one site."""
        key = ("lists", name, projections, block)
        return self.once(key, ChannelLists.empty(projections, self.batch, channels, block, self.device))

    def shared_lists(self, name: str, projections: int, channels: int) -> ChannelLists:
        """Lists of one site that all rows share, one block each."""
        made = ChannelLists.empty(projections, self.batch, channels, channels, self.device, self.dtype)
        return self.once(("shared lists", name, projections), made)

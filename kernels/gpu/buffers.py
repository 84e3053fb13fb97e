"""Buffers of a decode step. All blocks share those of the same kind: their launches follow each other."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
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

    def once(self, key: Hashable, make: Callable[[], B]) -> B:
        """The object of this key, made at first use."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def x(self, name: str, channels: int) -> Tensor:
        """(batch, channels) activation in the dtype of the weights."""
        make = partial(torch.zeros, self.batch, channels, dtype=self.dtype, device=self.device)
        return self.once(("x", name), make)

    def sums(self, name: Hashable, *shape: int) -> Tensor:
        """float32 tensor of this shape, zeros at first."""
        make = partial(torch.zeros, shape, dtype=torch.float32, device=self.device)
        return self.once(("sums", name, shape), make)

    def lists(self, name: str, projections: int, channels: int, block: int) -> ChannelLists:
        """Lists of one site."""
        make = partial(ChannelLists.empty, projections, self.batch, channels, block, self.device)
        return self.once(("lists", name, projections, block), make)

    def shared_lists(self, name: str, projections: int, channels: int) -> ChannelLists:
        """Lists of one site that all rows share, one block each."""
        size = (projections, self.batch, channels, channels)
        make = partial(ChannelLists.empty, *size, self.device, self.dtype)
        return self.once(("shared lists", name, projections), make)

"""How a product is cut into programs, and what that means for one shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import KernelError
from ..stored_tile import StoredTile
from .channel_lists import ChannelLists
from .launch import blocks_of, power_of_two


@dataclass(frozen=True)
class Tile(StoredTile):
    """The share of one program."""

    columns: int = 256
    """Columns; a power of two."""
    channels: int = 16
    """Rows of the weight in one step; a power of two."""
    group: int = 1
    """List blocks of one program, where blocks are not split."""
    parts: int = 1
    """Programs that share a list block."""
    share: int = 256
    """Channels of one program where the activation is dense: a multiple of `channels`."""
    warps: int = 4
    stages: int = 3

    def __post_init__(self) -> None:
        for name in ("columns", "channels"):
            if getattr(self, name) != power_of_two(getattr(self, name)):
                raise KernelError(f"tile: {name} must be a power of two, not {getattr(self, name)}")
        if self.group > 1 and self.parts > 1:
            raise KernelError("tile: a program takes several list blocks or a part of one, not both")
        if self.share % self.channels:
            raise KernelError(f"tile: share {self.share} is no multiple of channels {self.channels}")

    def splits(self, lists: ChannelLists | None, inner: int) -> int:
        """Programs that share a column tile: over the blocks of lists, or over `inner` dense channels."""
        if lists is None:
            return blocks_of(inner, self.share)
        return blocks_of(lists.blocks, self.group) * self.parts

    def meta(self, lists: ChannelLists | None, inner: int, batch: int) -> dict[str, object]:
        """Constants that every kernel with a product takes."""
        channels = self.channels if batch == 1 else max(self.channels, 16)
        return {
            "IN": inner,
            "BLOCK": lists.block if lists else 1,
            "BLOCKS": lists.blocks if lists else 1,
            "BATCH": batch,
            "ROWS": power_of_two(batch),
            # Tensor cores multiply 16 rows at once, and 16 channels.
            "ACC_ROWS": 1 if batch == 1 else max(16, power_of_two(batch)),
            "TILE": self.columns,
            "CHANNELS": channels,
            "GROUP": self.group,
            "PARTS": self.parts,
            "SHARE": blocks_of(self.share, channels) * channels,
            "SPLITS": self.splits(lists, inner),
            "STAGES": self.stages,
            "LISTED": lists is not None,
        }


class Workspace:
    """Partial sums and counters that launches on one stream share; they grow until `freeze`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._partials = torch.empty(0, dtype=torch.float32, device=device)
        self._counters = torch.zeros(0, dtype=torch.int32, device=device)
        self._frozen = False

    def partials(self, size: int) -> torch.Tensor:
        """Buffer of at least `size` float32, of any content."""
        if size > self._partials.numel():
            self._check_not_frozen()
            self._partials = torch.empty(size, dtype=torch.float32, device=self._device)
        return self._partials

    def counters(self, size: int) -> torch.Tensor:
        """Buffer of at least `size` int32 counters at 0; every kernel leaves them at 0."""
        if size > self._counters.numel():
            self._check_not_frozen()
            self._counters = torch.zeros(size, dtype=torch.int32, device=self._device)
        return self._counters

    def freeze(self) -> None:
        """Keep the addresses from now on: a CUDA graph holds them."""
        self._frozen = True

    def _check_not_frozen(self) -> None:
        if self._frozen:
            raise KernelError(
                "a launch wants more workspace than the captured CUDA graph; make a new decode step"
            )

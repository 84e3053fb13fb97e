"""What all tiles of kernels share: how they are kept on disk once they are tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from .errors import KernelError

T = TypeVar("T", bound="StoredTile")


class StoredTile:
    """The share of one program or thread block, a dataclass of numbers."""

    def key(self) -> dict[str, Any]:
        """Fields by name, JSON-able."""
        return asdict(self)

    @classmethod
    def from_key(cls: type[T], stored: Mapping[str, Any]) -> T | None:
        """The tile of a `key`; None where another version of it was stored, which no longer is one."""
        try:
            return cls(**stored)
        except (TypeError, KernelError):
            return None

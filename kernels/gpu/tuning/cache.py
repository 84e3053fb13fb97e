"""Tiles that were tuned on the machine, kept on disk by shape, dtype, batch and sparsity."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import triton

from ...model.decoder import Product
from ...shared_files import NO_LOCKS, locked, replacing
from ...stored_tile import StoredTile
from .timing import device_name

T = TypeVar("T", bound=StoredTile)

CACHE_VARIABLE = "WISPARSE_CACHE"

SPARSITY_BUCKETS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class TuningCache:
    """Tiles by key in one JSON file: `$WISPARSE_CACHE/tiles.json`, else under ~/.cache/wisparse."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or cache_folder()) / "tiles.json"

    def find(self, key: str, kind: type[T]) -> T | None:
        """The tile of a key; None where it was never tuned, or not in this version, or the file is damaged."""
        stored = self._read().get(key)
        return None if stored is None else kind.from_key(stored["tile"])

    def store(self, key: str, tile: StoredTile, microseconds: float) -> None:
        """Keep a tile; the file appears complete or not at all, and processes that tune at once lose none.

        On a file system without locks they may: what is lost is tuned again.
        """
        entry: dict[str, dict[str, object]] = {key: {"tile": tile.key(), "us": round(microseconds, 3)}}
        try:
            with locked(self.path.with_suffix(".lock"), pause=0.01):
                self._add(entry)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._add(entry)

    def _add(self, entry: dict[str, dict[str, object]]) -> None:
        with replacing(self.path) as unfinished:
            unfinished.write_text(json.dumps(self._read() | entry, indent=1, sort_keys=True), encoding="utf-8")

    def tuned(self, key: str, kind: type[T], search: Callable[[], tuple[T, float]]) -> T:
        """The tile of a key, which `search` finds the first time, with its microseconds."""
        tile = self.find(key, kind)
        if tile is None:
            tile, microseconds = search()
            self.store(key, tile, microseconds)
        return tile

    def _read(self) -> dict[str, dict[str, object]]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a cache that is missing or broken is an empty one
            return {}


def cache_folder() -> Path:
    """Where tuned tiles are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "wisparse")


def bucket_of(sparsity: float) -> float:
    """The sparsity among SPARSITY_BUCKETS that is nearest."""
    return min(SPARSITY_BUCKETS, key=lambda bucket: abs(bucket - sparsity))


def tuning_key(
    launched: Product,
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    sparsity: float | None,
    block: int,
) -> str:
    """Key of what a tile was tuned for; sparsity None is the dense kernel."""
    kind = "dense" if sparsity is None else f"sparse {bucket_of(sparsity):g} block {block}"
    made_with = f"triton {triton.__version__}"
    return f"{launch_key(made_with, launched, dtype, device)} | batch {batch} | {kind}"


def launch_key(made_with: str, launched: Product, dtype: torch.dtype, device: torch.device) -> str:
    """Beginning of every key: device, what the kernel is made with, product and dtype."""
    sizes = f"{launched.inner}x{'+'.join(map(str, launched.widths))}"
    return (
        f"{device_name(device)} | {made_with} | {launched.name} {sizes} | {str(dtype).removeprefix('torch.')}"
    )

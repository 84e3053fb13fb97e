"""Tiles of Triton's products, each tuned by itself."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TypeVar

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import TritonError

from ...errors import KernelError
from ...model.decoder import DecoderShape, Product, products_of
from ...stored_tile import StoredTile
from ...triton.gemv_tiles import Tile
from ...triton.launch import INTERPRETED, blocks_of
from ..step_tiles import StepTiles, default_tiles
from .cache import TuningCache, bucket_of, launch_key, tuning_key
from .timing import Clock, graph_clock
from .workload import Workload

T = TypeVar("T", bound=StoredTile)
FEWEST_PROGRAMS = 120
MOST_PROGRAMS = 2500
LEAST_ON_ITS_WAY = 3 << 20
"""Bytes: what a memory of 3 TB/s with a microsecond to wait has to be asked for ahead."""
SAMPLE = 48
ROUNDS = 4


@dataclass(frozen=True)
class Faster(StoredTile):
    """Which of two products of a whole activation is the faster one."""

    library: bool
    """Torch's; else Triton's."""


def candidates(launched: Product, batch: int, list_block: int | None) -> list[Tile]:
    """Tiles worth timing: list_block is the size of list blocks, None for the dense kernel."""
    channels = (8, 16, 32, 64) if batch == 1 else (16, 32)
    columns = (64, 128, 256, 512) if batch == 1 else (64, 128, 256)
    found = []
    for column, channel, warps, stages in product(columns, channels, (1, 2, 4), (2, 3, 4, 5)):
        # A thread has 16 to 64 accumulators: fewer starve it of loads, more spill.
        if 16 <= column * channel // (warps * 32) <= 64:
            found += _with_shares(Tile(column, channel, warps=warps, stages=stages), launched, list_block)
    return found


def _with_shares(tile: Tile, launched: Product, list_block: int | None) -> list[Tile]:
    if list_block is None:
        shared = [replace(tile, share=share) for share in (128, 256, 512, 1024, 2048) if share >= tile.channels]
        splits = [blocks_of(launched.inner, one.share) for one in shared]
    else:
        blocks = blocks_of(launched.inner, list_block)
        shared = [replace(tile, group=group) for group in (1, 2, 4, 8)]
        shared += [replace(tile, parts=parts) for parts in (2, 4)]
        splits = [blocks_of(blocks, one.group) * one.parts for one in shared]
    programs = [blocks_of(sum(launched.tiled_widths), tile.columns) * count for count in splits]
    return [one for one, n in zip(shared, programs, strict=True) if _fills(one, n)]


def _fills(tile: Tile, programs: int) -> bool:
    """Whether so many programs have enough on its way from memory to keep a large GPU's waiting short."""
    on_its_way = 2 * tile.columns * tile.channels * (tile.stages - 1) * programs
    return FEWEST_PROGRAMS <= programs <= MOST_PROGRAMS and on_its_way >= LEAST_ON_ITS_WAY


def fastest(
    first: list[T],
    measure: Callable[[list[T]], dict[T, float]],
    name: str,
    next_to: Callable[[T], list[T]] = lambda _: [],
) -> tuple[T, float]:
    """The fastest tile found and its microseconds.

    `first` are timed, then those next to the fastest, until none is faster. `measure` leaves out what does not
    work. Raises KernelError, with the product's name, where none does.
    """
    times: dict[T, float] = {}
    wanted = first
    for _ in range(ROUNDS):
        best = min(times, key=times.__getitem__, default=None)
        times |= measure([tile for tile in dict.fromkeys(wanted) if tile not in times])
        if not times:
            raise KernelError(f"none of {len(wanted)} tiles works for {name}")
        found = min(times, key=times.__getitem__)
        if found == best:
            break
        wanted = next_to(found)
    return found, times[found]


def tune(workload: Workload, start: Tile, every: list[Tile], clock: Clock = graph_clock) -> tuple[Tile, float]:
    """The fastest tile found and its microseconds a launch, epilogue included.

    `start` and a sample of `every` are timed, then the tiles that differ from the best in one thing.
    """
    sample = random.Random(0).sample(every, min(SAMPLE, len(every)))
    return fastest(
        [start, *sample],
        partial(_launch_times, workload, clock),
        workload.product.name,
        lambda best: [tile for tile in every if _differences(tile, best) == 1],
    )


def _launch_times(workload: Workload, clock: Clock, tiles: list[Tile]) -> dict[Tile, float]:
    """Microseconds of a launch with each of these tiles; those that do not compile are missing."""
    # Compiling takes most of the time, and all processors; the interpreter knows one program at a time.
    with ThreadPoolExecutor(1 if INTERPRETED else os.cpu_count()) as pool:
        compiled = list(pool.map(lambda tile: _compiles(workload, tile), tiles))
    return {
        tile: clock(lambda copy, tile=tile: workload.start(tile, copy), workload.copies)
        for tile, usable in zip(tiles, compiled, strict=True)
        if usable
    }


def _differences(one: Tile, other: Tile) -> int:
    """Number of things in which two tiles differ; how channels are shared out is one thing."""
    things = [(one.group, one.parts, one.share) != (other.group, other.parts, other.share)]
    things += [
        getattr(one, name) != getattr(other, name) for name in ("columns", "channels", "warps", "stages")
    ]
    return sum(things)


def _compiles(workload: Workload, tile: Tile) -> bool:
    try:
        workload.start(tile)
    except (TritonError, CompilationError):
        return False
    return True


def tuned_tiles(
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    batch: int = 1,
    sparsity: float = 0.5,
    capacity: int = 2048,
    cache: TuningCache | None = None,
    clock: Clock = graph_clock,
) -> StepTiles:
    """Tiles of a decode step, from the cache or timed now (minutes, with a CUDA GPU only).

    sparsity: the plan's.
    """
    cache = cache or TuningCache()
    tiles = default_tiles(shape, batch, capacity)
    listed, dense = dict(tiles.listed), dict(tiles.dense)
    for one in products_of(shape):
        # down's lists come from gate_up's last programs: their blocks are its tiles, which are tuned before.
        block = replace(tiles, listed=listed).list_blocks(shape, batch)[one.name]
        for target, wanted in ((listed, bucket_of(sparsity)), (dense, None)):
            asked = (one, dtype, device, batch, wanted, block)
            search = partial(_search, *asked, start=target[one.name], clock=clock)
            target[one.name] = cache.tuned(tuning_key(*asked), Tile, search)
    library = tiles.library
    if batch > 1:
        library = frozenset(
            one.name
            for one in products_of(shape)
            if _library(cache, one, dtype, device, batch, dense[one.name], clock)
        )
    return replace(tiles, listed=listed, dense=dense, library=library)


def _library(
    cache: TuningCache,
    launched: Product,
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    tile: Tile,
    clock: Clock,
) -> bool:
    """Whether torch's dense product of several rows, with what follows it, is faster than this tile."""

    def search() -> tuple[Faster, float]:
        workload = Workload(launched, dtype, device, batch)
        times = {
            False: clock(lambda copy: workload.start(tile, copy), workload.copies),
            True: clock(workload.start_library, workload.copies),
        }
        library = times[True] < times[False]
        return Faster(library), times[library]

    made_with = f"torch {torch.__version__}"
    key = f"{launch_key(made_with, launched, dtype, device)} | batch {batch} | library or {tile.key()}"
    return cache.tuned(key, Faster, search).library


def _search(
    launched: Product,
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    sparsity: float | None,
    block: int,
    start: Tile,
    clock: Clock,
) -> tuple[Tile, float]:
    """`tune` for what `tuning_key` names."""
    workload = Workload(launched, dtype, device, batch, sparsity, block)
    return tune(workload, start, candidates(launched, batch, None if sparsity is None else block), clock)

"""Tiles of CUDA C++ products, tuned inside the decode step that they are for; the results stay on disk.

Alone in a graph another tile is the fastest than between the launches of a step, which overlap with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product

import torch

from ...cuda.product import CUDATile
from ...cuda.stored_weight import HALF, Storage
from ...errors import KernelError
from ...model.decoder import Product, products_of
from ...model.decoder_weights import LM_HEAD, DecoderWeights
from ...model.static_cache import StaticCache
from ...plan.block_plan import BlockPlan
from ...triton.launch import blocks_of
from ..captured_step import CapturedStep
from ..cuda_tiles import cuda_products_of, multiprocessors_of, storages_of
from ..step import GPUDecodeStep
from ..step_tiles import StepTiles
from .cache import TuningCache, bucket_of, launch_key
from .products import fastest, tuned_tiles
from .timing import median_milliseconds

log = logging.getLogger(__name__)

REPLAYS = 15
REGISTERS = 65536
"""Registers of a multiprocessor."""
THREADS = 2048
"""Most threads that a multiprocessor runs at once."""
LEAST_ON_ITS_WAY = {16: 40 << 10, 8: 16 << 10, 4: 12 << 10}
"""Bytes that a multiprocessor has to ask for ahead, to keep its share of the memory busy, by bits of a value. A
product of few bits is short, and how soon its thread blocks start counts as much."""

AHEAD = (1, 2, 4, 8, 16)
"""Rows that a dense product asks for ahead, as far as tuning goes."""

StepClock = Callable[[GPUDecodeStep], float]
"""Milliseconds of one call."""


def step_clock(step: GPUDecodeStep) -> float:
    """Median of a captured step, which leaves the cache as long as it was. Raises KernelError without a GPU."""
    length = step.cache.length.clone()
    rewind = partial(step.cache.length.copy_, length)
    milliseconds = median_milliseconds(CapturedStep(step, feed_back=False).replay, REPLAYS, rewind)
    rewind()
    return milliseconds


def cuda_candidates(launched: Product, multiprocessors: int, storage: Storage = HALF) -> list[CUDATile]:
    """Tiles of a product whose thread blocks all run at once, each thread with registers for its rows.

    The head's, of which there are hundreds, may also run in two turns.
    """
    found = []
    for columns, warps, cluster, unroll in product(*_CHOICES[storage.bits]):
        if columns > warps * 32:
            continue
        tile = CUDATile(columns=columns, warps=warps, cluster=cluster, unroll=unroll)
        resident = blocks_of(tile.blocks(launched.tiled_widths), multiprocessors)
        turns = (1, 2, 3) if launched.name == LM_HEAD else (1,)
        for each in {blocks_of(resident, turn) for turn in turns}:
            threads, (registers, read) = each * warps * 32, _of_a_thread(tile, launched, storage)
            if (
                threads <= THREADS
                and threads * registers <= REGISTERS
                and threads * unroll * read >= LEAST_ON_ITS_WAY[storage.bits]
                and tile.fits(launched.inner, launched.widths, storage)
            ):
                found.append(replace(tile, resident=each))
    return found


_CHOICES: dict[int, tuple[tuple[int, ...], ...]] = {
    16: ((64, 128), (2, 4, 8), (1, 2, 3, 4, 6, 8), (3, 4, 6, 8)),
    8: ((64, 128, 256), (4, 8, 16), (1, 2, 3, 4, 5, 6, 7, 8), (2, 4, 8)),
    4: ((128, 256), (4, 8, 16), (1, 2, 3, 4, 5, 6, 7, 8), (2, 4, 8)),
}
"""Columns, warps, clusters and rows on their way that are tried, by bits of a stored value."""


def _of_a_thread(tile: CUDATile, launched: Product, storage: Storage) -> tuple[int, int]:
    """About how many registers a thread needs, and how many bytes of a row it reads."""
    if storage.bits == 16:
        return 32 + 4 * tile.unroll + (8 if launched.name == "gate_up" else 0), 16
    read = tile.columns * storage.bits // 64
    return 32 + tile.unroll * (read // 4 + 1) + tile.columns // 8, read


def tuned_step_tiles(
    weights: DecoderWeights,
    rules: tuple[BlockPlan, ...],
    cache: StaticCache,
    sparsity: float,
    stored: TuningCache | None = None,
    clock: StepClock = step_clock,
) -> StepTiles:
    """Tiles of every launch that this step makes, from disk or timed now (minutes, with a CUDA GPU only).

    sparsity: the plan's.
    """
    stored = stored or TuningCache()
    step, storages = GPUDecodeStep(weights, rules, cache), storages_of(weights)
    tiles, products = step.tiles, cuda_products_of(weights.shape, storages)
    of_blocks = [name for name in step.cuda_products if name != LM_HEAD]
    if len(of_blocks) < len(products_of(weights.shape)) * weights.shape.blocks:
        common = (weights.shape, weights.dtype, weights.device, cache.batch, sparsity, cache.capacity)
        tiles = replace(tuned_tiles(*common, stored), cuda=tiles.cuda)
    # The largest first: the others are tuned beside what it has become.
    for one in sorted(products, key=lambda one: -one.inner * one.out):
        if one.name in step.cuda_products and one.name in tiles.cuda.products:
            measure = partial(_step_times, one.name, weights, rules, cache, tiles, clock)
            storage = storages.get(one.name, HALF)
            candidates = cuda_candidates(one, multiprocessors_of(weights.device), storage)
            every = [tiles.cuda.products[one.name], *candidates]
            bits = "" if storage == HALF else f" | {storage}"
            key = f"{launch_key('cuda', one, weights.dtype, weights.device)}{bits} | {bucket_of(sparsity):g}"
            next_to = _asking_ahead if sparsity == 0.0 or one.name == LM_HEAD else _alone
            tile = stored.tuned(key, CUDATile, partial(fastest, every, measure, one.name, next_to))
            tiles = _with_tile(tiles, one.name, tile)
    return tiles


def _asking_ahead(tile: CUDATile) -> list[CUDATile]:
    """The tile with other numbers of rows that are asked for before the activation is there."""
    return [replace(tile, ahead=rows) for rows in AHEAD]


def _alone(_: CUDATile) -> list[CUDATile]:
    """Which rows a sparse product reads, the activation says: none is asked for before."""
    return []


def _with_tile(tiles: StepTiles, product: str, tile: CUDATile) -> StepTiles:
    return replace(tiles, cuda=replace(tiles.cuda, products=tiles.cuda.products | {product: tile}))


def _step_times(
    product: str,
    weights: DecoderWeights,
    rules: tuple[BlockPlan, ...],
    cache: StaticCache,
    tiles: StepTiles,
    clock: StepClock,
    every: list[CUDATile],
) -> dict[CUDATile, float]:
    """Microseconds of the step with each of these tiles for one product; those that are refused are missing."""
    times: dict[CUDATile, float] = {}
    if weights.device.type == "cuda":
        _compile_ahead(weights, rules, cache, {tile: _with_tile(tiles, product, tile) for tile in every})
    for tile in every:
        try:
            times[tile] = 1e3 * clock(GPUDecodeStep(weights, rules, cache, _with_tile(tiles, product, tile)))
        except KernelError as error:  # the compiler or the driver refuses the tile
            log.debug("%s: %s", tile, error)
    return times


def _compile_ahead(
    weights: DecoderWeights,
    rules: tuple[BlockPlan, ...],
    cache: StaticCache,
    every: dict[CUDATile, StepTiles],
) -> None:
    """Compile a product with all these tiles at once, which takes a processor longer than to time it.

    What the launches write is not used: a step writes all that it reads.
    """

    def start(tile: CUDATile) -> None:
        try:
            step = GPUDecodeStep(weights, rules, cache, every[tile])
            launches = [one for one in step.launches if tile in one.args]
            with torch.cuda.device(weights.device):
                launches[0]()
        except KernelError as error:
            log.debug("%s: %s", tile, error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(start, every))
    torch.cuda.synchronize(weights.device)

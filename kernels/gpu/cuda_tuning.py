"""Tiles of CUDA C++ products, tuned inside the decode step that they are for; the results stay on disk.

Alone in a graph another tile is the fastest than between the launches of a step, which overlap with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

from ..cuda.product import CUDATile
from ..decoder import Product, products_of
from ..decoder_weights import DecoderWeights
from ..errors import KernelError
from ..plan_data import BlockPlan
from ..static_cache import StaticCache
from ..triton.launch import blocks_of
from .captured_step import CapturedStep
from .cuda_tiles import multiprocessors_of
from .step import GPUDecodeStep
from .step_tiles import StepTiles
from .timing import median_milliseconds
from .tuning import TuningCache, bucket_of, fastest, launch_key, tuned_tiles

log = logging.getLogger(__name__)

REPLAYS = 15
REGISTERS = 65536
"""Registers of a multiprocessor."""
THREADS = 2048
"""Most threads that a multiprocessor runs at once."""
LEAST_ON_ITS_WAY = 40 << 10
"""Bytes that a multiprocessor has to ask for ahead, to keep its share of the memory busy."""

StepClock = Callable[[GPUDecodeStep], float]
"""Milliseconds of one call."""


def step_clock(step: GPUDecodeStep) -> float:
    """Median of a captured step, which leaves the cache as long as it was. Raises KernelError without a GPU."""
    length = step.cache.length.clone()
    rewind = partial(step.cache.length.copy_, length)
    milliseconds = median_milliseconds(CapturedStep(step, feed_back=False).replay, REPLAYS, rewind)
    rewind()
    return milliseconds


def cuda_candidates(launched: Product, multiprocessors: int) -> list[CUDATile]:
    """Tiles of a product whose thread blocks all run at once, each thread with registers for its rows."""
    found = []
    for columns, warps, cluster, unroll in product((64, 128), (2, 4, 8), (1, 2, 3, 4, 6, 8), (3, 4, 6, 8)):
        if columns > warps * 32:
            continue
        tile = CUDATile(columns=columns, warps=warps, cluster=cluster, unroll=unroll)
        resident = blocks_of(tile.blocks(launched.tiled_widths), multiprocessors)
        threads = resident * warps * 32
        registers = 32 + 4 * unroll + (8 if launched.name == "gate_up" else 0)
        if (
            threads <= THREADS
            and threads * registers <= REGISTERS
            and threads * unroll * 16 >= LEAST_ON_ITS_WAY
            and tile.fits(launched.inner, launched.widths)
        ):
            found.append(replace(tile, resident=resident))
    return found


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
    step = GPUDecodeStep(weights, rules, cache)
    tiles, products = step.tiles, products_of(weights.shape)
    if len(step.cuda_products) < len(products) * weights.shape.blocks:
        common = (weights.shape, weights.dtype, weights.device, cache.batch, sparsity, cache.capacity)
        tiles = replace(tuned_tiles(*common, stored), cuda=tiles.cuda)
    # The largest first: the others are tuned beside what it has become.
    for one in sorted(products, key=lambda one: -one.inner * one.out):
        if one.name in step.cuda_products:
            measure = partial(_step_times, one.name, weights, rules, cache, tiles, clock)
            every = [tiles.cuda.products[one.name], *cuda_candidates(one, multiprocessors_of(weights.device))]
            key = f"{launch_key('cuda', one, weights.dtype, weights.device)} | {bucket_of(sparsity):g}"
            tile = stored.tuned(key, CUDATile, partial(fastest, every, measure, one.name))
            tiles = _with_tile(tiles, one.name, tile)
    return tiles


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
    for tile in every:
        try:
            times[tile] = 1e3 * clock(GPUDecodeStep(weights, rules, cache, _with_tile(tiles, product, tile)))
        except KernelError as error:  # the compiler or the driver refuses the tile
            log.debug("%s: %s", tile, error)
    return times

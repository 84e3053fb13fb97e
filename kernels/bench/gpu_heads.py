"""Decode attention over chosen key-value groups on a GPU, and whole steps with it: random weights, no model.

Whole steps may have a mask of weights besides that the rows share. It is timed with the kernels over its lists,
where a `DecodeEngine` on a GPU computes such sites densely (plan/block_rules.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product

import torch

from ..cuda.attention import CUDAAttentionTile, cuda_attention
from ..gpu.cuda_tiles import chosen, tile_of_contexts
from ..gpu.step import GPUDecodeStep
from ..gpu.step_tiles import default_tiles
from ..gpu.tuning.steps import StepClock, step_clock
from ..gpu.tuning.timing import Clock, device_name, free_memory, graph_clock
from ..model.decoder import DecoderShape
from ..model.decoder_weights import DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..plan.heads import HeadRule
from ..program_end import ends_in_one_line
from ..triton.attention.selection import Selection
from .gpu_attention import AttentionWorkload
from .gpu_step import REPEATS
from .parts.arguments import count, gpu
from .parts.bandwidth import read_bandwidth
from .parts.drawn import cache_bytes, filled_cache, random_weights
from .parts.measured_rows import print_rows
from .parts.model_shapes import MODEL_SHAPES
from .parts.shared_masks import SharedMask, mask_arguments, masks_of

BATCHES, CONTEXTS = (1, 2, 4, 8, 16, 32, 64), (1024, 2048, 4096, 8192, 16384)
PARTS = ("attention", "step")
UNMASKED = SharedMask()


@dataclass(frozen=True)
class HeadSpeed:
    """Attention alone or a whole step, at one batch, context and number of groups."""

    device: str
    shape: str
    part: str
    """`attention` of one block, or `step`: a token of every row, block 0 dense."""
    batch: int
    context: int
    groups: int
    kept: int
    us: float
    gb_s: float
    """Bytes of the keys and values that are looked at, in a step with the weights that are kept, over time."""
    peak_gb_s: float
    tile: str
    """Warps, cluster and slots on their way of attention in CUDA C++; empty on a CPU."""
    masked: str = "none"
    """Projections under a mask that the batch shares: `none`, `ffn` (gate, up and down) or `all`."""
    sparsity: float = 0.0
    """Share of their input channels that the mask drops."""


def tile_name(tile: CUDAAttentionTile) -> str:
    """Name of a tile in rows."""
    return f"{tile.warps} warps, cluster {tile.cluster}, unroll {tile.unroll}"


def drawn_selection(batch: int, groups: int, kept: int, device: torch.device) -> Selection | None:
    """Scores of groups at random; None where all groups are kept."""
    if kept == groups:
        return None
    scores = torch.randn(batch, groups, generator=torch.Generator().manual_seed(0))
    return Selection(scores.to(device), kept)


def attention_row(
    row: partial[HeadSpeed], workload: AttentionWorkload, kept: int, tile: CUDAAttentionTile, clock: Clock
) -> HeadSpeed:
    """Attention of one block over so many groups of each row. row: device, shape and peak."""
    shape, (_, batch, groups, context, _) = workload.shape, workload.cache.keys.shape
    selection = drawn_selection(batch, groups, kept, workload.sums.device)
    attend = partial(cuda_attention, tile=tile, selection=selection)
    us = clock(lambda copy: workload.start(attend, copy), workload.copies)
    read = workload.bytes_read * kept / shape.kv_heads
    return row("attention", batch, context, groups, kept, us, read / us / 1e3, tile=tile_name(tile))


def routed(shape: DecoderShape, kept: int, dtype: torch.dtype, device: torch.device) -> tuple[BlockPlan, ...]:
    """Plans of routers at random; block 0 looks at all groups, and all blocks do where all are kept."""

    def block(index: int) -> BlockPlan:
        if index == 0 or kept == shape.kv_heads:
            return BlockPlan()
        weight = torch.randn(shape.heads, shape.hidden, device=device).mul_(shape.hidden**-0.5)
        bias = torch.zeros(shape.heads, dtype=dtype, device=device)
        return BlockPlan(heads=HeadRule(weight.to(dtype), bias, shape.kv_heads, kept))

    return tuple(block(index) for index in range(shape.blocks))


def step_row(
    row: partial[HeadSpeed],
    weights: DecoderWeights,
    cache: StaticCache,
    kept: int,
    mask: SharedMask = UNMASKED,
    tiles: dict[int, CUDAAttentionTile] | None = None,
    clock: StepClock = step_clock,
) -> HeadSpeed:
    """A whole step with default tiles of products, whose new token takes the last slot of the cache.

    tiles: of attention by groups; None: those that are used. Of some medians the fastest counts.
    """
    shape, (_, batch, groups, capacity, _) = weights.shape, cache.keys.shape
    plans = mask.over(routed(shape, kept, weights.dtype, weights.device), shape, weights.device)
    found = default_tiles(shape, batch, capacity)
    cuda = chosen(found.cuda, shape, weights.dtype, weights.device, batch, capacity, {})
    if tiles is not None:
        cuda = replace(cuda, attention=tiles[groups], selecting=tiles)
    step = GPUDecodeStep(weights, plans, cache, replace(found, cuda=cuda))
    us = 1e3 * min(clock(step) for _ in range(REPEATS))
    looked_at = 2 * cache.keys[0].nbytes * (1 + (shape.blocks - 1) * kept / groups)
    tile = cuda.attention if kept == groups else cuda.selecting.get(kept, cuda.attention)
    read = mask.bytes_read(weights) + looked_at
    return row(
        "step", batch, capacity, groups, kept, us, read / us / 1e3, tile=tile_name(tile),
        masked=mask.projections, sparsity=mask.sparsity,
    )  # fmt: skip


def rows(
    name: str, dtype: torch.dtype, batches: tuple[int, ...], contexts: tuple[int, ...], kept: tuple[int, ...],
    parts: tuple[str, ...], masks: tuple[SharedMask, ...],
) -> Iterator[HeadSpeed]:  # fmt: skip
    """Attention, then steps, of a model's shape; what does not fit into memory is left out."""
    device, shape = torch.device("cuda"), MODEL_SHAPES[name]
    row = partial(HeadSpeed, device_name(device), name, peak_gb_s=read_bandwidth(device) / 1e9)
    pairs = list(product(batches, contexts))
    for batch, context in pairs if "attention" in parts else ():
        workload = AttentionWorkload(shape, dtype, device, batch, context)
        for groups in kept:
            tile = tile_of_contexts(shape, batch * groups)
            yield attention_row(row, workload, groups, tile, graph_clock)
        del workload
    if "step" not in parts:
        return
    weights = random_weights(shape, 16, 16, dtype, device)
    for batch, context in pairs:
        if cache_bytes(shape, dtype, context, batch) < 0.9 * free_memory(device):
            cache = filled_cache(shape, dtype, device, context - 1, batch, spare=1)
            for mask, groups in product(masks, kept):
                yield step_row(row, weights, cache, groups, mask)
            del cache


@ends_in_one_line()
def main() -> None:
    """Print a line of JSON for each part, batch, context and number of groups as it is measured."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shape", choices=MODEL_SHAPES, default="llama3.1-8b")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--batches", type=count, nargs="+", default=BATCHES)
    parser.add_argument("--contexts", type=count, nargs="+", default=CONTEXTS)
    parser.add_argument("--kept", type=count, nargs="+", default=(8, 4), help="groups that a row looks at")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    mask_arguments(parser)
    options = parser.parse_args()
    chosen_rows = map(tuple, (options.batches, options.contexts, options.kept, options.parts))
    gpu(parser)
    masks = masks_of(options)
    print_rows(map(asdict, rows(options.shape, getattr(torch, options.dtype), *chosen_rows, masks)))


if __name__ == "__main__":
    main()

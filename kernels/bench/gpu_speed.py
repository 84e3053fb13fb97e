"""Microseconds of each launch of a decode step on a GPU, beside cuBLAS and beside the device's bandwidth."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F

from ..cuda.product import CUDATile, Given, runs_cuda_products, suits_cuda_products
from ..cuda.select import cuda_select
from ..gpu.cuda_tiles import chosen, cuda_attention_tile
from ..gpu.step_tiles import Chosen, StepTiles, default_tiles
from ..gpu.tuning.products import tuned_tiles
from ..gpu.tuning.timing import Clock, device_name, graph_clock
from ..gpu.tuning.workload import Workload
from ..model.decoder import DecoderShape, products_of
from ..program_end import ends_in_one_line
from ..triton.channel_lists import ChannelLists
from ..triton.compact import ListRules, norm_compact
from ..triton.gemv_tiles import Tile
from ..triton.launch import blocks_of
from ..triton.select import select_smallest
from .gpu_attention import AttentionWorkload
from .parts.arguments import count, gpu, share
from .parts.bandwidth import read_bandwidth
from .parts.measured_rows import print_rows
from .parts.model_shapes import MODEL_SHAPES

CONTEXTS = (128, 205, 512, 2048, 8192)
TRITON, CUDA = "triton", "cuda c++"
CUDA_DEPENDENT = f"{CUDA}, dependent launch"
"""Started while the launch before ends, as in a decode step, where other launches are not cuBLAS's."""

Way = tuple[str, Tile | CUDATile | Callable[..., None], bool]
"""Backend, tile or attention, and whether the launch before lets it start early, as in a decode step."""


@dataclass(frozen=True)
class SpeedRow:
    """One product at one sparsity, attention over one context, or a launch beside them."""

    device: str
    shape: str
    projection: str
    dtype: str
    sparsity: float
    us: float
    backend: str
    """Language of the kernel, and how it starts."""
    dense_us: float | None = None
    """cuBLAS through `F.linear` in a CUDA graph, weights (out, in), timed in the same run; of attention torch's
    `scaled_dot_product_attention`. None where torch has nothing of the kind."""
    gb_s: float | None = None
    """Bytes of the rows read, or of keys and values, over time."""
    err: float | None = None
    """Against float64, relative to the highest exact value."""

    @property
    def speedup(self) -> float | None:
        """Speed-up over `dense_us`; None where that was not measured."""
        return None if self.dense_us is None else self.dense_us / self.us

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"speedup": self.speedup}


def product_rows(
    name: str,
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    sparsities: dict[float, StepTiles],
    batch: int = 1,
    clock: Clock = graph_clock,
) -> Iterator[SpeedRow]:
    """Every product at every sparsity in each way that a decode step with these tiles runs it; 0: dense.

    A product that lists its channels itself is timed with that, one over lists is given them.
    """
    for product in products_of(shape):
        dense_us = None
        for sparsity, tiles in sparsities.items():
            block = tiles.list_blocks(shape, batch)[product.name]
            workload = Workload(product, dtype, device, batch, sparsity or None, block)
            if dense_us is None:
                dense_us = _dense_microseconds(workload, clock)
            cuda = chosen(tiles.cuda, shape, dtype, device, batch, CONTEXTS[0]).products
            sizes = f"{name} {product.inner}x{product.out}"
            row = partial(SpeedRow, device_name(device), sizes, product.name, _named(dtype), sparsity)
            yield from _timed(row, dense_us, workload, _ways(tiles, cuda, product.name, sparsity), clock)


def _timed(
    row: Callable[..., SpeedRow],
    dense_us: float,
    workload: Workload | AttentionWorkload,
    ways: list[Way],
    clock: Clock,
) -> Iterator[SpeedRow]:
    """A row of a workload for each way to run it; `row`: what they have in common."""
    for backend, how, pdl in ways:
        error = workload.error(how)
        us = clock(partial(workload.start, how, pdl=pdl), workload.copies)
        yield row(us, backend, dense_us, workload.bytes_read / us / 1e3, error)


def _ways(tiles: StepTiles, cuda: dict[str, CUDATile], product: str, sparsity: float) -> list[Way]:
    listed = (f"{TRITON}, lists given", tiles.listed[product], False)
    ways: list[Way] = [listed if sparsity else (TRITON, tiles.dense[product], False)]
    if tile := cuda.get(product):
        ways += [(CUDA, tile, False), (CUDA_DEPENDENT, tile, True)]
    return ways


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dense_microseconds(workload: Workload, clock: Clock) -> float:
    weights, x = workload.dense_call()
    return clock(lambda copy: F.linear(x, weights[copy]), workload.copies)


def attention_rows(
    name: str,
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    contexts: tuple[int, ...] = CONTEXTS,
    clock: Clock = graph_clock,
) -> Iterator[SpeedRow]:
    """Attention of one token that writes the whole activation, over full caches, in each way a step runs it."""
    for context in contexts:
        workload = AttentionWorkload(shape, dtype, device, 1, context)
        tiles = default_tiles(shape, 1, context)
        ways: list[Way] = [(TRITON, tiles.attention_onto(workload.cache, shape.heads), False)]
        if tile := cuda_attention_tile(shape, dtype, device, 1, context):
            attend = replace(tiles, cuda=Chosen({}, tile)).attention_onto(workload.cache, shape.heads)
            ways += [(CUDA, attend, False), (CUDA_DEPENDENT, attend, True)]
        row = partial(
            SpeedRow, device_name(device), f"{name} context {context}", "attention", _named(dtype), 0.0
        )
        yield from _timed(row, clock(workload.plain, workload.copies), workload, ways, clock)


def listing_rows(
    name: str,
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    tiles: StepTiles,
    sparsity: float = 0.5,
    contexts: tuple[int, ...] = CONTEXTS,
    clock: Clock = graph_clock,
) -> Iterator[SpeedRow]:
    """RMSNorm and attention with the listing of channels in the same launch, and what SiLU·mul and the listing
    add to the product of gate and up: Triton, one row a token.
    """
    found = [
        ("rms_norm+lists", str(shape.hidden), _norm_microseconds(shape, dtype, device, tiles, sparsity, clock))
    ]
    gate_up = next(product for product in products_of(shape) if product.name == "gate_up")
    workload = Workload(gate_up, dtype, device, 1, sparsity, tiles.list_block)
    tile = tiles.listed["gate_up"]
    alone = clock(partial(workload.start_partial, tile), workload.copies)
    found.append(
        ("silu_mul+lists", str(shape.ffn), clock(partial(workload.start, tile), workload.copies) - alone)
    )
    for context in contexts:
        us = _attention_microseconds(shape, dtype, device, tiles, context, clock)
        found.append(("attention+lists", f"context {context}", us))
    for projection, size, us in found:
        yield SpeedRow(device_name(device), f"{name} {size}", projection, _named(dtype), sparsity, us, TRITON)


def _norm_microseconds(
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    tiles: StepTiles,
    sparsity: float,
    clock: Clock,
) -> float:
    parts = blocks_of(shape.hidden, tiles.listed["down"].columns)
    residual, squares = torch.randn(1, shape.hidden, device=device), torch.ones(1, parts, device=device)
    squares.fill_(shape.hidden / parts)
    gain = torch.ones(shape.hidden, dtype=dtype, device=device)
    bound = residual.abs().flatten().quantile(sparsity).item()
    rules = ListRules(torch.full((3, shape.hidden), bound, device=device))
    lists = ChannelLists.empty(3, 1, shape.hidden, tiles.list_block, device)
    return clock(lambda _: norm_compact(residual, squares, gain, shape.norm_epsilon, rules, lists), 1)


def _attention_microseconds(
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    tiles: StepTiles,
    context: int,
    clock: Clock,
) -> float:
    workload = AttentionWorkload(shape, dtype, device, 1, context)
    tiles = replace(tiles, attention=default_tiles(shape, 1, context).attention)
    attend, width = tiles.attention_over(workload.cache, shape.heads), shape.attention_width
    lists = ChannelLists.empty(1, 1, width, tiles.attention.list_block(shape), device)
    bounds = torch.full((width,), 0.05, device=device)
    start = partial(attend, workload.sums, None, workload.cache, bounds=bounds, lists=lists)
    return clock(lambda copy: start(copy, None), workload.copies)


def selection_rows(
    name: str,
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    sparsity: float = 0.5,
    clock: Clock = graph_clock,
) -> Iterator[SpeedRow]:
    """Rows of what per-token top-k adds before qkv and before down: the smallest score that each list keeps."""
    for channels, lists in ((shape.hidden, 3), (shape.ffn, 1)):
        x = torch.randn(1, channels, device=device).to(dtype)
        weights = torch.rand(lists, channels, device=device)
        kept = torch.full((lists,), round((1.0 - sparsity) * channels), dtype=torch.int32, device=device)
        arguments = (weights, kept, torch.empty(lists, 1, device=device))
        ways = {TRITON: partial(select_smallest, x, *arguments)}
        if runs_cuda_products(device) and suits_cuda_products(dtype, (), channels):
            ways[CUDA] = partial(cuda_select, Given(x), *arguments)
            ways[CUDA_DEPENDENT] = partial(ways[CUDA], pdl=True)
        row = partial(SpeedRow, device_name(device), f"{name} {channels}", "top_k", _named(dtype), sparsity)
        for backend, start in ways.items():
            yield row(clock(lambda _, start=start: start(), 1), backend)


@ends_in_one_line()
def main() -> None:
    """Tune, then print a row for each product and sparsity and the time of each other launch, as JSON lines."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shape", choices=MODEL_SHAPES, default="llama3.1-8b")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--batch", type=count, default=1)
    parser.add_argument("--sparsities", type=share, nargs="+", default=[0.0, 0.4, 0.5, 0.65])
    parser.add_argument("--untuned", action="store_true", help="default tiles")
    options = parser.parse_args()
    device, dtype = gpu(parser), getattr(torch, options.dtype)
    shape, batch = MODEL_SHAPES[options.shape], options.batch
    print_rows([{"device": device_name(device), "read_gb_s": read_bandwidth(device) / 1e9}])
    tiles = {
        sparsity: default_tiles(shape, batch)
        if options.untuned
        else tuned_tiles(shape, dtype, device, batch, sparsity)
        for sparsity in options.sparsities
    }
    common, last = (options.shape, shape, dtype, device), options.sparsities[-1]
    found = chain(
        product_rows(*common, tiles, batch),
        attention_rows(*common),
        selection_rows(*common),
        listing_rows(*common, tiles[last], last),
    )
    print_rows(row.to_dict() for row in found)


if __name__ == "__main__":
    main()

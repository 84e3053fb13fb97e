"""What each launch of a decode step takes on a GPU, beside cuBLAS and beside the device's bandwidth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

from .bandwidth import read_bandwidth
from .channel_lists import ChannelLists
from .decoder_weights import DecoderShape
from .direct_product import DirectTile
from .direct_tiles import direct_attention_tile, direct_tiles
from .gpu_attention import AttentionWorkload
from .gpu_products import Workload, products_of
from .gpu_timing import Clock, device_name, graph_clock
from .model_shapes import MODEL_SHAPES
from .step_tiles import StepTiles, default_tiles
from .triton_compact import ListRules, norm_compact
from .triton_launch import blocks_of
from .tuning import tuned_tiles

CONTEXTS = (128, 205, 512, 2048, 8192)


@dataclass(frozen=True)
class SpeedRow:
    """One product at one sparsity, or attention over one context."""

    device: str
    shape: str
    projection: str
    dtype: str
    sparsity: float
    us: float
    dense_us: float
    """cuBLAS through `F.linear` in a CUDA graph, weights (out, in), timed in the same run; of attention torch's
    `scaled_dot_product_attention`."""
    speedup: float
    gb_s: float
    """Bytes of the rows read, or of keys and values, over time."""
    err: float
    """Against float64, relative to the highest exact value."""
    backend: str
    """What the kernel is written in."""


def product_rows(
    name: str,
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    sparsities: dict[float, StepTiles],
    batch: int = 1,
    clock: Clock = graph_clock,
) -> Iterator[SpeedRow]:
    """Every product at every sparsity as a decode step with these tiles runs it; at 0 the dense kernel.

    A product that lists its channels itself is timed with that, one over lists is given them.
    """
    for product in products_of(shape):
        dense_us = None
        for sparsity, tiles in sparsities.items():
            direct = direct_tiles(shape, dtype, device, batch) if tiles.direct is None else tiles.direct
            tile = (tiles.listed | direct if sparsity else tiles.dense)[product.name]
            block = tiles.list_blocks(shape)[product.name]
            workload = Workload(product, dtype, device, batch, sparsity or None, block)
            if dense_us is None:
                dense_us = _dense_microseconds(workload, clock)
            error = workload.error(tile)
            us = clock(lambda copy, w=workload, t=tile: w.start(t, copy), workload.copies)
            yield SpeedRow(
                device=device_name(device),
                shape=f"{name} {product.inner}x{product.out}",
                projection=product.name,
                dtype=str(dtype).removeprefix("torch."),
                sparsity=sparsity,
                us=us,
                dense_us=dense_us,
                speedup=dense_us / us,
                gb_s=workload.bytes_read / us / 1e3,
                err=error,
                backend="cuda c++" if isinstance(tile, DirectTile) else "triton",
            )


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
    """Attention of one token that writes the whole activation, over full caches, as a step runs it."""
    for context in contexts:
        workload = AttentionWorkload(shape, dtype, device, 1, context)
        tile = direct_attention_tile(shape, dtype, device, 1, context)
        tiles = replace(default_tiles(shape, 1, context), direct_attention=tile)
        attend = tiles.attention_onto(workload.cache, shape.heads)
        error = workload.error(attend)
        us = clock(lambda copy, w=workload, a=attend: w.start(a, copy), workload.copies)
        plain_us = clock(workload.plain, workload.copies)
        yield SpeedRow(
            device=device_name(device),
            shape=f"{name} context {context}",
            projection="attention",
            dtype=str(dtype).removeprefix("torch."),
            sparsity=0.0,
            us=us,
            dense_us=plain_us,
            speedup=plain_us / us,
            gb_s=workload.bytes_read / us / 1e3,
            err=error,
            backend="triton" if tile is None else "cuda c++",
        )


def launch_microseconds(
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    tiles: StepTiles,
    batch: int = 1,
    sparsity: float = 0.5,
    contexts: tuple[int, ...] = CONTEXTS,
    clock: Clock = graph_clock,
) -> dict[str, float]:
    """Microseconds of RMSNorm and of attention with compaction, and of what SiLU·mul and compaction add to
    gate+up, each alone in a graph.
    """
    times = {"norm+compact": _norm_microseconds(shape, dtype, device, tiles, batch, sparsity, clock)}
    for context in contexts:
        times[f"attention+compact at {context}"] = _attention_microseconds(
            shape, dtype, device, tiles, batch, context, clock
        )
    gate_up = next(product for product in products_of(shape) if product.name == "gate_up")
    workload = Workload(gate_up, dtype, device, batch, sparsity, tiles.list_block)
    tile = tiles.listed["gate_up"]
    times["gate+up with silu·mul+compact"] = clock(lambda copy: workload.start(tile, copy), workload.copies)
    times["gate+up, partial sums only"] = clock(
        lambda copy: workload.start_partial(tile, copy), workload.copies
    )
    return times


def _norm_microseconds(
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    tiles: StepTiles,
    batch: int,
    sparsity: float,
    clock: Clock,
) -> float:
    parts = blocks_of(shape.hidden, tiles.listed["down"].columns)
    residual, squares = torch.randn(batch, shape.hidden, device=device), torch.ones(batch, parts, device=device)
    squares.fill_(shape.hidden / parts)
    gain = torch.ones(shape.hidden, dtype=dtype, device=device)
    bound = residual.abs().flatten().quantile(sparsity).item()
    rules = ListRules(torch.full((3, shape.hidden), bound, device=device))
    lists = ChannelLists.empty(3, batch, shape.hidden, tiles.list_block, device)
    return clock(lambda _: norm_compact(residual, squares, gain, shape.norm_epsilon, rules, lists), 1)


def _attention_microseconds(
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    tiles: StepTiles,
    batch: int,
    context: int,
    clock: Clock,
) -> float:
    workload = AttentionWorkload(shape, dtype, device, batch, context)
    tiles = replace(tiles, attention=default_tiles(shape, batch, context).attention)
    attend, width = tiles.attention_over(workload.cache, shape.heads), shape.attention_width
    lists = ChannelLists.empty(1, batch, width, tiles.attention.list_block(shape), device)
    bounds = torch.full((width,), 0.05, device=device)
    start = partial(attend, workload.sums, None, workload.cache, bounds=bounds, lists=lists)
    return clock(lambda copy: start(copy, None), workload.copies)


def main() -> None:
    """Tune, then print a row for each product and sparsity and the time of each other launch, as JSON lines."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shape", choices=MODEL_SHAPES, default="llama-3.1-8b")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.0, 0.4, 0.5, 0.65])
    parser.add_argument("--untuned", action="store_true", help="default tiles")
    options = parser.parse_args()
    device, dtype = torch.device("cuda"), getattr(torch, options.dtype)
    shape, batch = MODEL_SHAPES[options.shape], options.batch
    print(json.dumps({"device": device_name(device), "read_gb_s": read_bandwidth(device) / 1e9}), flush=True)
    tiles = {
        sparsity: default_tiles(shape, batch)
        if options.untuned
        else tuned_tiles(shape, dtype, device, batch, sparsity)
        for sparsity in options.sparsities
    }
    for row in product_rows(options.shape, shape, dtype, device, tiles, batch):
        print(json.dumps(asdict(row)), flush=True)
    for row in attention_rows(options.shape, shape, dtype, device):
        print(json.dumps(asdict(row)), flush=True)
    last = options.sparsities[-1]
    print(json.dumps(launch_microseconds(shape, dtype, device, tiles[last], batch, last)))


if __name__ == "__main__":
    main()

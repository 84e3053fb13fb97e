"""Milliseconds of a whole decode step on a GPU with random weights in 16, 8 or 4 bits: no model is needed."""

from __future__ import annotations

import argparse
import csv
import json
import os
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ..gpu.step import GPUDecodeStep
from ..gpu.tuning.steps import step_clock, tuned_step_tiles
from ..gpu.tuning.timing import device_name
from ..model.decoder import DecoderShape, products_of
from ..model.decoder_weights import BlockWeights, DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..plan.block_rules import block_rules
from ..plan.projection_rule import ProjectionRule
from ..quantised.packed import PackedInt4, PackedInt8, PackedWeight
from .bandwidth import read_bandwidth
from .model_shapes import MODEL_SHAPES

GROUP = 128
"""Outputs that share a scale in 4 bits."""


def random_weights(
    shape: DecoderShape,
    bits: int,
    head_bits: int,
    dtype: torch.dtype,
    device: torch.device,
    group: int = GROUP,
) -> DecoderWeights:
    """Weights of a model of this shape whose sums are about as large as what enters.

    bits: 8, 4 in groups of `group` outputs, or 16 for weights in `dtype`.
    """
    draw = partial(_drawn, dtype=dtype, device=device, group=group)
    ones = torch.ones(shape.hidden, dtype=dtype, device=device)
    blocks = []
    for _ in range(shape.blocks):
        found = {one.name: draw(one.inner, one.widths, bits) for one in products_of(shape)}
        biases = {"qkv_bias": None, "gate": None, "up_rows": None}
        blocks.append(BlockWeights(input_norm=ones, mlp_norm=ones, **biases, **found))
    embedding = draw(shape.vocabulary, (shape.hidden,), 16)
    head = embedding if head_bits == 16 else draw(shape.hidden, (shape.vocabulary,), head_bits)
    return DecoderWeights(shape, tuple(blocks), embedding, ones, head)


def _drawn(
    inner: int, widths: tuple[int, ...], bits: int, dtype: torch.dtype, device: torch.device, group: int
) -> Tensor | PackedWeight:
    out, scale = sum(widths), inner**-0.5
    if bits == 16:
        return torch.randn(inner, out, dtype=dtype, device=device).mul_(scale)
    if bits == 8:
        values = torch.randint(-127, 128, (inner, out), dtype=torch.int8, device=device)
        rows = torch.full((len(widths), inner), scale / 64, device=device)
        return PackedInt8(values, rows, torch.ones(out, device=device), widths)
    values = torch.randint(0, 256, (inner, out // 2), dtype=torch.uint8, device=device)
    scales = torch.full((inner, out // group), scale / 4, dtype=torch.float16, device=device)
    return PackedInt4(values, scales, None, widths)


def dropping(shape: DecoderShape, sparsity: float, device: torch.device) -> tuple[BlockPlan, ...]:
    """Plans that drop the same share of channels of every site, drawn at random, of any activation."""
    generator = torch.Generator(device).manual_seed(0)
    blocks = []
    for _ in range(shape.blocks if sparsity else 0):
        kept = {
            inner: torch.rand(inner, generator=generator, device=device).argsort() >= sparsity * inner
            for _, inner in shape.projection_shapes().values()
        }
        blocks.append(
            BlockPlan(
                {
                    name: ProjectionRule(thresholds=torch.where(kept[inner], 0.0, torch.inf))
                    for name, (_, inner) in shape.projection_shapes().items()
                }
            )
        )
    return tuple(blocks)


def bytes_read(weights: DecoderWeights, sparsity: float) -> float:
    """Bytes of a token's weights: those of blocks by the share of channels that is kept, and the head."""
    blocks = sum(
        weight.nbytes
        for block in weights.blocks
        for weight in vars(block).values()
        if weight is not None and not (isinstance(weight, Tensor) and weight.ndim == 1)
    )
    return blocks * (1.0 - sparsity) + weights.lm_head.nbytes


@dataclass(frozen=True)
class Setting:
    """What is timed."""

    shape: str
    dtype: torch.dtype
    bits: int
    head_bits: int
    sparsity: float
    context: int


def step_row(
    setting: Setting, weights: DecoderWeights, bandwidth: float, tune: bool = False, repeats: int = 3
) -> dict[str, object]:
    """A row of steps.csv: the fastest of some medians of a captured step.

    bandwidth: bytes a second that a plain reduction reads. Raises KernelError without a GPU.
    """
    shape, sparsity, device = weights.shape, setting.sparsity, weights.device
    rules = dropping(shape, sparsity, device) or block_rules(None, shape, device, weights.dtype)
    cache = filled_cache(shape, weights.dtype, device, setting.context)
    tiles = tuned_step_tiles(weights, rules, cache, sparsity) if tune else None
    step = GPUDecodeStep(weights, rules, cache, tiles)
    milliseconds = min(step_clock(step) for _ in range(repeats))
    return {
        "device": device_name(device),
        "shape": setting.shape,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "bits": setting.bits,
        "group": GROUP if setting.bits == 4 else None,
        "head_bits": setting.head_bits,
        "sparsity": sparsity,
        "context": setting.context,
        "tiles": "tuned" if tune else "default",
        "ms": f"{milliseconds:.4f}",
        "tok_s": f"{1e3 / milliseconds:.1f}",
        "gb_s": f"{bytes_read(weights, sparsity) / milliseconds / 1e6:.1f}",
        "read_gb_s": f"{bandwidth / 1e9:.1f}",
        "commit": os.environ.get("GIT_COMMIT", ""),
    }


def main() -> None:
    """Print a line of JSON for each sparsity and context: milliseconds, tokens a second, bytes a second."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shape", choices=MODEL_SHAPES, default="llama3.1-8b")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--bits", type=int, choices=(16, 8, 4), default=16)
    parser.add_argument("--head-bits", type=int, choices=(16, 8, 4), default=None, help="as --bits")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128])
    parser.add_argument("--tune", action="store_true", help="tune the launches first; minutes")
    parser.add_argument("--csv", type=Path, help="append the rows to this table, too")
    options = parser.parse_args()
    device, dtype = torch.device("cuda"), getattr(torch, options.dtype)
    head_bits, bandwidth = options.head_bits or options.bits, read_bandwidth(device)
    weights = random_weights(MODEL_SHAPES[options.shape], options.bits, head_bits, dtype, device)
    for sparsity, context in product(options.sparsities, options.contexts):
        setting = Setting(options.shape, dtype, options.bits, head_bits, sparsity, context)
        row = step_row(setting, weights, bandwidth, options.tune)
        print(json.dumps(row), flush=True)
        if options.csv:
            append(row, options.csv)


def append(row: dict[str, object], path: Path) -> None:
    """Add a row to a CSV, whose first line names the columns."""
    begins = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if begins:
            writer.writeheader()
        writer.writerow(row)


def filled_cache(
    shape: DecoderShape, dtype: torch.dtype, device: torch.device, context: int, batch: int = 1
) -> StaticCache:
    """A cache of so many tokens a row, and one free slot and some."""
    capacity = context + 8
    size = (shape.blocks, batch, shape.kv_heads, capacity, shape.head_dim)

    def slots() -> Tensor:
        found = torch.empty(size, dtype=dtype, device=device)
        for block in found:
            block.normal_()
        return found

    return StaticCache(
        keys=slots(),
        values=slots(),
        length=torch.full((1,), context, dtype=torch.int32, device=device),
        first=torch.zeros(batch, dtype=torch.int32, device=device),
        cosines=torch.ones(capacity, shape.head_dim, device=device),
        sines=torch.zeros(capacity, shape.head_dim, device=device),
    )


if __name__ == "__main__":
    main()

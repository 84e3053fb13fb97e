"""Milliseconds of a whole decode step on a GPU with random weights in 16, 8 or 4 bits: no model is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from ..errors import KernelError
from ..gpu.step import GPUDecodeStep
from ..gpu.tuning.steps import StepClock, step_clock, tuned_step_tiles
from ..gpu.tuning.timing import device_name, free_memory
from ..model.decoder_weights import DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_rules import block_rules, dense_for_a_batch
from ..program_end import ends_in_one_line
from .parts.arguments import count, gpu, share
from .parts.bandwidth import read_bandwidth
from .parts.drawn import (
    GROUP,
    DrawnPlan,
    bytes_read,
    cache_bytes,
    filled_cache,
    head_bits_beside,
    random_weights,
)
from .parts.measured_rows import print_rows
from .parts.model_shapes import family_named, shape_of

REPEATS = 3
"""Medians of a step, of which the fastest counts."""


@dataclass(frozen=True)
class Setting:
    """What is timed."""

    shape: str
    dtype: torch.dtype
    bits: int
    head_bits: int
    sparsity: float
    context: int
    batch: int = 1


def step_row(
    setting: Setting,
    weights: DecoderWeights,
    cache: StaticCache,
    bandwidth: float,
    tune: bool = False,
    clock: StepClock = step_clock,
) -> dict[str, object]:
    """A row of steps.csv: the fastest of some medians of a captured step.

    bandwidth: bytes a second that a plain reduction reads. Raises KernelError without a GPU.
    """
    shape, batch, device = weights.shape, setting.batch, weights.device
    plan = DrawnPlan(shape, setting.sparsity, batch, device) if setting.sparsity else None
    dense = dense_for_a_batch(plan, batch, device)
    rules = block_rules(plan, shape, device, weights.dtype, dense)
    unread = 0.0 if plan is None or dense else plan.unread  # all sites are alike: dense, or none of them
    tiles = tuned_step_tiles(weights, rules, cache, unread) if tune else None
    step = GPUDecodeStep(weights, rules, cache, tiles)
    milliseconds = min(clock(step) for _ in range(REPEATS))
    return {
        "device": device_name(device),
        "shape": setting.shape,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "bits": setting.bits,
        "group": GROUP if setting.bits == 4 else None,
        "head_bits": setting.head_bits,
        "sparsity": setting.sparsity,
        "context": setting.context,
        "batch": batch,
        "unread": f"{unread:g}",
        "tiles": "tuned" if tune else "default",
        "ms": f"{milliseconds:.4f}",
        "tok_s": f"{1e3 * batch / milliseconds:.1f}",
        "gb_s": f"{bytes_read(weights, unread) / milliseconds / 1e6:.1f}",
        "read_gb_s": f"{bandwidth / 1e9:.1f}",
        "commit": os.environ.get("GIT_COMMIT", ""),
    }


def rows(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    """Rows of all settings, those of the same weights and then of the same cache behind each other.

    A setting that does not fit into memory, or that no kernel executes, is said on stderr and left out.
    """
    dtype, bandwidth = getattr(torch, options.dtype), read_bandwidth(device)
    for name, bits in product(options.shapes, options.bits):
        head_bits, shape = options.head_bits or head_bits_beside(bits), shape_of(name)
        weights = random_weights(shape, bits, head_bits, dtype, device, family=family_named(name))
        for batch, context in product(options.batches, options.contexts):
            place = f"{name}, {bits} bits, batch {batch}, context {context}"
            if cache_bytes(shape, dtype, context, batch) > 0.9 * free_memory(device):
                print(f"left out, no memory: {place}", file=sys.stderr, flush=True)
                continue
            cache = filled_cache(shape, dtype, device, context, batch)
            for sparsity in options.sparsities:
                setting = Setting(name, dtype, bits, head_bits, sparsity, context, batch)
                try:
                    yield step_row(setting, weights, cache, bandwidth, options.tune)
                except KernelError as error:
                    print(f"left out: {place}, {sparsity:.0%}: {error}", file=sys.stderr, flush=True)
            del cache
        del weights


@ends_in_one_line()
def main(arguments: Iterable[str] | None = None) -> None:
    """Print a line of JSON for each setting as it is measured: milliseconds, tokens and bytes a second."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shapes", nargs="+", default=["llama3.1-8b"], help="models of conf/model")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--bits", type=int, choices=(16, 8, 4), nargs="+", default=[16])
    parser.add_argument("--head-bits", type=int, choices=(16, 8, 4), help="16 beside 16 bits, else 8")
    parser.add_argument("--sparsities", type=share, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--contexts", type=count, nargs="+", default=[128])
    parser.add_argument("--batches", type=count, nargs="+", default=[1])
    parser.add_argument("--tune", action="store_true", help="tune the launches first; minutes")
    parser.add_argument("--csv", type=Path, help="append the rows to this table, too")
    options = parser.parse_args(arguments)
    if min(options.bits) < 16 and max(options.batches) > 1:
        parser.error("weights in few bits are read for one row; give --bits 16 for a batch")
    print_rows(rows(options, gpu(parser)), options.csv)


if __name__ == "__main__":
    main()

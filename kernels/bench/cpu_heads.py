"""Whole decode steps over chosen key-value groups on a CPU: random weights, no model.

    python -m wisparse.kernels.bench.cpu_heads --shape smollm2-135m > heads.jsonl

Steps over all groups and over some, under each mask of weights, take turns, ten tokens each, so that what else
the machine does meets all of them alike. The lines are those of `gpu_heads`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from statistics import median

import torch

from ..cpu.step import decode_step
from ..model.decoder import DecoderShape
from ..model.decoder_weights import DecoderWeights
from ..program_end import ends_in_one_line
from .gpu_heads import UNMASKED, HeadSpeed, routed
from .parts.arguments import count
from .parts.bandwidth import read_bandwidth
from .parts.cpu_times import cpu_step_times, processor
from .parts.drawn import filled_cache, random_weights
from .parts.measured_rows import print_rows
from .parts.model_shapes import shape_of
from .parts.shared_masks import SharedMask, mask_arguments, masks_of

TOKENS = 10
"""Decoded by one step before the next; the first two are not counted."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def step_rows(
    name: str,
    weights: DecoderWeights,
    batch: int,
    context: int,
    kept: tuple[int, ...],
    rounds: int,
    peak: float,
    masks: tuple[SharedMask, ...] = (UNMASKED,),
) -> Iterator[HeadSpeed]:
    """Steps of so many rows behind `context` - 1 tokens, over so many groups under each mask.

    peak: GB/s of the machine.
    """
    shape, device = weights.shape, torch.device("cpu")
    cache = filled_cache(shape, weights.dtype, device, context - 1, batch, spare=1)
    steps = {
        case: decode_step(
            weights, case[0].over(routed(shape, case[1], weights.dtype, device), shape, device), cache
        )
        for case in product(masks, kept)
    }
    times: dict[tuple[SharedMask, int], list[float]] = {case: [] for case in steps}
    for _ in range(rounds):
        for case, step in steps.items():
            times[case] += cpu_step_times(step, cache, context - 1, TOKENS)[2:]
    for (mask, groups), found in times.items():
        us = 1e3 * median(found)
        share = (1 + (shape.blocks - 1) * groups / shape.kv_heads) / shape.blocks
        read = mask.bytes_read(weights) + share * (cache.keys.nbytes + cache.values.nbytes)
        yield HeadSpeed(
            device=processor(), shape=name, part="step", batch=batch, context=context, groups=shape.kv_heads,
            kept=groups, us=us, gb_s=read / us / 1e3, peak_gb_s=peak, tile="", masked=mask.projections,
            sparsity=mask.sparsity,
        )  # fmt: skip


def chosen_groups(shape: DecoderShape, kept: list[int] | None) -> tuple[int, ...]:
    """All groups first, then those asked for; by default the half of them, rounded up."""
    some = [(shape.kv_heads + 1) // 2] if kept is None else [one for one in kept if one < shape.kv_heads]
    return shape.kv_heads, *some


@ends_in_one_line()
def main() -> None:
    """Print a line of JSON for each batch, context and number of groups as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", help="a model of conf/model whose shapes are taken")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--batches", type=count, nargs="+", default=[1, 4, 8])
    parser.add_argument("--contexts", type=count, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--kept", type=count, nargs="+", default=None, help="groups besides all; half of them")
    parser.add_argument("--rounds", type=count, default=5)
    mask_arguments(parser)
    options = parser.parse_args()
    shape = shape_of(options.shape)
    weights = random_weights(shape, 16, 16, DTYPES[options.dtype], torch.device("cpu"))
    peak, kept = read_bandwidth(torch.device("cpu")) / 1e9, chosen_groups(shape, options.kept)
    for batch, context in product(options.batches, options.contexts):
        common = (options.shape, weights, batch, context, kept, options.rounds, peak)
        found = step_rows(*common, masks_of(options))
        print_rows(map(asdict, found))


if __name__ == "__main__":
    main()

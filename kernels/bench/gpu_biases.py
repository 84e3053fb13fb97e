"""What biases of sparse tokens cost a whole decode step on a GPU, with random weights; no model is needed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from ..gpu.step import GPUDecodeStep
from ..gpu.tuning.steps import StepClock, step_clock
from ..gpu.tuning.timing import device_name
from ..model.decoder import DecoderShape
from ..model.decoder_weights import DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..program_end import ends_in_one_line
from .parts.arguments import count, gpu, share
from .parts.drawn import dropping, filled_cache, head_bits_beside, random_weights
from .parts.measured_rows import print_rows
from .parts.model_shapes import family_named, shape_of

REPEATS = 5
"""Medians of each of the two steps, taken in turn, of which the fastest counts."""
SIZE = 0.01
"""Standard deviation of the drawn biases."""


def with_biases(plans: Sequence[BlockPlan], shape: DecoderShape, like: torch.Tensor) -> tuple[BlockPlan, ...]:
    """The plans with a drawn bias at every projection, of the dtype and device of a tensor."""
    generator = torch.Generator(like.device).manual_seed(0)
    sizes = {name: out for name, (out, _) in shape.projection_shapes().items()}

    def biased(plan: BlockPlan) -> BlockPlan:
        drawn = {
            name: torch.randn(sizes[name], generator=generator, device=like.device).mul(SIZE).to(like.dtype)
            for name in plan.rules
        }
        return replace(plan, rules={name: replace(rule, bias=drawn[name]) for name, rule in plan.rules.items()})

    return tuple(map(biased, plans))


def compared(
    weights: DecoderWeights, cache: StaticCache, sparsity: float, clock: StepClock = step_clock
) -> tuple[float, float]:
    """Milliseconds of a step without biases and with them. Raises KernelError without a GPU."""
    plain = dropping(weights.shape, sparsity, weights.device)
    plans = plain, with_biases(plain, weights.shape, weights.final_norm)
    steps = [GPUDecodeStep(weights, rules, cache) for rules in plans]
    times = [[clock(step) for step in steps] for _ in range(REPEATS)]
    without, with_them = (min(of_one) for of_one in zip(*times, strict=True))
    return without, with_them


def rows(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    """A row of each setting; weights of the same bits are drawn once."""
    for name, bits in product(options.shapes, options.bits):
        shape, dtype = shape_of(name), getattr(torch, options.dtype)
        head_bits = head_bits_beside(bits)
        weights = random_weights(shape, bits, head_bits, dtype, device, family=family_named(name))
        cache = filled_cache(shape, dtype, device, options.context)
        for sparsity in options.sparsities:
            without, with_them = compared(weights, cache, sparsity)
            yield {
                "device": device_name(device),
                "shape": name,
                "dtype": options.dtype,
                "bits": bits,
                "sparsity": sparsity,
                "context": options.context,
                "ms": f"{without:.4f}",
                "ms_with_biases": f"{with_them:.4f}",
                "cost": f"{with_them / without - 1:.4f}",
                "commit": os.environ.get("GIT_COMMIT", ""),
            }
        del weights


@ends_in_one_line()
def main(arguments: Iterable[str] | None = None) -> None:
    """Print a line of JSON for each setting as it is measured: milliseconds without and with biases."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shapes", nargs="+", default=["llama3.1-8b"], help="models of conf/model")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--bits", type=int, choices=(16, 8, 4), nargs="+", default=[16, 8, 4])
    parser.add_argument("--sparsities", type=share, nargs="+", default=[0.5])
    parser.add_argument("--context", type=count, default=128)
    parser.add_argument("--csv", type=Path, help="append the rows to this table, too")
    options = parser.parse_args(arguments)
    print_rows(rows(options, gpu(parser)), options.csv)


if __name__ == "__main__":
    main()

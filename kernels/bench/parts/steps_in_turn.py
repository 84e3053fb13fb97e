"""Whole decode steps beside each other.

On a CPU they take turns, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from statistics import median

import torch

from ...cpu.step import decode_step
from ...model.decoder_weights import DecoderWeights
from ...model.static_cache import StaticCache
from ...plan.block_plan import BlockPlan
from .bandwidth import read_bandwidth
from .cpu_times import cpu_step_times, processor
from .drawn import filled_cache

ROUNDS, STEPS = 8, 6
"""Turns of every plan on a CPU, and its steps in a turn, of which the first is not counted."""

Row = dict[str, str | float]
Case = tuple[str, DecoderWeights, tuple[BlockPlan, ...]]
"""Kind of plan, the weights laid out for it, and a plan for each block."""


def cpu_milliseconds(cases: Sequence[Case], cache: StaticCache) -> list[float]:
    """Milliseconds of each case's step on a CPU: of the medians of its turns the fastest."""
    context = int(cache.length)
    steps = [decode_step(weights, rules, cache) for _, weights, rules in cases]
    turns = [[median(cpu_step_times(step, cache, context, STEPS)[1:]) for step in steps] for _ in range(ROUNDS)]
    return [min(found) for found in zip(*turns, strict=True)]


def gpu_milliseconds(cases: Sequence[Case], cache: StaticCache) -> list[float]:
    """Milliseconds of each case's captured step on a GPU."""
    from ...gpu.step import GPUDecodeStep
    from ...gpu.tuning.steps import step_clock

    return [step_clock(GPUDecodeStep(weights, rules, cache)) for _, weights, rules in cases]


def timed_rows(
    name: str, described: Sequence[tuple[Case, Row]], context: int, device: torch.device
) -> Iterator[Row]:
    """A row of each case's step behind so many tokens: what is said of the case stands between kind and ms.

    name: of the shapes. read_gb_s: bandwidth of the machine in this run.
    """
    on_gpu = device.type == "cuda"
    cases = [case for case, _ in described]
    cache = filled_cache(cases[0][1].shape, torch.bfloat16, device, context)
    bandwidth = read_bandwidth(device) / 1e9
    times = (gpu_milliseconds if on_gpu else cpu_milliseconds)(cases, cache)
    for ((kind, weights, _), facts), ms in zip(described, times, strict=True):
        yield {
            "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
            "shape": name,
            "blocks": weights.shape.blocks,
            "kind": kind,
            **facts,
            "ms": round(ms, 4),
            "read_gb_s": round(bandwidth, 1),
            "commit": os.environ.get("GIT_COMMIT", ""),
        }

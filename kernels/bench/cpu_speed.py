"""How fast the sparse products are on this CPU, beside torch's dense ones, with cold caches."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..cpu.build import cpu_facts
from ..cpu.gemv import backend, compact_by_threshold, gather_gemv
from ..cpu.kept_channels import KeptChannels

COLD_BYTES = 200e6
"""Copies of a weight are taken in turn until they exceed this: several times the largest last-level caches."""


@dataclass(frozen=True)
class _Case:
    """A weight in both layouts, as many copies as keep the caches cold, and one x."""

    x: Tensor
    stored: list[Tensor]
    """(in, out) copies, for the sparse products."""
    dense: list[Tensor]
    """(out, in) copies, as torch stores the weight of a linear layer."""

    @classmethod
    def of(cls, shape: tuple[int, int], dtype: torch.dtype) -> _Case:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(shape, generator=generator).to(dtype)
        copies = max(2, math.ceil(COLD_BYTES / weight.nbytes))
        x = torch.randn(1, shape[0], generator=generator).to(dtype)
        return cls(x, [weight.clone() for _ in range(copies)], [weight.t().contiguous() for _ in range(copies)])

    def thresholds(self, sparsity: float) -> Tensor:
        """(in,) thresholds that drop the smallest |x|, as many as `sparsity` says."""
        ascending = self.x.abs().float().flatten().sort().values
        dropped = round(sparsity * len(ascending))
        if not 0 <= dropped < len(ascending):
            raise ValueError(
                f"sparsity must be at least 0 and leave a channel of {len(ascending)}, not {sparsity}"
            )
        return (
            ascending[dropped].expand(len(ascending)).contiguous() if dropped else torch.zeros_like(ascending)
        )


def _microseconds(call: Callable[..., object], *arguments: Tensor) -> float:
    start = time.perf_counter_ns()
    call(*arguments)
    return (time.perf_counter_ns() - start) / 1000


def _relative_error(kept: KeptChannels, weight: Tensor, out: Tensor) -> float:
    """Largest error relative to the root mean square of the float64 product over the same channels."""
    exact = kept.values.double().t() @ weight.index_select(0, kept.channels).double()
    return ((out - exact).abs().max() / exact.square().mean().sqrt()).item()


def _measure_case(case: _Case, sparsities: Sequence[float], repeats: int) -> list[dict[str, object]]:
    channels, columns = case.stored[0].shape
    kept, out = KeptChannels(channels), torch.empty(1, columns)
    stored, dense = itertools.cycle(case.stored), itertools.cycle(case.dense)
    thresholds = {sparsity: case.thresholds(sparsity) for sparsity in sparsities}
    dense_times: list[float] = []
    times: dict[float, list[float]] = {sparsity: [] for sparsity in sparsities}

    def product(at: Tensor, weight: Tensor) -> None:
        gather_gemv(compact_by_threshold(case.x, at, kept), weight, out)

    for _ in range(repeats + 1):  # the first round warms up and is left out
        dense_times.append(_microseconds(linear, case.x, next(dense)))
        for sparsity, at in thresholds.items():
            times[sparsity].append(_microseconds(product, at, next(stored)))
    dense_us = median(dense_times[1:])
    records = []
    for sparsity, at in thresholds.items():
        product(at, case.stored[0])
        us = median(times[sparsity][1:])
        read = kept.count * columns * case.stored[0].element_size()
        records.append(
            {
                "sparsity": 1 - kept.count / channels,
                "us": us,
                "dense_us": dense_us,
                "speedup": dense_us / us,
                "gb_s": read / us / 1000,
                "err": _relative_error(kept, case.stored[0], out),
            }
        )
    return records


def measure(
    shapes: Mapping[str, tuple[int, int]],
    dtypes: Sequence[torch.dtype],
    sparsities: Sequence[float],
    repeats: int,
) -> list[dict[str, object]]:
    """One record for each projection, dtype and sparsity; batch 1, torch's number of threads, medians.

    shapes: (in, out) by the projection's name. A sparse product is timed with the selection of its channels;
    dense and sparse ones take turns, so that whatever else the machine does meets both. Records hold `device`,
    `backend`, `threads`, `projection`, `shape`, `dtype`, the realised `sparsity`, `us` and `dense_us`
    (microseconds; dense is torch.nn.functional.linear of the same dtype), `speedup`, `gb_s` (kept weights read,
    in 1e9 bytes a second) and `err` (largest error over the root mean square of the float64 result).
    Raises ValueError.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    machine = {
        "device": cpu_facts().get("model name", "unknown CPU"),
        "backend": backend(),
        "threads": torch.get_num_threads(),
    }
    records = []
    for (projection, shape), dtype in itertools.product(shapes.items(), dtypes):
        about = {"projection": projection, "shape": shape, "dtype": str(dtype).removeprefix("torch.")}
        for record in _measure_case(_Case.of(shape, dtype), sparsities, repeats):
            records.append(machine | about | record)
    return records

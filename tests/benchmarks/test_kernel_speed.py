"""Microseconds of one product at the sizes of Llama-3.1-8B, dense and sparse, caches cold: `make bench`.

As a test (without --benchmark-only) every product runs once and its result is checked.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from wisparse.kernels.cpu.gemv import compact_by_threshold, gather_gemv
from wisparse.kernels.cpu.kept_channels import KeptChannels

pytestmark = pytest.mark.slow
SHAPES = {"gate": (4096, 14336), "down": (14336, 4096)}
COLD_BYTES = 200e6


class Weights:
    """Copies of one random weight, taken in turn so that none is in a cache."""

    def __init__(self, projection: str, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(1, SHAPES[projection][0], generator=generator)
        weight = torch.randn(SHAPES[projection], generator=generator, dtype=torch.float32).to(dtype)
        copies = max(2, int(COLD_BYTES / weight.nbytes) + 1)
        self.stored = [weight] + [weight.clone() for _ in range(copies - 1)]
        self.turn = itertools.cycle(self.stored)


@pytest.fixture(scope="module", params=itertools.product(SHAPES, (torch.float32, torch.bfloat16)), ids=str)
def weights(request):
    return Weights(*request.param)


def test_dense(benchmark, weights):
    x = weights.x.to(weights.stored[0].dtype)
    turn = itertools.cycle([weight.T.contiguous() for weight in weights.stored])
    out = benchmark(lambda: F.linear(x, next(turn)))
    assert torch.allclose(out.float(), (x @ weights.stored[0]).float(), rtol=0.05, atol=2.0)


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.5, 0.6, 0.7])
def test_sparse(benchmark, weights, sparsity):
    magnitudes = weights.x.abs()[0]
    dropped = int(sparsity * len(magnitudes))
    threshold = magnitudes.sort().values[dropped] if dropped else torch.tensor(0.0)
    thresholds = threshold.expand(len(magnitudes)).contiguous()
    kept, out = KeptChannels(len(magnitudes)), torch.empty(1, weights.stored[0].shape[1])

    def product() -> None:
        gather_gemv(compact_by_threshold(weights.x, thresholds, kept), next(weights.turn), out)

    benchmark(product)
    benchmark.extra_info["sparsity"] = 1 - kept.count / len(magnitudes)
    expected = (weights.x * (magnitudes >= threshold)) @ weights.stored[0].float()
    assert (out - expected).norm() / expected.norm() < 1e-5

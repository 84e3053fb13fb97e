"""Products of a few tokens by one list that they share: the CUDA source, emulated on a CPU, and on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wisparse.kernels.cuda.batch_product import (
    batch_neurons,
    batch_onto,
    batch_product,
    batch_tile_fits,
)
from wisparse.kernels.cuda.product import squares_of
from wisparse.kernels.cuda.product_tile import CUDATile
from wisparse.kernels.errors import KernelError
from wisparse.kernels.reference import dropped_by_shared_top_k
from wisparse.kernels.triton.shared_lists import SharedTopK

from ..triton_cases import DEVICE

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")
TILES = {
    2: CUDATile(warps=2, unroll=2),
    3: CUDATile(warps=2, cluster=2, unroll=3),
    5: CUDATile(columns=128, warps=4, cluster=3, unroll=1),
    8: CUDATile(warps=2, cluster=8, unroll=2),
}
"""Tiles by rows: a thread block alone, clusters whose blocks finish several tokens, one, and none."""
CHANNELS = 200


def drawn(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def case(rows: int, widths: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, SharedTopK, Tensor, Tensor]:
    """x (rows, channels), bounds of lists with k of 90, 110 and 130, weight, exact product (rows, out)."""
    x = drawn(rows, CHANNELS, dtype=dtype)
    score_weights = drawn(len(widths), CHANNELS, seed=1).abs()
    weight = drawn(CHANNELS, sum(widths), seed=2, dtype=dtype) * CHANNELS**-0.5
    magnitudes = x.float().abs().sum(0)
    smallest, exact = [], []
    voting = torch.ones(rows, dtype=torch.bool, device=DEVICE)
    for place, (weights, part) in enumerate(zip(score_weights, weight.double().split(widths, 1), strict=True)):
        k = 90 + 20 * place
        smallest.append((magnitudes * weights).sort(descending=True).values[k - 1])
        dropped = dropped_by_shared_top_k(x, weights, k, "sum", voting)
        exact.append(x.double().masked_fill(dropped, 0.0) @ part)
    kept = torch.zeros(len(widths), dtype=torch.int32, device=DEVICE)  # what finds the smallest score reads it
    bounds = SharedTopK(score_weights, kept, magnitudes, torch.stack(smallest)[:, None], maximum=False)
    return x, bounds, weight, torch.cat(exact, 1)


def assert_close(found: Tensor, exact: Tensor, tolerance: float = 2e-6) -> None:
    assert (found.double() - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", TILES)
def test_a_product_of_three_projections(rows: int, dtype: torch.dtype) -> None:
    """Widths that fill no tile, channels that fill no step, each projection with its own list, and a bias."""
    widths = (72, 64, 8)
    x, bounds, weight, exact = case(rows, widths, dtype)
    out, bias = torch.full((rows, sum(widths)), 7.0, device=DEVICE), drawn(sum(widths), seed=5, dtype=dtype)
    batch_product(x, bounds, weight, widths, out, TILES[rows], bias)
    assert_close(out, exact + bias.double())


@pytest.mark.parametrize("maximum", [False, True])
@pytest.mark.parametrize("rows", TILES)
def test_gate_and_up_and_what_of_the_result_decides_for_down(rows: int, maximum: bool) -> None:
    x, bounds, weight, exact = case(rows, (88, 88), torch.bfloat16)
    hidden = torch.zeros(rows, 88, dtype=torch.bfloat16, device=DEVICE)
    magnitudes = torch.full((88,), 7.0, device=DEVICE)
    batch_neurons(x, bounds, weight, hidden, TILES[rows], magnitudes=magnitudes, maximum=maximum)
    gate, up = exact.split(88, 1)
    assert_close(hidden, F.silu(gate) * up, 2e-2)
    together = hidden.float().abs()
    assert_close(magnitudes, (together.amax(0) if maximum else together.sum(0)).double())


@pytest.mark.parametrize("rows", TILES)
def test_onto_the_residual_stream(rows: int) -> None:
    x, bounds, weight, exact = case(rows, (104,), torch.bfloat16)
    before = drawn(rows, 104, seed=6)
    residual, squares = before.clone(), torch.zeros(rows, squares_of(104), device=DEVICE)
    batch_onto(x, bounds, weight, residual, squares, TILES[rows])
    assert_close(residual, before.double() + exact)
    parts = [part.square().sum(1) for part in residual.split(32, 1)]
    assert_close(squares, torch.stack(parts, 1).double(), 1e-5)


def test_what_does_not_fit_ends_in_one_line() -> None:
    x, bounds, weight, _ = case(2, (64,), torch.bfloat16)
    out = torch.zeros(2, 64, device=DEVICE)
    with pytest.raises(KernelError, match="2 to 8 rows"):
        batch_product(x[:1], bounds, weight, (64,), out[:1], TILES[2])
    wrong = replace(bounds, smallest=bounds.smallest[0])
    with pytest.raises(KernelError, match="smallest has shape"):
        batch_product(x, wrong, weight, (64,), out, TILES[2])
    assert not batch_tile_fits(CUDATile(), 8, 14336, (4096,))
    assert batch_tile_fits(CUDATile(cluster=8), 8, 14336, (4096,))

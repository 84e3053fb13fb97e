"""Products with weights in 8 and 4 bits: the CUDA source as it is, emulated on a CPU, and on a GPU."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
from wisparse.kernels.cuda.product import Given, cuda_neurons, cuda_onto, cuda_product, squares_of
from wisparse.kernels.cuda.product_tile import CUDATile
from wisparse.kernels.cuda.stored_weight import CUDAWeight, Storage
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.cuda_tiles import cuda_products_of, tile_of
from wisparse.kernels.model.decoder_weights import LM_HEAD
from wisparse.kernels.quantised.int4 import int4_rounded
from wisparse.kernels.quantised.int8 import int8_rounded
from wisparse.kernels.quantised.packed import side_by_side

from ..triton_cases import DEVICE
from .test_cuda_product import assert_close, drawn, masked_product, normed

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")
TILES = (
    CUDATile(warps=2, unroll=2),
    CUDATile(columns=128, warps=4, cluster=3, unroll=4),
    CUDATile(columns=256, warps=8, cluster=2, unroll=2),
)
FORMATS = {
    "int8": int8_rounded,
    "int4 by 64": partial(int4_rounded, group=64, symmetric=True),
    "int4 by 128, zero points": partial(int4_rounded, group=128, symmetric=False),
}
TOLERANCE = 1e-6
"""Sums are exact but for 2^-30 of the largest activation in each, float32 sums of a few of them, and scales."""


def case(format: str, channels: int, multiples: tuple[int, ...]) -> tuple[Tensor, Tensor, CUDAWeight, Tensor]:
    """x (1, channels), bounds that drop about half, a weight of uneven rows, the same dequantised."""
    widths = widths_of(format, multiples)
    x = drawn(1, channels, dtype=torch.bfloat16)
    bounds = drawn(len(widths), channels, seed=1).abs()
    stored = [
        FORMATS[format](drawn(channels, width, seed=2 + place) * drawn(channels, 1, seed=9).exp() + 0.3)
        for place, width in enumerate(widths)
    ]
    return (
        x,
        bounds,
        CUDAWeight.of(side_by_side(*stored)),
        torch.cat([one.dequantised() for one in stored], dim=1),
    )


def widths_of(format: str, multiples: tuple[int, ...]) -> tuple[int, ...]:
    step = 128 if "128" in format else 64 if "64" in format else 16
    return tuple(step * multiple for multiple in multiples)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tile", TILES)
def test_a_product_of_three_projections(tile: CUDATile, format: str) -> None:
    """Widths that fill no tile, channels that fill no step, each projection with its own list, and a bias."""
    if "128" in format and tile.columns == 64:
        tile = CUDATile(columns=128, warps=4, unroll=2)
    multiples = (5, 2, 1)
    widths = widths_of(format, multiples)
    x, bounds, weight, exact = case(format, 203, multiples)
    out, bias = (
        torch.full((1, sum(widths)), 7.0, device=DEVICE),
        drawn(sum(widths), seed=5, dtype=torch.bfloat16),
    )
    cuda_product(Given(x), bounds, weight, widths, out, tile, bias)
    assert_close(out, masked_product(x, bounds, exact, widths) + bias.double(), TOLERANCE)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("format", ["bfloat16", *FORMATS])
def test_rows_that_are_asked_for_ahead_change_nothing(format: str, sparse: bool) -> None:
    """More of them than there are neither; without bounds all channels are kept."""
    tile, multiples = CUDATile(columns=128, warps=4, cluster=6, unroll=2, ahead=3), (3, 1)
    widths = widths_of(format, multiples)
    x, bounds, weight, exact = case("int8" if format == "bfloat16" else format, 70, multiples)
    weight = exact.bfloat16() if format == "bfloat16" else weight
    exact = exact.bfloat16() if format == "bfloat16" else exact
    out = torch.zeros(1, sum(widths), device=DEVICE)
    cuda_product(Given(x), bounds if sparse else None, weight, widths, out, tile)
    kept = bounds if sparse else torch.zeros_like(bounds)
    assert_close(out, masked_product(x, kept, exact.double(), widths), 2 * TOLERANCE)


@pytest.mark.parametrize("format", FORMATS)
def test_neurons_behind_rmsnorm(format: str) -> None:
    """silu(gate)·up, rounded in between like the model rounds; each half has scales of its own."""
    width = widths_of(format, (1,))[0]
    source, x = normed(136, torch.bfloat16)
    _, bounds, weight, exact = case(format, 136, (1, 1))
    hidden = torch.zeros(1, width, device=DEVICE, dtype=torch.bfloat16)
    cuda_neurons(source, bounds, weight, hidden, TILES[1])
    gate, up = masked_product(x, bounds, exact, (width, width)).split(width, dim=1)
    expected = F.silu(gate.bfloat16().float()).bfloat16() * up.bfloat16()
    assert_close(hidden, expected.double(), 1e-2)


@pytest.mark.parametrize("format", FORMATS)
def test_onto_the_residual_stream_by_top_k(format: str) -> None:
    """The sum is added, and the squares of every 32 columns are left for RMSNorm; float16 activations."""
    x, weights, weight, exact = case(format, 96, (3,))
    x, width = x.half(), exact.shape[1]
    scores = x.float().abs() * weights
    smallest = scores.sort(descending=True).values[:, 40:41].contiguous()
    residual = drawn(1, width, seed=6)
    kept = torch.where(scores >= smallest, 0.0, torch.inf)
    expected = residual.double() + masked_product(x, kept, exact, (width,))
    squares = torch.zeros(1, squares_of(width), device=DEVICE)
    cuda_onto(Given(x), weights, weight, residual, squares, TILES[1], smallest=smallest)
    assert_close(residual, expected, 2 * TOLERANCE)
    parts = torch.stack([part.square().sum() for part in residual[0].double().split(32)])
    assert_close(squares[0], parts, 1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finite_shows(format: str) -> None:
    """It shows in every output; where nothing is kept, the product is 0; large activations lose no digits."""
    tile = TILES[1]
    widths = widths_of(format, (1,))
    x, bounds, weight, exact = case(format, 64, (1,))
    out = torch.zeros(1, *widths, device=DEVICE)
    for broken in (float("nan"), float("inf"), -float("inf")):
        wrong = x.clone()
        wrong[0, 3] = broken
        cuda_product(Given(wrong), torch.zeros_like(bounds), weight, widths, out, tile)
        assert not out.isfinite().any()
    cuda_product(Given(x), torch.full_like(bounds, torch.inf), weight, widths, out, tile)
    assert (out == 0).all()
    for size in (2.0**-80, 2.0**80):
        large = (x.float() * size).bfloat16()
        cuda_product(Given(large), torch.zeros_like(bounds), weight, widths, out, tile)
        assert_close(out, large.double() @ exact.double(), TOLERANCE)


def test_what_does_not_fit_is_refused() -> None:
    """Before anything is compiled."""
    x, bounds, weight, _ = case("int4 by 128, zero points", 64, (1,))
    out = torch.zeros(1, 128, device=DEVICE)
    with pytest.raises(KernelError, match="columns that groups divide"):
        cuda_product(Given(x), bounds, weight, (128,), out, CUDATile(columns=128, warps=4, unroll=3))
    for storage, widths in ((Storage(4, 128), (192,)), (Storage(4, 32), (64,)), (Storage(8), (24,))):
        assert not storage.suits(widths)
    assert not CUDATile(columns=256, warps=8).fits(64, (384,), Storage(4, 192))
    with pytest.raises(KernelError, match="bfloat16 or float16"):
        cuda_product(Given(x.float()), bounds, weight, (128,), out, TILES[1])
    wrong = CUDAWeight(weight.values, weight.storage, weight.scales[:, :32], weight.zeros)
    with pytest.raises(KernelError, match="scales has shape"):
        cuda_product(Given(x), bounds, wrong, (128,), out, TILES[1])


STORAGES = (Storage(8), Storage(4, 64), Storage(4, 128))


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_every_default_tile_fits_the_large_models(name: str) -> None:
    """Their widths are multiples of both groups; thread blocks of a product run at once on an H200."""
    for storage, dense in product(STORAGES, (False, True)):
        for one in cuda_products_of(MODEL_SHAPES[name], {LM_HEAD: storage}):
            tile = tile_of(one, 132, storage, dense)
            assert storage.suits(one.widths), (storage, one)
            assert tile.fits(one.inner, one.widths, storage), (storage, one, tile)
            if one.name != LM_HEAD and storage.group != 64:
                assert tile.blocks(one.tiled_widths) <= 132 * tile.resident, (storage, one, tile)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_every_launch_of_a_large_model_compiles(storage: Storage, compiled_sizes: list[int]) -> None:
    """Compute capability 9.0 and the tiles that are used there; no GPU is needed."""
    for one in cuda_products_of(MODEL_SHAPES["llama3.1-8b"], {LM_HEAD: storage}):
        tile, inner, out = tile_of(one, 132, storage), one.inner, one.out
        four = storage.bits == 4
        weight = CUDAWeight(
            torch.empty(inner, out // (2 if four else 1), dtype=torch.uint8 if four else torch.int8),
            storage,
            torch.empty(out // storage.group, inner, dtype=torch.float16)
            if four
            else torch.empty(len(one.widths), inner),
            None,
            None if four else torch.empty(out),
        )
        x, sums = torch.empty(1, inner, dtype=torch.bfloat16), torch.empty(1, out)
        if one.name == "gate_up":
            hidden = torch.empty(1, one.widths[0], dtype=torch.bfloat16)
            cuda_neurons(Given(x), torch.empty(2, inner), weight, hidden, tile)
        elif one.name in ("o", "down"):
            squares = torch.empty(1, squares_of(out))
            cuda_onto(Given(x), torch.empty(1, inner), weight, sums, squares, tile)
        else:
            bounds = None if one.name == LM_HEAD else torch.empty(3, inner)
            cuda_product(Given(x), bounds, weight, one.widths, sums, tile)
    assert len(compiled_sizes) == 5
    assert min(compiled_sizes) > 0

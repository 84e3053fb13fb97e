"""Products that list their channels themselves: the CUDA source as it is, emulated on a CPU, and on a GPU."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
from wisparse.kernels.cuda import product as module
from wisparse.kernels.cuda.product import (
    CUDATile,
    Given,
    Normed,
    cuda_neurons,
    cuda_onto,
    cuda_product,
    squares_of,
)
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.cuda_tiles import tile_of
from wisparse.kernels.gpu.tuning.workload import Workload
from wisparse.kernels.model.decoder import ACTIVATIONS, Product, products_of

from ..triton_cases import DEVICE

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")
SMALL = CUDATile(warps=2, unroll=2)
TILES = (SMALL, CUDATile(warps=2, cluster=2, unroll=3), CUDATile(columns=128, warps=4, cluster=3, unroll=1))
TOLERANCE = {torch.bfloat16: 2e-6, torch.float16: 2e-6}
"""Error of float32 sums, relative to the highest exact value; rounded outputs are compared within one step."""


def drawn(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator).to(DEVICE, dtype)


def case(channels: int, widths: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x (1, channels), bounds (projections, channels) that drop about half, weight (channels, out)."""
    x = drawn(1, channels, dtype=dtype)
    bounds = drawn(len(widths), channels, seed=1).abs()
    return x, bounds, drawn(channels, sum(widths), seed=2, dtype=dtype) * channels**-0.5


def masked_product(x: Tensor, bounds: Tensor, weight: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Float64, every projection with its own kept channels."""
    parts = weight.double().split(widths, dim=1)
    kept = [torch.where(x.float().abs() < bound, 0.0, x.double()) for bound in bounds]
    return torch.cat([k @ part for k, part in zip(kept, parts, strict=True)], dim=1)


def normed(channels: int, dtype: torch.dtype) -> tuple[Normed, Tensor]:
    """A residual stream with its parts' squares, and x in float32, rounded as the model rounds it."""
    residual, gain = drawn(1, channels, seed=3) * 3.0, drawn(channels, seed=4, dtype=dtype)
    squares = torch.stack([part.square().sum() for part in residual[0].split(32)])[None]
    inverse = 1.0 / torch.sqrt(squares.sum() / channels + 1e-5)
    x = ((residual * inverse).to(dtype).float() * gain.float()).to(dtype)
    return Normed(residual, squares, gain, 1e-5), x


def assert_close(found: Tensor, exact: Tensor, tolerance: float) -> None:
    assert (found.double() - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tile", TILES)
def test_a_product_of_three_projections(tile: CUDATile, dtype: torch.dtype) -> None:
    """Widths that fill no tile, channels that fill no step, each projection with its own list, and a bias."""
    widths = (72, 64, 8)
    x, bounds, weight = case(200, widths, dtype)
    out, bias = torch.full((1, sum(widths)), 7.0, device=DEVICE), drawn(sum(widths), seed=5, dtype=dtype)
    cuda_product(Given(x), bounds, weight, widths, out, tile, bias)
    assert_close(out, masked_product(x, bounds, weight, widths) + bias.double(), TOLERANCE[dtype])


@pytest.mark.parametrize("tile", TILES)
def test_top_k_by_a_score(tile: CUDATile) -> None:
    """Each projection keeps the channels whose |x|·w is not below its own smallest, ties and NaN too."""
    widths = (72, 64, 8)
    x, weights, weight = case(200, widths, torch.bfloat16)
    scores = x.float().abs() * weights
    smallest = scores.sort(descending=True).values[:, [40, 199, 0]].diagonal()[:, None].contiguous()
    out = torch.zeros(1, sum(widths), device=DEVICE)
    cuda_product(Given(x), weights, weight, widths, out, tile, smallest=smallest)
    bounds = torch.where(scores >= smallest, 0.0, torch.inf)
    assert (bounds == 0).sum(1).tolist()[1:] == [200, 1]
    assert_close(out, masked_product(x, bounds, weight, widths), 2e-6)
    x[0, 3] = float("nan")
    cuda_product(Given(x), weights, weight, widths, out, tile, smallest=smallest)
    assert out.isnan().all()
    with pytest.raises(KernelError, match="smallest"):
        cuda_product(Given(x), weights, weight, widths, out, tile, smallest=smallest[:2])


@pytest.mark.parametrize("tile", TILES)
def test_behind_rmsnorm(tile: CUDATile) -> None:
    """The activation is normalised and rounded like the model does, by every thread block for itself."""
    widths = (64, 16, 8)
    source, x = normed(264, torch.bfloat16)
    _, bounds, weight = case(264, widths, torch.bfloat16)
    bounds[:, 7] = float("inf")
    out = torch.zeros(1, 88, device=DEVICE)
    cuda_product(source, bounds, weight, widths, out, tile)
    exact = masked_product(x, bounds, weight, widths)
    # 1/√ differs by an ulp between machines: single roundings of x may differ, not more.
    assert_close(out, exact, 2e-3)


def test_a_warp_adds_squares_of_several_parts_of_a_long_residual_stream() -> None:
    """There are more parts than lanes of all warps: 66 and two warps."""
    source, x = normed(2112, torch.bfloat16)
    assert source.squares.shape[1] == 66
    _, _, weight = case(2112, (64,), torch.bfloat16)
    out = torch.zeros(1, 64, device=DEVICE)
    cuda_product(source, None, weight, (64,), out, CUDATile(columns=64, warps=2))
    assert_close(out, x.double() @ weight.double(), 2e-3)


@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
@pytest.mark.parametrize("tile", TILES)
def test_neurons(tile: CUDATile, nonlinearity: str) -> None:
    """Activated gate times up of 72 neurons, rounded in between like the model rounds."""
    source, x = normed(136, torch.bfloat16)
    _, bounds, weight = case(136, (72, 72), torch.bfloat16)
    hidden = torch.zeros(1, 72, device=DEVICE, dtype=torch.bfloat16)
    for bias in (None, drawn(144, seed=5, dtype=torch.bfloat16)):
        cuda_neurons(source, bounds, weight, hidden, tile, bias, nonlinearity=nonlinearity)
        sums = masked_product(x, bounds, weight, (72, 72)) + (0.0 if bias is None else bias.double())
        gate, up = sums.split(72, dim=1)
        exact = ACTIVATIONS[nonlinearity](gate.bfloat16().float()).bfloat16() * up.bfloat16()
        assert_close(hidden, exact.double(), 1e-2)


@pytest.mark.parametrize("tile", TILES)
def test_onto_the_residual_stream(tile: CUDATile) -> None:
    """The sum is added, and the squares of every 32 columns are left for RMSNorm."""
    x, bounds, weight = case(96, (104,), torch.float16)
    residual, squares = drawn(1, 104, seed=6), torch.zeros(1, squares_of(104), device=DEVICE)
    for bias in (None, drawn(104, seed=5, dtype=torch.float16)):
        expected = residual.double() + masked_product(x, bounds, weight, (104,))
        cuda_onto(Given(x), bounds, weight, residual, squares, tile, bias)
        assert_close(residual, expected + (0.0 if bias is None else bias.double()), 2e-6)
    parts = torch.stack([part.square().sum() for part in residual[0].double().split(32)])
    assert_close(squares[0], parts, 1e-6)


@pytest.mark.parametrize("bound", [0.0, float("inf")])
def test_all_kept_and_none_kept(bound: float) -> None:
    """The product is 0 with no channel left, and the dense one with all."""
    x, bounds, weight = case(100, (64,), torch.bfloat16)
    out = torch.full((1, 64), 7.0, device=DEVICE)
    cuda_product(Given(x), torch.full_like(bounds, bound), weight, (64,), out, TILES[1])
    exact = torch.zeros_like(out).double() if bound else x.double() @ weight.double()
    assert (out.double() - exact).abs().max() <= 2e-6 * max(exact.abs().max().item(), 1.0)


def test_ties_are_kept_and_nan_shows() -> None:
    """|x| at its bound is kept; a NaN activation is kept whatever its bound; an infinite one too."""
    x, bounds, weight = case(64, (64,), torch.bfloat16)
    bounds = x.float().abs()
    out = torch.zeros(1, 64, device=DEVICE)
    cuda_product(Given(x), bounds, weight, (64,), out, SMALL)
    assert_close(out, x.double() @ weight.double(), 2e-6)
    x[0, 3] = float("nan")
    bounds.fill_(1e30)
    cuda_product(Given(x), bounds, weight, (64,), out, SMALL)
    assert out.isnan().all()
    x[0, 3] = float("inf")
    cuda_product(Given(x), bounds, weight, (64,), out, SMALL)
    assert out.isinf().all()


def test_the_same_bits_every_time() -> None:
    """Sums are added in a fixed order."""
    x, bounds, weight = case(192, (64, 64, 64), torch.bfloat16)
    outs = [torch.zeros(1, 192, device=DEVICE) for _ in range(3)]
    for out in outs:
        cuda_product(Given(x), bounds, weight, (64, 64, 64), out, TILES[1])
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_missing_bindings_are_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The step falls back to lists, and says what is slower and why."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setitem(sys.modules, "cuda", None)
    module._has_bindings.cache_clear()
    assert not module.runs_cuda_products(torch.device("cuda"))
    assert "pip install cuda-bindings" in caplog.text
    module._has_bindings.cache_clear()


def test_what_does_not_fit_is_refused() -> None:
    """Before anything is compiled."""
    x, bounds, weight = case(64, (64,), torch.bfloat16)
    out = torch.zeros(1, 64, device=DEVICE)
    with pytest.raises(KernelError, match="multiples of 8"):
        cuda_product(Given(x), bounds, weight[:, :60].contiguous(), (60,), out[:, :60].contiguous(), SMALL)
    with pytest.raises(KernelError, match="bfloat16 or float16"):
        cuda_product(Given(x.float()), bounds, weight.float(), (64,), out, SMALL)
    with pytest.raises(KernelError, match="x has shape"):
        cuda_product(Given(x[:, :32].contiguous()), bounds, weight, (64,), out, SMALL)
    with pytest.raises(KernelError, match="contiguous"):
        cuda_product(Given(x), bounds, weight.T.contiguous().T, (64,), out, SMALL)
    with pytest.raises(KernelError, match="bias"):
        cuda_product(Given(x), bounds, weight, (64,), out, SMALL, drawn(32, dtype=torch.bfloat16))
    long, bounds, weight = case(16384, (64,), torch.bfloat16)
    with pytest.raises(KernelError, match="larger cluster"):
        cuda_product(Given(long), bounds, weight, (64,), out, SMALL)
    for wrong in ({"columns": 96}, {"columns": 256, "warps": 4}, {"cluster": 9}):
        with pytest.raises(KernelError, match="tile"):
            CUDATile(**wrong)


@pytest.mark.parametrize("sparsity", [0.5, None])
@pytest.mark.parametrize(
    ("name", "widths"), [("qkv", (64, 32, 32)), ("o", (64,)), ("gate_up", (72, 72)), ("down", (64,))]
)
def test_what_is_timed_is_right(name: str, widths: tuple[int, ...], sparsity: float | None) -> None:
    """The workload of the kernel table, against float64; dense too."""
    workload = Workload(Product(name, 128, widths), torch.float16, DEVICE, sparsity=sparsity, list_block=32)
    assert workload.error(SMALL) < (4e-3 if name == "gate_up" else 1e-6)


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_every_launch_of_the_large_models_compiles(name: str, compiled_sizes: list[int]) -> None:
    """Compute capability 9.0 and the tiles that are used there; no GPU is needed."""
    for one in products_of(MODEL_SHAPES[name]):
        weight = torch.empty(one.inner, one.out, dtype=torch.bfloat16)
        x, bounds = torch.empty(1, one.inner, dtype=torch.bfloat16), torch.empty(len(one.widths), one.inner)
        tile, out = tile_of(one, 132), torch.empty(1, one.out)
        if one.name == "qkv":
            cuda_product(Given(x), bounds, weight, one.widths, out, tile)
        elif one.name == "gate_up":
            source = Normed(out[:, : one.inner].contiguous(), torch.empty(1, 128), x[0], 1e-5)
            cuda_neurons(source, bounds, weight, torch.empty(1, one.widths[0], dtype=torch.bfloat16), tile)
        else:
            cuda_onto(Given(x), bounds, weight, out, torch.empty(1, squares_of(one.out)), tile)
    assert len(compiled_sizes) == 4
    assert min(compiled_sizes) > 0


@pytest.mark.parametrize(("name", "at_once"), [("llama3.1-8b", 3), ("qwen2.5-7b", 4)])
def test_all_thread_blocks_of_gate_and_up_run_at_once(name: str, at_once: int) -> None:
    """A multiprocessor has registers for its share of them; on few multiprocessors the last tile is taken."""
    gate_up = next(one for one in products_of(MODEL_SHAPES[name]) if one.name == "gate_up")
    tile = tile_of(gate_up, 132)
    assert tile.resident == at_once
    assert tile.blocks(gate_up.widths[:1]) <= at_once * 132
    assert tile_of(gate_up, 16).resident == 4

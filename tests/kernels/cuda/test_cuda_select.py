"""The selection of per-token top-k in CUDA C++: the source as it is, emulated on a CPU, and on a GPU."""

import pytest
import torch
from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
from wisparse.kernels.cuda.product import CUDATile, Given, Normed, cuda_product
from wisparse.kernels.cuda.select import cuda_select, cuda_select_together
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.decoder import products_of
from wisparse.kernels.reference import dropped_by_top_k, dropped_within_bounds

from ..triton_cases import DEVICE
from .test_cuda_product import drawn, normed

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")


def numbers(*kept):
    return torch.tensor(kept, dtype=torch.int32, device=DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [37, 200, 1100])
def test_it_is_exactly_the_references(channels, dtype):
    """Numbers of lists of their own, ties of equal activations, zeros, and k beyond both ends."""
    x = drawn(1, channels, dtype=dtype)
    x[0, :12], x[0, 12:20] = 0.5, 0.0
    weights = drawn(5, channels, seed=1).abs()
    weights[0] = 1.0
    kept = (channels // 3, channels // 2, 1, 0, channels)
    smallest = torch.empty(5, 1, device=DEVICE)
    cuda_select(Given(x), weights, numbers(*kept), smallest)
    for weight, bound, k in zip(weights, smallest, kept, strict=True):
        assert torch.equal(x.float().abs() * weight < bound, dropped_by_top_k(x.float(), weight, k))


@pytest.mark.parametrize("channels", [37, 1100])
def test_rows_together_are_exactly_the_references(channels):
    """Lists of their own numbers; sums of several rows, with ties and zeros."""
    x = drawn(3, channels, dtype=torch.float32)
    x[:, :12], x[:, 12:20] = 0.5, 0.0
    weights = drawn(4, channels, seed=1).abs()
    kept = (channels // 3, 1, 0, channels)
    smallest = torch.empty(4, 1, device=DEVICE)
    together = x.abs().sum(0)
    cuda_select_together(together, weights, numbers(*kept), smallest)
    for weight, bound, k in zip(weights, smallest, kept, strict=True):
        assert torch.equal(together * weight < bound, dropped_by_top_k(together[None], weight, k)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [37, 1100])
def test_thresholds_within_bounds_are_the_references(channels, dtype):
    """Lists of which few, some and all channels reach their thresholds; bounds at both ends, and none."""
    x = drawn(1, channels, dtype=dtype)
    thresholds = torch.tensor([0.125, 1.0, 4.0, 1.0, 1.0, 0.125], device=DEVICE)[:, None].expand(6, channels)
    third = channels // 3
    bounds = ((0, third), (third, third + 2), (third, channels), (0, channels), (0, 0), (channels, channels))
    fewest, most = (numbers(*column) for column in zip(*bounds, strict=True))
    smallest = torch.empty(6, 1, device=DEVICE)
    cuda_select(Given(x), (1 / thresholds).contiguous(), most, smallest, fewest=fewest)
    for own, bound, pair in zip(thresholds, smallest, bounds, strict=True):
        assert torch.equal(x.float().abs() / own < bound, dropped_within_bounds(x.float(), own, *pair))


def test_scores_of_one_value_of_zero_of_nan_and_of_infinity():
    """All tied; NaN counts as the highest, as in the reference, and infinity next to it."""
    x, weights = (
        torch.full((1, 96), -2.0, device=DEVICE, dtype=torch.bfloat16),
        torch.ones(1, 96, device=DEVICE),
    )
    smallest = torch.empty(1, 1, device=DEVICE)
    cuda_select(Given(x), weights, numbers(40), smallest)
    assert smallest.item() == 2.0
    cuda_select(Given(torch.zeros_like(x)), weights, numbers(40), smallest)
    assert smallest.item() == torch.finfo(torch.float32).smallest_normal  # a zero is never kept
    x[0, 3], x[0, 4] = float("nan"), float("inf")
    cuda_select(Given(x), weights, numbers(1), smallest)
    assert smallest.isnan().all()
    cuda_select(Given(x), weights, numbers(2), smallest)
    assert smallest.isinf().all()
    cuda_select(Given(x), weights, numbers(3), smallest)
    assert smallest.item() == 2.0


@pytest.mark.parametrize("k", [10, 64, 96])
def test_the_column_of_a_zero_is_never_read(k):
    """Not where zeros tie with the k-th score, and not where k takes all; their weights are NaN here."""
    x, weight = drawn(1, 96, dtype=torch.bfloat16), drawn(96, 8, seed=2, dtype=torch.bfloat16)
    x[0, 40:] = 0.0
    scores, smallest = torch.ones(1, 96, device=DEVICE), torch.empty(1, 1, device=DEVICE)
    cuda_select(Given(x), scores, numbers(k), smallest)
    broken, out = weight.clone(), torch.empty(1, 8, device=DEVICE)
    broken[40:] = float("nan")
    cuda_product(Given(x), scores, broken, (8,), out, CUDATile(warps=2, unroll=2), smallest=smallest)
    kept = x.double().masked_fill(dropped_by_top_k(x.float(), scores[0], k), 0.0)
    assert torch.allclose(out.double(), kept @ weight.double(), rtol=1e-5, atol=1e-5)


def test_behind_rmsnorm_it_leaves_the_activation():
    """What it compared is what a product that compares again has to read."""
    source, expected = normed(200, torch.bfloat16)
    weights, smallest = drawn(2, 200, seed=5).abs(), torch.empty(2, 1, device=DEVICE)
    x = torch.zeros(1, 200, device=DEVICE, dtype=torch.bfloat16)
    cuda_select(source, weights, numbers(50, 120), smallest, x)
    # 1/√ differs by an ulp between machines: single roundings of x may differ, not more.
    assert torch.allclose(x.float(), expected.float(), rtol=1e-2)
    for weight, bound, k in zip(weights, smallest, (50, 120), strict=True):
        assert torch.equal(x.float().abs() * weight < bound, dropped_by_top_k(x.float(), weight, k))


def test_what_does_not_fit_is_refused():
    x, weights, smallest = drawn(1, 64, dtype=torch.bfloat16), drawn(2, 64), torch.empty(2, 1, device=DEVICE)
    with pytest.raises(KernelError, match="bfloat16 or float16"):
        cuda_select(Given(x.float()), weights, numbers(1, 2), smallest)
    with pytest.raises(KernelError, match="kept has"):
        cuda_select(Given(x), weights, numbers(1), smallest)
    with pytest.raises(KernelError, match="smallest has"):
        cuda_select(Given(x), weights, numbers(1, 2), smallest[:1])
    with pytest.raises(KernelError, match="x_out"):
        cuda_select(Given(x), weights, numbers(1, 2), smallest, x.float())


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_it_compiles_for_the_large_models(name, compiled_sizes):
    """Compute capability 9.0; no GPU is needed."""
    for one in products_of(MODEL_SHAPES[name]):
        lists = len(one.widths)
        weights, smallest = torch.ones(lists, one.inner), torch.empty(lists, 1)
        x, kept = torch.empty(1, one.inner, dtype=torch.bfloat16), torch.ones(lists, dtype=torch.int32)
        residual = torch.empty(1, one.inner)
        behind_norm = one.name in ("qkv", "gate_up")
        source = Normed(residual, torch.empty(1, 128), x[0], 1e-5) if behind_norm else Given(x)
        for fewest in (None, kept):
            cuda_select(source, weights, kept, smallest, x if behind_norm else None, fewest)
    assert len(compiled_sizes) == 8
    assert min(compiled_sizes) > 0

"""Neurons that proxies rank highest, in CUDA C++: the source as it is, emulated on a CPU, and on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
from wisparse.kernels.cuda.predicted import PredictedTile
from wisparse.kernels.cuda.product import Given, cuda_neurons
from wisparse.kernels.cuda.ranked import cuda_ranked
from wisparse.kernels.cuda.stored_weight import CUDAWeight, Storage
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.cuda_tiles import cuda_products_of, tile_of
from wisparse.kernels.model.decoder import ACTIVATIONS
from wisparse.kernels.model.decoder_weights import PROXIES

from ..triton_cases import DEVICE
from .test_cuda_predicted import NEURONS, TILES, exact_neurons
from .test_cuda_product import assert_close, drawn

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")
SMALLEST = 0.5
GROUPED = Storage(4, 64)


def case(channels: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, scores of more than all neurons, the smallest that is kept, and rows of gate and of up."""
    x, scores = drawn(1, channels, seed=5, dtype=dtype), drawn(1, 64, seed=6, dtype=dtype)
    scores[0, 3], scores[0, 4] = SMALLEST, -SMALLEST  # ties are kept
    rows = (drawn(NEURONS, channels, seed=seed, dtype=dtype) * channels**-0.5 for seed in (7, 8))
    return x, scores, torch.full((1, 1), SMALLEST, device=DEVICE), *rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "tile"), [(72, TILES[0]), (264, TILES[1]), (1096, TILES[2])])
@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
def test_neurons_of_high_scores(channels, tile, dtype, nonlinearity):
    """Channels that fill no turn, neurons that fill no thread block; the others are exactly 0.

    Their rows, and of up those of neurons that are zero, are NaN: whoever read them would show it.
    """
    x, scores, smallest, gate, up = case(channels, dtype)
    computed = scores[0, :NEURONS].float().abs() >= SMALLEST
    assert 8 < int(computed.sum()) < 32
    exact = exact_neurons(x, gate, up, computed, nonlinearity)
    hidden = torch.full((1, NEURONS), float("nan"), device=DEVICE, dtype=dtype)
    cuda_ranked(x, scores, smallest, gate, up, hidden, tile, nonlinearity)
    assert torch.equal(hidden[0] == 0, exact == 0)
    assert_close(hidden[0], exact, 1e-2)


def test_what_is_not_finite_stays():
    x, scores, smallest, gate, up = case(64, torch.bfloat16)
    scores[0, 1] = torch.nan
    hidden = torch.zeros(1, NEURONS, device=DEVICE, dtype=torch.bfloat16)
    smallest.fill_(torch.inf)  # none is kept else
    cuda_ranked(x, scores, smallest, gate, up, hidden, TILES[0])
    assert hidden[0].nonzero().tolist() == [[1]]
    x[0, 0] = torch.nan
    cuda_ranked(x, scores, smallest, gate, up, hidden, TILES[0])
    assert hidden[0].isnan().nonzero().tolist() == [[1]]


def test_what_does_not_fit_is_refused():
    x, scores, smallest, gate, up = case(64, torch.bfloat16)
    hidden = torch.zeros(1, NEURONS, device=DEVICE, dtype=torch.bfloat16)
    with pytest.raises(KernelError, match="multiples of 8"):
        cuda_ranked(x, scores, smallest, gate[:, :60], up, hidden, TILES[0])
    with pytest.raises(KernelError, match="up's rows"):
        cuda_ranked(x, scores, smallest, gate, up[:8], hidden, TILES[0])
    with pytest.raises(KernelError, match="32 scores of 40 neurons"):
        cuda_ranked(x, scores[:, :32].contiguous(), smallest, gate, up, hidden, TILES[0])
    with pytest.raises(KernelError, match="smallest"):
        cuda_ranked(x, scores, smallest[0], gate, up, hidden, TILES[0])


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_the_tile_of_proxies_fits_the_large_models(name):
    (one,) = (one for one in cuda_products_of(MODEL_SHAPES[name], {PROXIES: GROUPED}) if one.name == PROXIES)
    tile = tile_of(one, 132, GROUPED)
    assert GROUPED.suits(one.widths)
    assert tile.fits(one.inner, one.widths, GROUPED)


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_it_compiles_for_the_large_models(name, compiled_sizes):
    """Compute capability 9.0; no GPU is needed. The product with the proxies, and the rows that it chooses."""
    shape = MODEL_SHAPES[name]
    (one,) = (one for one in cuda_products_of(shape, {PROXIES: GROUPED}) if one.name == PROXIES)
    values = torch.empty(one.inner, one.out // 2, dtype=torch.uint8)
    weight = CUDAWeight(values, GROUPED, torch.empty(one.out // 64, one.inner, dtype=torch.float16))
    x, scores = (torch.empty(1, width, dtype=torch.bfloat16) for width in (one.inner, one.widths[0]))
    weights, smallest = torch.ones(2, one.inner), torch.empty(2, 1)
    cuda_neurons(Given(x), weights, weight, scores, tile_of(one, 132, GROUPED), smallest=smallest)
    rows, hidden = x.expand(shape.ffn, -1), torch.empty(1, shape.ffn, dtype=torch.bfloat16)
    cuda_ranked(x, scores, smallest[:1], rows.contiguous(), rows.contiguous(), hidden, PredictedTile())
    assert len(compiled_sizes) == 2
    assert min(compiled_sizes) > 0

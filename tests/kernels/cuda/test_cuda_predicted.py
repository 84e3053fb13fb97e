"""Neurons that signs predict, in CUDA C++: the source as it is, emulated on a CPU, and on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
from wisparse.kernels.cuda.predicted import PredictedTile, SignWords, cuda_predicted
from wisparse.kernels.cuda.product import Given, Normed
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.decoder import ACTIVATIONS
from wisparse.kernels.plan.signs import SignRule, negative_products, packed_signs, plus_minus

from ..triton_cases import DEVICE
from .test_cuda_product import assert_close, drawn, normed

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")
TILES = (
    PredictedTile(neurons=8, warps=2, unroll=1),
    PredictedTile(neurons=32, warps=1, unroll=2),
    PredictedTile(),
)
NEURONS = 40


def case(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, SignRule]:
    """Rows of gate and of up, and a rule that computes about half of the neurons."""
    gate, up = (drawn(NEURONS, channels, seed=seed, dtype=dtype) * channels**-0.5 for seed in (7, 8))
    return gate, up, SignRule(packed_signs(gate), channels // 2)


def exact_neurons(x: Tensor, gate: Tensor, up: Tensor, computed: Tensor, nonlinearity: str) -> Tensor:
    """(neurons,) float64 of one token, 0 where not computed. Rows that need not be read are NaN afterwards."""
    dtype = gate.dtype
    gates = ACTIVATIONS[nonlinearity]((x.double() @ gate.double().T).to(dtype).float()).to(dtype)[0]
    exact = torch.where(computed, gates.double() * (x.double() @ up.double().T).to(dtype).double()[0], 0.0)
    gate[~computed], up[~computed | (gates == 0)] = float("nan"), float("nan")
    return exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "tile"), [(72, TILES[0]), (264, TILES[1]), (1096, TILES[2])])
@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
def test_neurons_with_few_unlike_signs(channels, tile, dtype, nonlinearity):
    """Channels that fill no word, vector or turn, neurons that fill no thread block; the others are exactly 0.

    Their rows, and of up those of neurons that are zero, are NaN: whoever read them would show it.
    """
    source, x = normed(channels, dtype)
    gate, up, rule = case(channels, dtype)
    computed = negative_products(x, plus_minus(rule.signs, channels))[0] <= rule.limit
    assert 8 < int(computed.sum()) < 32
    exact = exact_neurons(x, gate, up, computed, nonlinearity)
    hidden = torch.full((1, NEURONS), float("nan"), device=DEVICE, dtype=dtype)
    for given in (source, Given(x.to(dtype))):
        cuda_predicted(given, SignWords.of(rule), gate, up, hidden, tile, nonlinearity)
        assert torch.equal(hidden[0] == 0, exact == 0)
        assert_close(hidden[0], exact, 1e-2)


def test_what_is_not_finite_stays():
    x = drawn(1, 64, dtype=torch.bfloat16)
    x[0, 3] = float("nan")
    gate, up, rule = case(64, torch.bfloat16)
    hidden = torch.zeros(1, NEURONS, device=DEVICE, dtype=torch.bfloat16)
    cuda_predicted(Given(x), SignWords.of(rule), gate, up, hidden, TILES[0])
    computed = negative_products(x.float(), plus_minus(rule.signs, 64))[0] <= rule.limit
    assert torch.equal(hidden[0].isnan(), computed)


def test_what_does_not_fit_is_refused():
    x = drawn(1, 64, dtype=torch.bfloat16)
    gate, up, rule = case(64, torch.bfloat16)
    words, hidden = SignWords.of(rule), torch.zeros(1, NEURONS, device=DEVICE, dtype=torch.bfloat16)
    with pytest.raises(KernelError, match="multiples of 8"):
        cuda_predicted(Given(x), words, gate[:, :60], up, hidden, TILES[0])
    with pytest.raises(KernelError, match="bfloat16 or float16"):
        cuda_predicted(Given(x), words, gate.float(), up, hidden, TILES[0])
    with pytest.raises(KernelError, match="up's rows"):
        cuda_predicted(Given(x), words, gate, up[:8], hidden, TILES[0])
    with pytest.raises(KernelError, match="signs"):
        cuda_predicted(Given(x), SignWords(words.words[:8], words.limit), gate, up, hidden, TILES[0])
    with pytest.raises(KernelError, match="1 to 32 neurons"):
        cuda_predicted(Given(x), words, gate, up, hidden, PredictedTile(neurons=33))


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_it_compiles_for_the_large_models(name, compiled_sizes):
    """Compute capability 9.0; no GPU is needed."""
    shape = MODEL_SHAPES[name]
    rows = torch.empty(shape.ffn, shape.hidden, dtype=torch.bfloat16)
    signs = torch.zeros(shape.ffn, shape.hidden // 8, dtype=torch.uint8)
    source = Normed(torch.empty(1, shape.hidden), torch.empty(1, 128), rows[0], 1e-5)
    hidden = torch.empty(1, shape.ffn, dtype=torch.bfloat16)
    cuda_predicted(source, SignWords.of(SignRule(signs, 7)), rows, rows, hidden, PredictedTile())
    assert min(compiled_sizes) > 0

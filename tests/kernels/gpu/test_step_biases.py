"""The decode step under plans whose sparse tokens have biases: against hooks, and CUDA C++ against Triton."""

from dataclasses import replace

import pytest
import torch

from ...conftest import make_tiny_model
from ..decoded_tokens import with_biases
from ..triton_cases import SMALL_TILES
from .test_triton_step import ALL, both_decode, listing_themselves, make_plan


@pytest.mark.slow
@pytest.mark.parametrize(("method", "batch"), [("teal", 2), ("wina", 1), ("rsparse", 1)])
@pytest.mark.parametrize("consumer_adds", [False, True])
def test_biases_of_sparse_tokens(method, batch, consumer_adds):
    """Beside the model's own of q, k and v, and beside low-rank paths."""
    model = make_tiny_model("qwen2", blocks=1)
    plan, tiles = make_plan(model, method), replace(SMALL_TILES, consumer_adds_qkv=consumer_adds)
    expected, found = both_decode(model, with_biases(plan), batch, tiles, tokens=1)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, both_decode(model, plan, batch, tiles, tokens=1)[1], atol=1e-2)


@pytest.mark.slow
def test_a_bias_of_a_gate_that_chooses_neurons():
    model = make_tiny_model("llama", blocks=1)
    plan = make_plan(model, "cats")
    plan = with_biases(replace(plan, rules={"0.gate": make_plan(model, "teal").rules["0.gate"]}))
    expected, found = both_decode(model, plan, batch=2)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
def test_products_that_list_their_channels_themselves_add_them():
    """The second token is behind what the first one left."""
    model = make_tiny_model("qwen2", blocks=1).half()
    plan = with_biases(make_plan(model, "teal"))
    _, expected = both_decode(model, plan, tiles=listing_themselves(""))
    _, found = both_decode(model, plan, tiles=listing_themselves(ALL))
    assert torch.allclose(found, expected, atol=4e-3)

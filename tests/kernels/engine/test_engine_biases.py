"""Plans whose sparse tokens have biases, decoded by the engine: against hooks, on the CPU and on a GPU."""

from __future__ import annotations

import pytest
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.method.quantisation.quantisers import Int8
from wisparse.method.quantised_model import quantised

from ...conftest import make_calibration, make_method, make_tiny_model
from ..decoded_tokens import DecodedTokens, generated, prompts, typical_error, with_biases
from ..triton_cases import DEVICE

QUICK = {"rsparse": ("method.search=false", "method.share=0.7"), "wina": ("method.greedy=false",)}


def plans(model, method: str):
    """A method's plan as it is, and with biases."""
    plan = make_method(method, *QUICK.get(method, ())).plan(make_calibration(model), 0.4)
    return plan, with_biases(plan)


def continued(model, plan, ids, batch: int, **stored) -> list[list[int]]:
    with DecodeEngine(model, plan, batch=batch, capacity=40, **stored) as engine:
        return engine.generate(ids, new_tokens=16).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["teal_uniform", "wina", "rsparse"])
@pytest.mark.parametrize("batch", [1, 3])
def test_biases_are_added_as_under_hooks(implementation, tiny_model, method, batch):
    plain, plan = plans(tiny_model, method)
    ids = prompts(tiny_model, batch)
    found = continued(tiny_model, plan, ids, batch)
    assert found == generated(tiny_model, plan, "decode_only", ids, 16).tolist()
    assert found != continued(tiny_model, plain, ids, batch)


@pytest.mark.slow
def test_biases_beside_quantised_weights(implementation):
    model = make_tiny_model("qwen2")
    weights = Int8("int8", lm_head="int8").weights(make_calibration(model))
    ids = prompts(model, 2)
    with quantised(model, weights):
        _, plan = plans(model, "teal_uniform")
        found = continued(model, plan, ids, 2, quantised=weights)
        assert found == generated(model, plan, "decode_only", ids, 16).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spon", "equal_loss_trained"])
def test_trained_plans_are_decoded(llama, method):
    plan = make_method(method).plan(make_calibration(llama), 0.5)
    ids = prompts(llama, 1)
    assert continued(llama, plan, ids, 1) == generated(llama, plan, "decode_only", ids, 16).tolist()


@pytest.mark.slow
def test_biases_in_bfloat16_are_nearer_to_exact_ones_than_under_hooks():
    own = make_tiny_model("qwen2").bfloat16().float()
    _, plan = plans(own, "teal_uniform")
    decoded = DecodedTokens(lambda: make_tiny_model("qwen2").bfloat16(), plan)
    exact = decoded.exact()
    assert 0 < typical_error(decoded.of_the_engine(), exact) < typical_error(decoded.of_transformers(), exact)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the engine's other step needs a GPU")
@pytest.mark.parametrize("method", ["teal_uniform", "wina", "rsparse"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_biases_are_added_on_a_gpu_as_under_hooks(family, method):
    model = make_tiny_model(family)
    _, plan = plans(model, method)
    model, ids = model.to(DEVICE), prompts(model, 1).to(DEVICE)
    assert continued(model, plan, ids, 1) == generated(model, plan, "decode_only", ids, 16).tolist()

"""Neurons that signs predict, in the decode step on a CPU: as hooks compute them, and nothing else is read."""

import pytest
import torch
from wisparse.kernels.engine.backends import check_decodable
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.plan.mechanism import Mechanism
from wisparse.kernels.plan.signs import SignRule
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes

from ...conftest import make_calibration, make_method, make_tiny_model
from ..decoded_tokens import generated, prompts, steps_of_both_backends
from .test_cpu_instruction_sets import compile_for

SIZES = (576, 640)
"""Nine words of signs: whole vectors of AVX-512 and AVX2, and one word more."""


def relu_model(sizes=(48, 80)):
    return make_tiny_model("llama", activation="relu", sizes=sizes)


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "teal_uniform", "relu_zeros", "sparseinfer"])
def test_a_relu_model_continues_as_under_hooks(implementation, method):
    model = relu_model()
    plan = None if method is None else make_method(method).plan(make_calibration(model), 0.3)
    input_ids = prompts(model, 2)
    with DecodeEngine(model, plan, batch=2, capacity=40) as engine:
        found = engine.generate(input_ids, new_tokens=20)
    nothing = SparsityPlan(projection_shapes(model))
    assert found.tolist() == generated(model, plan or nothing, "decode_only", input_ids, 20).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("march", ["native", "x86-64-v3", "x86-64-v2"])
def test_signs_are_counted_alike_on_every_machine(compiled, monkeypatch, march):
    """Lengths that fill no word, some words, and vectors of them."""
    if march != "native":
        compile_for(march, monkeypatch)
    for sizes in ((48, 80), (144, 200), SIZES):
        model = relu_model(sizes)
        plan = make_method("sparseinfer").plan(make_calibration(model, sequences=2), 0.2)
        assert torch.allclose(*steps_of_both_backends(model, plan), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_neurons_that_are_taken_to_be_zero_are_never_read(implementation):
    model = relu_model(SIZES)
    signs = torch.randint(256, (640, 72), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan = SparsityPlan(projection_shapes(model), signs={block: SignRule(signs, 200) for block in (0, 1)})
    for block in model.model.layers:  # of random signs nearly half are unlike
        for linear in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
            linear.weight.data.fill_(float("nan"))
    with DecodeEngine(model, plan, capacity=8) as engine:
        engine.cache.length.fill_(2)
        assert engine.step(torch.tensor([3])).isfinite().all()


def test_quantised_weights_are_refused():
    with pytest.raises(KernelError, match="by their gate, by signs"):
        check_decodable(relu_model(), 1, 8, {Mechanism.SIGNS}, {"int8"})

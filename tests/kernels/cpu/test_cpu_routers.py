"""Neurons that routers choose, in the decode step on a CPU, as under hooks."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.engine.backends import check_decodable
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.plan.mechanism import Mechanism
from wisparse.kernels.plan.routers import NeuronRouter
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes

from ...conftest import make_calibration, make_method, make_tiny_model, with_routers
from ..decoded_tokens import DecodedTokens, generated, prompts, typical_error

NEURONS, HIDDEN = 80, 48


def routed_plan(model, folder, sparsity=0.4):
    return make_method("lte").plan(make_calibration(with_routers(model, folder)), sparsity)


def continued(model, plan, ids):
    with DecodeEngine(model, plan, batch=len(ids), capacity=40) as engine:
        return engine.generate(ids, new_tokens=16).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_are_those_of_hooks(implementation, tmp_path, activation, rows):
    model = make_tiny_model("llama", activation=activation, sizes=(HIDDEN, NEURONS))
    plan, ids = routed_plan(model, tmp_path), prompts(model, rows)
    found = continued(model, plan, ids)
    assert found == generated(model, plan, "decode_only", ids, 16).tolist()
    assert found != generated(model, SparsityPlan(projection_shapes(model)), "decode_only", ids, 16).tolist()


@pytest.mark.parametrize("groups", [1, 5, NEURONS])
def test_groups_of_any_size_and_rows_that_choose_none(implementation, groups):
    """More groups than heads, one alone; with none chosen the block adds nothing."""
    model = make_tiny_model("qwen2", sizes=(HIDDEN, NEURONS))
    drawn = torch.randn(groups, HIDDEN, generator=torch.Generator().manual_seed(2))
    ids = prompts(model, 2)
    for threshold in (0.1, 1e9):
        routers = {block: NeuronRouter(drawn, threshold) for block in range(2)}
        plan = replace(SparsityPlan(projection_shapes(model)), routers=routers)
        assert continued(model, plan, ids) == generated(model, plan, "decode_only", ids, 16).tolist()


def test_what_is_not_chosen_is_not_read(compiled):
    model = make_tiny_model("llama", sizes=(HIDDEN, NEURONS))
    router = NeuronRouter(torch.zeros(10, HIDDEN), 0.0)  # logits of 0 choose none
    plan = replace(SparsityPlan(projection_shapes(model)), routers={1: router})
    with DecodeEngine(model, plan, capacity=40) as engine:
        engine.prefill(prompts(model, 1))
        before = engine.step(torch.tensor([5])).clone()
        for part in ("gate_rows", "up_rows"):
            getattr(engine.weights.blocks[1], part).fill_(torch.nan)
        engine.weights.blocks[1].down.fill_(torch.nan)
        engine.cache.length.sub_(1)
        assert torch.equal(engine.step(torch.tensor([5])), before)


@pytest.mark.slow
def test_bfloat16_logits_are_nearer_to_exact_ones_than_those_of_hooks(tmp_path):
    plan = routed_plan(make_tiny_model("qwen2", sizes=(HIDDEN, NEURONS)).bfloat16().float(), tmp_path)
    plan = replace(plan, routers={b: one.to("cpu", torch.bfloat16) for b, one in plan.routers.items()})
    decoded = DecodedTokens(lambda: make_tiny_model("qwen2", sizes=(HIDDEN, NEURONS)).bfloat16(), plan)
    exact = decoded.exact()
    assert 0 < typical_error(decoded.of_the_engine(), exact) < typical_error(decoded.of_transformers(), exact)


def test_routers_of_quantised_weights_are_refused_before_a_plan_is_made():
    model = make_tiny_model("llama")
    check_decodable(model, 1, 8, [Mechanism.ROUTER])
    with pytest.raises(KernelError, match="by their gate, by signs, by proxies or by routers"):
        check_decodable(model, 1, 8, [Mechanism.ROUTER], {"int8": 0})

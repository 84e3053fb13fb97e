"""Neurons that proxies choose, and thresholds within bounds, in the decode step on a CPU, as under hooks."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.engine.backends import check_decodable
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.plan.mechanism import Mechanism
from wisparse.kernels.plan.proxies import ProxyRule
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes

from ...conftest import make_calibration, make_method, make_tiny_model
from ..decoded_tokens import DecodedTokens, generated, prompts, steps_of_both_backends, typical_error
from .test_cpu_instruction_sets import compile_for

CHOSEN, READ = 8, 24
"""Neurons and channels of the models in which it is known what is left out."""


def plan_for(model, method, sparsity=0.4, **settings):
    changes = [f"method.{name}={value}" for name, value in settings.items()]
    return make_method(method, *changes).plan(make_calibration(model, sequences=2), sparsity)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("prox", {}),
        ("prox", {"group": 7, "input_share": 1.0}),  # 84 proxies for 80 neurons
        ("topk_guided", {"spread": 0.02}),
        ("topk_guided", {"spread": 0.0}),
    ],
)
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_engine_continues_as_under_hooks(implementation, method, settings, activation, rows):
    model = make_tiny_model("llama", activation=activation, sizes=(48, 80))
    plan, input_ids = plan_for(model, method, 0.3, **settings), prompts(model, rows)
    with DecodeEngine(model, plan, batch=rows, capacity=40) as engine:
        found = engine.generate(input_ids, new_tokens=20).tolist()
    assert found == generated(model, plan, "decode_only", input_ids, 20).tolist()
    nothing = SparsityPlan(projection_shapes(model))
    assert found != generated(model, nothing, "decode_only", input_ids, 20).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("march", ["native", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize(
    ("method", "settings"), [("prox", {}), ("prox", {"group": 9}), ("topk_guided", {"spread": 0.03})]
)
def test_every_machine_computes_alike(compiled, monkeypatch, march, method, settings):
    if march != "native":
        compile_for(march, monkeypatch)
    for sizes in ((48, 80), (144, 200)):
        model = make_tiny_model("llama", sizes=sizes)
        found = steps_of_both_backends(model, plan_for(model, method, **settings))
        assert torch.allclose(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["prox", "topk_guided"])
def test_bfloat16_logits_are_nearer_to_exact_ones_than_those_of_transformers(compiled, method):
    """The engine rounds 4 vectors of a block, transformers about 14; see test_engine."""
    decoded = DecodedTokens(
        lambda: make_tiny_model("qwen2").bfloat16(), plan_for(make_tiny_model("qwen2").bfloat16(), method)
    )
    exact = decoded.exact()
    assert 0 < typical_error(decoded.of_the_engine(), exact) < typical_error(decoded.of_transformers(), exact)


@pytest.mark.slow
def test_what_proxies_leave_out_is_never_read(implementation):
    """The first neurons are far the largest, and so are the first channels behind the norm."""
    model = make_tiny_model("llama", sizes=(48, 80))
    for block in model.model.layers:
        block.post_attention_layernorm.weight[READ:] = 1e-30
        for linear in (block.mlp.gate_proj, block.mlp.up_proj):
            linear.weight[CHOSEN:] *= 1e-3
    rule = ProxyRule(neurons=80, channels=48, kept=CHOSEN, read=READ, group=8)
    plan = SparsityPlan(projection_shapes(model), proxies=dict.fromkeys((0, 1), rule))
    with DecodeEngine(model, plan, capacity=8) as engine:
        engine.cache.length.fill_(2)
        expected = engine.step(torch.tensor([3])).clone()
        for block in engine.weights.blocks:
            block.proxies.scales[READ:] = torch.nan
            for rows in (block.gate_rows, block.up_rows, block.down):
                rows[CHOSEN:] = torch.nan
        engine.cache.length.fill_(2)
        assert torch.equal(engine.step(torch.tensor([3])), expected)


def test_a_row_has_its_own_neurons_in_a_batch(compiled):
    """Each row's logits are the ones that it has alone."""
    model = make_tiny_model("llama", sizes=(48, 80))
    ids, tokens, row = prompts(model, 4), torch.arange(5, 9), slice(1, 2)
    for method in ("prox", "topk_guided"):
        plan, found = plan_for(model, method), []
        for some in (slice(0, 4), row):
            with DecodeEngine(model, plan, batch=len(ids[some]), capacity=16) as engine:
                engine.prefill(ids[some])
                found.append(engine.step(tokens[some]).clone())
        assert torch.allclose(found[0][row], found[1], atol=1e-4)


def test_weights_in_few_bits_are_refused(llama):
    with pytest.raises(KernelError, match="by signs, by proxies or by routers"):
        check_decodable(llama, 1, 8, {Mechanism.PROXY}, {"int8"})


def test_a_second_engine_and_the_model_afterwards_have_the_same_weights(compiled):
    model = make_tiny_model("llama", sizes=(48, 80))
    plan, ids = plan_for(model, "prox"), prompts(model, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with DecodeEngine(model, plan, capacity=40) as first:
        found = first.generate(ids, new_tokens=8)
        with DecodeEngine(model, capacity=40) as dense, DecodeEngine(model, plan, capacity=40) as second:
            dense.generate(ids, new_tokens=8)
            assert torch.equal(second.generate(ids, new_tokens=8), found)
        assert torch.equal(first.generate(ids, new_tokens=8), found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    some = replace(plan, proxies={1: plan.proxies[1]})
    with DecodeEngine(model, some, capacity=40) as engine:
        found = engine.generate(ids, new_tokens=20)
    assert found.tolist() == generated(model, some, "decode_only", ids, 20).tolist()

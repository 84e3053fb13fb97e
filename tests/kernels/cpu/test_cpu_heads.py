"""Attention over chosen key-value groups on a CPU: against the transformers model under hooks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.plan.heads import HeadRule
from wisparse.method.quantisation.quantisers import Int4
from wisparse.method.quantised_model import quantised

from ...conftest import FAMILIES, make_calibration, make_method, make_tiny_model
from ...method.heads.head_plans import with_heads
from ..decoded_tokens import generated, prompts

NEW = 20
LONG = 100
"""Tokens of more than one split of attention's slots."""


def assert_continues_alike(model, plan, batch: int, padded: int = 0, **keywords) -> None:
    """The engine continues token for token as the model under hooks; the second row begins with padding."""
    ids = prompts(model, batch, length=30)
    mask = torch.ones_like(ids)
    mask[1:2, :padded] = 0
    with DecodeEngine(model, plan, batch=batch, capacity=30 + NEW, **keywords) as engine:
        found = engine.generate(ids, mask, new_tokens=NEW)
    assert found.tolist() == generated(model, plan, "decode_only", ids, NEW, mask).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_continues_as_under_hooks(implementation, family):
    """Rows choose groups of their own; block 0 is dense; a window, biases, norms of heads."""
    model = make_tiny_model(family, heads=(6, 3), sizes=(48, 80))
    for kept in (1, 2):
        assert_continues_alike(model, with_heads(model, kept), batch=2, padded=7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["teal_uniform", "rsparse", "chess"])
def test_beside_every_kind_of_rule(implementation, method):
    model = make_tiny_model("qwen2")
    quick = ["method.search=false", "method.share=0.7"] if method == "rsparse" else []
    plan = make_method(method, *quick).plan(make_calibration(model), 0.4)
    assert_continues_alike(model, with_heads(model, 1, plan, first=0), batch=1)


@pytest.mark.slow
def test_beside_weights_in_4_bits(implementation):
    model = make_tiny_model("llama", heads=(4, 2), sizes=(64, 128))
    weights = Int4("int4", lm_head="int8", group=8, symmetric=True).weights(make_calibration(model))
    with quantised(model, weights):
        plan = replace(with_heads(model, 1), quantisation=weights.description)
        assert_continues_alike(model, plan, batch=2, quantised=weights)


def always(model, best: int) -> dict[int, HeadRule]:
    """Routers that choose one group whatever they read."""
    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    bias = torch.zeros(heads)
    bias[best * heads // groups] = 1.0
    rule = HeadRule(torch.zeros(heads, model.config.hidden_size), bias, groups, kept=1)
    return dict.fromkeys(range(model.config.num_hidden_layers), rule)


def behind(model, plan, threads: int = 1, spoilt: int | None = None) -> Tensor:
    """Logits behind a long prompt. spoilt: a group whose cached keys and values are NaN."""
    torch.set_num_threads(threads)
    with DecodeEngine(model, plan, capacity=LONG + 8) as engine:
        engine.prefill(prompts(model, 1, length=LONG))
        if spoilt is not None:
            for slots in (engine.cache.keys, engine.cache.values):
                slots[:, :, spoilt, :LONG] = torch.nan
        return torch.stack([engine.step(torch.tensor([token])).clone() for token in (1, 2)])


def test_keys_and_values_of_other_groups_are_not_read(compiled):
    model = make_tiny_model("llama")
    plan = replace(with_heads(model, 1), heads=always(model, 1))
    whole = behind(model, plan)
    assert whole.isfinite().all()
    assert torch.equal(behind(model, plan, spoilt=0), whole)
    assert not behind(model, plan, spoilt=1).isfinite().all()


def test_of_equal_groups_the_first_is_looked_at(implementation):
    model = make_tiny_model("llama")
    rules = {block: replace(rule, bias=torch.zeros_like(rule.bias)) for block, rule in always(model, 1).items()}
    equal, first = (replace(with_heads(model, 1), heads=heads) for heads in (rules, always(model, 0)))
    assert torch.equal(behind(model, equal), behind(model, first))


def test_same_bits_on_any_number_of_threads(compiled):
    model = make_tiny_model("qwen3", heads=(6, 3))
    plan = with_heads(model, 2)
    assert all(torch.equal(behind(model, plan, threads), behind(model, plan)) for threads in (2, 3))

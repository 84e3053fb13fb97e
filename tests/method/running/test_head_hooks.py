"""Chosen key-value groups under hooks: what is zero, what is counted, and what plans say of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from wisparse.kernels.plan.heads import HeadRule
from wisparse.kernels.plan.mechanism import Mechanism
from wisparse.method.plan import PlanError, SparsityPlan
from wisparse.method.projections import NORM_PATHS, PROJECTION_PATHS
from wisparse.method.quantised_model import quantised
from wisparse.method.running.apply import applied

from ...conftest import composed, make_calibration, make_method, make_protocol, make_tiny_model
from ..heads.head_plans import with_heads


def test_a_group_is_as_good_as_its_best_head():
    """Four heads in two groups, by hand; of equal ones the first."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 1.0]])
    rule = HeadRule(weight, torch.zeros(4), groups=2, kept=1)
    x = torch.tensor([[3.0, -1.0], [-3.0, -1.0], [0.0, 1.0]])
    assert rule.chosen(x).tolist() == [[True, False], [False, True], [True, False]]
    assert replace(rule, bias=torch.tensor([0.0, 0.0, 0.0, 9.0])).chosen(x)[:, 1].all()


def seen_by_o(model, ids, session=None) -> list[torch.Tensor]:
    """What enters o of every block."""
    found: list[torch.Tensor] = []
    hooks = [
        block.get_submodule(PROJECTION_PATHS["o"]).register_forward_pre_hook(lambda _, x: found.append(x[0]))
        for block in model.model.layers
    ]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return found


def test_outputs_of_other_groups_are_zero_at_sparse_tokens_alone(tiny_model):
    ids = make_calibration(tiny_model).input_ids[:2, :8]
    plan = with_heads(tiny_model, kept=1)
    dense = seen_by_o(tiny_model, ids)
    inputs: list[torch.Tensor] = []
    norm = tiny_model.model.layers[1].get_submodule(NORM_PATHS["attention_input"])
    with applied(tiny_model, plan, make_protocol("half")) as session:
        hook = norm.register_forward_hook(lambda _, __, x: inputs.append(x))
        sparse = seen_by_o(tiny_model, ids)
        hook.remove()
        report = session.report()
    assert torch.equal(sparse[0], dense[0])
    by_group = sparse[1].unflatten(-1, (2, -1))
    chosen = plan.heads[1].chosen(inputs[0])
    chosen[:, :4] = True  # the first half is dense
    assert torch.equal(by_group.abs().amax(-1) > 0, chosen)
    assert torch.allclose(sparse[1][:, :4], dense[1][:, :4])
    assert report["key_value_share"] == 0.75  # of two blocks, one is dense
    for block in tiny_model.model.layers:
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in block.modules())


def test_rows_of_o_columns_of_q_and_the_router_are_counted(tiny_model):
    ids, config = make_calibration(tiny_model).input_ids[:2, :8], tiny_model.config
    with applied(tiny_model, with_heads(tiny_model, kept=1), make_protocol("all")) as session:
        tiny_model(input_ids=ids)
        report = session.report()
    width = config.num_attention_heads * tiny_model.model.layers[0].self_attn.head_dim
    saved = width * config.hidden_size  # half of q and half of o, of one block
    router = config.num_attention_heads * (config.hidden_size + 1)
    assert report["dense_bytes_per_token"] - report["bytes_per_token"] == 4 * (saved - router)
    assert report["by_projection"]["q"] == report["by_projection"]["o"] == 0.25
    assert report["by_projection"]["k"] == report["by_projection"]["down"] == 0.0


@pytest.mark.parametrize("quantisation", ["int8", "int4"])
def test_of_quantised_weights_columns_of_q_and_rows_of_o_are_counted(llama, quantisation):
    """Half of q's columns with their scales, half of o's rows with theirs."""
    calibration = make_calibration(llama)
    overrides = (f"quantisation={quantisation}",) + (
        ("quantisation.group=4",) if quantisation == "int4" else ()
    )
    weights = instantiate(composed(*overrides).quantisation).weights(calibration)
    with quantised(llama, weights):
        plan = replace(with_heads(llama, kept=1), quantisation=weights.description)
        with applied(llama, plan, make_protocol("all")) as session:
            before = session.report()
            llama(input_ids=calibration.input_ids[:2, :8])
            report = session.report()
    q, o = (weights.weights[name].stored_bytes() for name in ("1.q", "1.o"))
    saved = (q.values + q.with_columns + o.values + o.with_rows) / 2
    router = llama.config.num_attention_heads * (llama.config.hidden_size + 1)
    assert before["bytes_per_token"] - before["dense_bytes_per_token"] == 4 * router
    assert report["dense_bytes_per_token"] == before["dense_bytes_per_token"]
    assert report["dense_bytes_per_token"] - report["bytes_per_token"] == saved - 4 * router


def test_with_rules_of_q_and_o_what_both_leave_is_counted(llama):
    """Kept channels of q times its kept columns; o's rule sees the zeros, and they count."""
    ids = make_calibration(llama).input_ids[:2, :8]
    plain = make_method("wina", "method.greedy=false").plan(make_calibration(llama), 0.4)
    plan = with_heads(llama, kept=1, plan=plain)
    with applied(llama, plan, make_protocol("all")) as session:
        llama(input_ids=ids)
        report = session.report()
    q, o = (plain.rules[f"1.{name}"].top_k / 48 for name in "qo")
    assert report["by_projection"]["q"] == pytest.approx(1 - (plain.rules["0.q"].top_k / 48 + q / 2) / 2)
    assert report["by_projection"]["o"] == pytest.approx(1 - (plain.rules["0.o"].top_k / 48 + min(o, 0.5)) / 2)


def test_rows_of_a_batch_share_q_and_o_and_look_at_keys_of_their_own(llama):
    ids, plan = make_calibration(llama).input_ids[:4, :6], with_heads(llama, kept=1, first=0)
    found = []
    with applied(llama, plan, replace(make_protocol("all"), rows_sharing=4)) as session:
        norm = llama.model.layers[0].get_submodule(NORM_PATHS["attention_input"])
        hook = norm.register_forward_hook(lambda _, __, x: found.append(plan.heads[0].chosen(x)))
        llama(input_ids=ids)
        hook.remove()
        report = session.report()
    assert report["key_value_share"] == 0.5
    read = found[0].any(dim=0).float().mean()
    assert 0.5 < read < 1.0
    assert report["by_block"][0] == pytest.approx(
        float((1 - read) * 2 * 48 * 48) / (2 * 48 * 48 + 2 * 24 * 48 + 3 * 48 * 80)
    )


def test_plans_with_heads_are_kept_and_checked(tmp_path, llama):
    plan = with_heads(llama, kept=1)
    plan.save(tmp_path / "plan")
    loaded = SparsityPlan.load(tmp_path / "plan")
    assert loaded.heads.keys() == {1}
    assert torch.equal(loaded.heads[1].weight, plan.heads[1].weight)
    assert (loaded.heads[1].groups, loaded.heads[1].kept) == (2, 1)
    assert loaded.block_plans()[1].mechanisms()[Mechanism.HEADS] == 4 * 49
    rule = plan.heads[1]
    wrong = {
        "cannot be kept": replace(rule, kept=3),
        "does not fit 48 channels": replace(rule, weight=rule.weight[:, :40]),
        "4 heads in 3 groups, q 48 columns": replace(rule, groups=3),
    }
    for message, broken in wrong.items():
        assert message in replace(plan, heads={1: broken}).misfit()
    rotated = replace(plan, rotations={"1.attention_input": torch.eye(48)})
    assert "in a rotated basis" in rotated.misfit()
    assert "no block" in replace(plan, heads={2: rule}).misfit()
    nan = replace(rule, bias=torch.full((4,), float("nan")))
    assert replace(plan, heads={1: nan}).not_a_number() == "1.router.bias"


def test_a_router_of_other_heads_is_refused(llama):
    other = make_tiny_model("llama", heads=(8, 4))
    with pytest.raises(PlanError, match="8 heads in 4 groups, and the model has 4 in 2"):  # noqa: SIM117
        with applied(llama, with_heads(other, kept=1), make_protocol("all")):
            pass
    assert not any(module._forward_hooks for module in llama.modules() if isinstance(module, nn.Module))

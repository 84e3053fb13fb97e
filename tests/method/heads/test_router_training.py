"""Routers of heads: what they learn on a toy problem, what is told of them, and what is refused."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from wisparse.kernels.plan.heads import HeadRule
from wisparse.kernels.plan.mechanism import Mechanism
from wisparse.method.errors import UserError
from wisparse.method.heads.choice import PolarHeads, with_heads
from wisparse.method.heads.training import Observed, RouterTraining, checked, fitted, trained_routers
from wisparse.method.plan import SparsityPlan
from wisparse.method.running.apply import applied

from ...conftest import composed, make_calibration, make_method, make_protocol, make_tiny_model

QUICK = RouterTraining(0.05, 0.01, batch=64, epochs=20, epoch_tokens=1, held_out_share=0.25)
POLAR = PolarHeads("polar", density=0.5, dense_blocks=1, training=QUICK)


def toy(tokens: int, seed: int) -> Observed:
    """Four heads in two groups; the sign of one input says which group's heads put out more."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, 6, generator=generator)
    norms = torch.rand(tokens, 4, generator=generator)
    first = inputs[:, 2] > 0
    norms[first, :2] += 2.0
    norms[~first, 2:] += 2.0
    return Observed(inputs, norms)


def test_a_router_learns_what_one_line_separates():
    known, unseen = toy(1024, seed=0), toy(512, seed=1)
    rule = HeadRule(*fitted(known.inputs, known.labels(2), QUICK, seed=0), groups=2, kept=1)
    quality = checked(rule, unseen, heads=2)
    assert min(quality.values()) > 0.9
    still = replace(QUICK, epochs=1, learning_rate=1e-12, weight_decay=0.0)
    untrained = HeadRule(*fitted(known.inputs, known.labels(2), still, seed=0), 2, 1)
    assert checked(untrained, unseen, heads=2)["groups_found"] < 0.9


def test_what_is_told_of_a_router_by_hand():
    """Three tokens, one input, two groups of two heads: logits are x, −x, −1, x."""
    weight, bias = torch.tensor([[1.0], [-1.0], [0.0], [1.0]]), torch.tensor([0.0, 0.0, -1.0, 0.0])
    norms = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0], [0.0, 4.0, 3.0, 1.0]])
    observed = Observed(torch.tensor([[1.0], [2.0], [-3.0]]), norms)
    assert observed.labels(2).tolist() == [[1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]]
    found = checked(HeadRule(weight, bias, groups=2, kept=1), observed, heads=2)
    # Predicted are heads 0 and 3, 0 and 3, 1: one of two, one of two, and one of one are right, of six.
    # The first group is chosen for every token, and is the best for the first and the last.
    assert found == {"recall": 3 / 6, "precision": 3 / 5, "groups_found": 2 / 3}


def test_ones_and_zeros_weigh_as_in_the_published_loss():
    """A first step has the sign of the gradient: -0.5 + 3 · 0.25 · 0.5; without weights it were -0.5 + 1.5."""
    inputs, labels = torch.zeros(4, 16), torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    once = RouterTraining(1e-9, 0.0, batch=4, epochs=1, epoch_tokens=1, held_out_share=0.5)
    (_, before), (_, after) = (
        fitted(inputs, labels, replace(once, learning_rate=rate), seed=3) for rate in (1e-9, 0.5)
    )
    assert torch.allclose(after - before, torch.tensor([0.5]), atol=1e-4)


def test_a_router_that_does_not_stay_finite_is_refused(llama):
    training = replace(QUICK, learning_rate=1e30, epochs=2)
    with pytest.raises(UserError, match=r"block 0: the router .* lower heads\.training\.learning_rate=1e\+30"):
        trained_routers(make_calibration(llama), 1, 0, training, seed=0)


@pytest.mark.slow
def test_how_long_training_is_and_what_shortens_it_is_said_before_it_begins(tiny_model, caplog, capsys):
    calibration = make_calibration(tiny_model)  # 6 of its 8 sequences of 32 tokens are trained on
    training = replace(QUICK, epochs=2, epoch_tokens=384)
    with caplog.at_level(logging.INFO):
        trained_routers(calibration, 1, 1, training, seed=0)
    (line,) = caplog.messages
    assert line == (
        "training routers of heads for 1 of the blocks, each on 768 tokens (4 times the 192 of the calibration "
        "text): a smaller heads.training.epoch_tokens (now 384) makes it shorter"
    )
    assert training.passes(192) == 4
    assert "0/4 [" in capsys.readouterr().err  # passes of a router; later ones are shown as time goes by
    assert "a smaller heads.training.epochs or calibration.sequences" in training.announced(384, 1)


@pytest.mark.slow
def test_routers_are_trained_block_by_block_and_the_same_again(tiny_model):
    calibration = make_calibration(tiny_model)
    before = [parameter.clone() for parameter in tiny_model.parameters()]
    plan, again = (POLAR.plan(calibration, seed=1) for _ in range(2))
    assert plan.heads.keys() == {1}
    assert torch.equal(plan.heads[1].weight, again.heads[1].weight)
    assert not torch.equal(plan.heads[1].weight, POLAR.plan(calibration, seed=2).heads[1].weight)
    assert all(torch.equal(*pair) for pair in zip(before, tiny_model.parameters(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.modules())
    found = plan.provenance.details["heads"]
    assert (found["groups"], found["kept"], found["dense_blocks"]) == (2, 1, 1)
    assert (found["trained_tokens"], found["checked_tokens"]) == (6 * 32, 2 * 32)
    assert all(0 <= value <= 1 for name in ("recall", "precision", "groups_found") for value in found[name])


def test_a_router_sees_what_the_block_reads_when_it_runs(llama):
    """Inputs and norms that it is trained on are those of a pass of the model."""
    calibration = make_calibration(llama)
    rules, _ = trained_routers(calibration, kept=1, dense_blocks=0, training=QUICK, seed=0)
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        block.input_layernorm.register_forward_hook(lambda _, __, x, index=index: seen.update({index: x}))
        for index, block in enumerate(llama.model.layers)
    ]
    outputs: dict[int, torch.Tensor] = {}
    hooks += [
        block.self_attn.o_proj.register_forward_pre_hook(
            lambda _, x, index=index: outputs.update({index: x[0]})
        )
        for index, block in enumerate(llama.model.layers)
    ]
    llama(input_ids=calibration.input_ids)
    for hook in hooks:
        hook.remove()
    for index, rule in rules.items():
        norms = outputs[index].unflatten(-1, (4, -1)).norm(dim=-1).flatten(0, 1)
        inputs = seen[index].flatten(0, 1)
        weight, bias = fitted(inputs[: 6 * 32], Observed(inputs, norms).labels(2)[: 6 * 32], QUICK, seed=0)
        assert torch.allclose(rule.weight, weight, atol=1e-3)
        assert torch.allclose(rule.bias, bias, atol=1e-3)


def test_a_density_of_one_keeps_all_and_is_the_dense_model(llama):
    calibration = make_calibration(llama)
    plan = replace(POLAR, density=1.0).plan(calibration, seed=0)
    assert plan.heads == {}
    expected = llama(input_ids=calibration.input_ids).logits
    with applied(llama, plan, make_protocol("all")):
        assert torch.equal(llama(input_ids=calibration.input_ids).logits, expected)


def test_a_methods_plan_with_routers_says_what_both_took(llama, tmp_path):
    calibration = make_calibration(llama)
    plan = with_heads(make_method("teal_uniform").plan(calibration, 0.4), POLAR.plan(calibration, 0), llama)
    assert plan.block_plans()[1].mechanisms().keys() == {Mechanism.THRESHOLD, Mechanism.HEADS}
    facts = plan.provenance.to_dict()
    assert facts["method"] == "teal_uniform"
    assert {"calibration", "routers"} <= facts["stages"].keys()
    assert facts["heads"]["kept"] == 1
    plan.save(tmp_path / "plan")
    assert SparsityPlan.load(tmp_path / "plan").provenance.to_dict() == facts


def test_routers_choose_the_same_groups_in_folded_bases(llama):
    """Gains of one would hide whether the routers take the norms' over."""
    generator = torch.Generator().manual_seed(3)
    for block in llama.model.layers:
        block.input_layernorm.weight.data = 0.5 + torch.rand(48, generator=generator)
    calibration = make_calibration(llama)
    heads = POLAR.plan(calibration, 0)
    in_bases = with_heads(make_method("teal_folded").plan(calibration, 1e-6), heads, llama)
    assert in_bases.folded.stream is not None
    found = []
    for plan in (heads, in_bases):
        with applied(llama, plan, make_protocol("all")):
            found.append(llama(input_ids=calibration.input_ids[:2]).logits)
    dense = llama(input_ids=calibration.input_ids[:2]).logits
    assert not torch.allclose(found[0], dense, atol=1e-2)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("density", "groups", "kept"),
    [(1 / 3, 3, 1), (0.33, 3, 1), (0.66, 3, 2), (0.99, 4, 3), (0.5, 4, 2), (1, 2, 2)],
)
def test_whole_groups_are_kept(density, groups, kept):
    model = make_tiny_model("llama", heads=(groups, groups))
    assert replace(POLAR, density=density).kept(model) == kept


def test_what_cannot_be_is_one_line(llama):
    with pytest.raises(
        UserError, match=r"keeps none of the model's 2 key-value groups; take heads\.density=0\.500"
    ):
        replace(POLAR, density=0.4).check_model(llama)
    with pytest.raises(UserError, match="the model has one key-value group"):
        POLAR.check_model(make_tiny_model("llama", heads=(4, 1)))
    with pytest.raises(UserError, match="dense_blocks=2 leaves none of the model's 2 blocks"):
        replace(POLAR, dense_blocks=2).check_model(llama)
    with pytest.raises(UserError, match="rotates it; take a method without rotations"):
        POLAR.check_method({Mechanism.ROTATION})
    with pytest.raises(UserError, match="1 calibration sequences leave none to train routers"):
        POLAR.plan(make_calibration(llama, sequences=1), 0)
    llama.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(UserError, match="block 1: attention is not finite"):
        POLAR.plan(make_calibration(llama), 0)


def test_its_configuration_is_the_published_one():
    polar = instantiate(composed("heads=polar").heads)
    assert polar.training == RouterTraining(1e-4, 0.01, 512, 5, 400_000, 0.125)
    assert [polar.training.passes(tokens) for tokens in (400_000, 800_000, 28_000)] == [5, 5, 72]
    assert polar.dense_blocks == 1

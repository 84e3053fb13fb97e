"""LTE's training: equal groups of alike neurons, soft and hard scores, and losses by hand."""

import pytest
import torch
from wisparse.repro.embedded.recipes import Recipe
from wisparse.repro.embedded.train import fit, token_losses
from wisparse.repro.train.continued import changed
from wisparse.repro.train.recipes import Continuation
from wisparse.repro.train.routers import RouterRecipe, TrainedRouters, balanced_groups, group_neurons

HOW = RouterRecipe(efficiency=0.5, separability=0.1, softening=0.05, neurons=8, hard_from=0.5)


def test_groups_are_equal_and_of_alike_rows():
    rows = torch.tensor([[0.0], [10.0], [0.2], [10.1], [0.1], [9.9]])
    order = balanced_groups(rows, 2).tolist()
    assert {frozenset(order[:3]), frozenset(order[3:])} == {frozenset({0, 2, 4}), frozenset({1, 3, 5})}
    crowded = torch.tensor([[0.0], [0.1], [0.2], [9.0]])  # three are alike, and two have a place
    assert sorted(balanced_groups(crowded, 2).tolist()) == [0, 1, 2, 3]


def test_an_order_of_neurons_changes_nothing(llama):
    ids = torch.arange(12).view(1, -1)
    before, first = llama(input_ids=ids).logits, llama.model.layers[0].mlp.gate_proj.weight.clone()
    assert [group_neurons(block, 8) for block in llama.model.layers] == [10, 10]
    assert not torch.equal(llama.model.layers[0].mlp.gate_proj.weight, first)
    assert torch.allclose(llama(input_ids=ids).logits, before, atol=1e-4)


def test_neurons_that_make_no_groups_are_refused(llama):
    with pytest.raises(ValueError, match="80 neurons are no groups of 32"):
        TrainedRouters(llama, RouterRecipe(efficiency=0.5, separability=0.1))


def test_scores_scale_their_groups_and_then_choose_them(llama):
    """A router of zeros has σ = 1/2: every neuron counts half, and none once routers are hard."""
    ids = torch.arange(12).view(1, -1)
    inputs = []
    llama.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    with changed(llama, Continuation("", routers=HOW)) as as_trained:
        for layer in as_trained.routers.layers:
            layer.weight.data.zero_()
        as_trained.advance(0.4)
        soft = as_trained.loss(llama, ids) - token_losses(llama, ids)
        # ½·mean σ² and 0.1·1/(0 + 0.05); the second pass of the line above is not counted twice.
        assert soft.item() == pytest.approx(0.5 * 0.25 + 0.1 / 0.05, rel=1e-4)
        as_trained.advance(0.5)
        assert not any(parameter.requires_grad for parameter in as_trained.routers.layers.parameters())
        assert as_trained.loss(llama, ids) == token_losses(llama, ids)
        assert (inputs[-1] == 0).all()
        assert (inputs[0] != 0).any()
    assert not llama.model.layers[0].mlp.gate_proj._forward_pre_hooks


def test_losses_by_hand():
    routers = object.__new__(TrainedRouters)
    routers._how, routers.hard = HOW, False
    routers._scores = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 1.0]])]
    squares = (0.81 + 0.01 + 0.25 + 1.0) / 4
    apart = (2 / 0.21 + 1 / 0.05 + 1 / 0.3) / 4
    assert routers.take_loss().item() == pytest.approx(0.5 * squares + 0.1 * apart)
    assert routers._scores == []


def test_the_model_is_slow_while_routers_are_soft():
    assert [HOW.rate_of_model(progress) for progress in (0.0, 0.49, 0.5, 1.0)] == [0.1, 0.1, 1.0, 1.0]


def test_routers_learn_at_their_own_rate_where_the_model_stands(llama):
    llama.requires_grad_(True)
    recipe = Recipe(llama.config, "adamw", 2 * 2 * 8, learning_rate=1e-2, batch=2, length=8, warmup_steps=1)
    training = torch.randint(128, (64,), generator=torch.Generator().manual_seed(0))
    with changed(llama, Continuation("", routers=HOW)) as as_trained:
        before = {name: value.clone() for name, value in llama.state_dict().items()}
        weights = [layer.weight.clone() for layer in as_trained.routers.layers]
        besides = tuple(as_trained.routers.layers.parameters())
        fit(llama, recipe, training, "cpu", as_trained.loss, besides=besides, rate_of_model=lambda _: 0.0)
        assert not any(map(torch.equal, weights, besides))
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())

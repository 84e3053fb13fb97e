import math

import pytest
import torch
from wisparse.baselines.rsparse import BudgetedRules, RSparseByCoordinates, calibration_loss, low_rank_factors
from wisparse.method.plan import ProjectionRule, SparsityPlan
from wisparse.method.running.apply import applied

from ..conftest import make_calibration, make_method, make_protocol


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_truncation_is_the_best_of_its_rank(shape):
    weight = torch.randn(shape, dtype=torch.float64)
    singular = torch.linalg.svdvals(weight)
    left, right = low_rank_factors(weight)
    assert (left.shape[0], right.shape[1]) == shape
    for rank in (1, 3, 6):
        error = torch.linalg.matrix_norm(weight - left[:, :rank] @ right[:rank])
        assert error.item() == pytest.approx(singular[rank:].square().sum().sqrt().item(), abs=1e-6)


def test_at_full_rank_it_is_dense(llama):
    calibration = make_calibration(llama)
    rules = {}
    for name, (_, inner) in calibration.shapes.items():
        block, projection = name.split(".")
        module = llama.model.layers[int(block)]
        linear = getattr(module.self_attn if projection in "qkvo" else module.mlp, f"{projection}_proj")
        left, right = low_rank_factors(linear.weight)
        rules[name] = ProjectionRule(thresholds=torch.full((inner,), 0.7), left=left, right=right)
    dense = llama(input_ids=calibration.input_ids).logits
    with applied(llama, SparsityPlan(calibration.shapes, rules), make_protocol("all")) as session:
        sparse = llama(input_ids=calibration.input_ids).logits
    assert session.report()["realised_sparsity"] > 0.2  # the low-rank path did the rest
    assert torch.allclose(sparse, dense, atol=2e-3)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_channels_and_rank_together_read_the_budget(llama, share, sparsity):
    calibration = make_calibration(llama)
    budgeted = BudgetedRules(calibration, sparsity, "paper")
    for name, (out, inner) in calibration.shapes.items():
        rank = budgeted.rank(name, share)
        assert rank == math.floor((1 - share) * (1 - sparsity) * out * inner / (out + inner) + 1e-9)
        read = budgeted.kept_channels(name, share) + rank * (out + inner) / (out * inner)
        assert read == pytest.approx(1 - sparsity)


def test_the_score_of_the_code_weighs_only_beside_a_low_rank_path(llama):
    calibration = make_calibration(llama)
    with_path = BudgetedRules(calibration, 0.4, "code").rule("0.down", 0.5).thresholds
    without = BudgetedRules(calibration, 0.4, "code").rule("0.down", 1.0).thresholds
    paper = BudgetedRules(calibration, 0.4, "paper").rule("0.down", 0.5).thresholds
    assert with_path.unique().numel() > 1
    assert without.unique().numel() == paper.unique().numel() == 1


@pytest.mark.slow
def test_the_search_finds_no_worse_than_the_best_uniform_share(llama):
    calibration = make_calibration(llama)

    def loss(plan):
        ids = calibration.search_tokens(64)
        with applied(llama, plan, make_protocol("all")):
            return llama(input_ids=ids, labels=ids).loss.item()

    searched = loss(make_method("rsparse").plan(calibration, 0.5))
    uniform = [
        loss(make_method("rsparse", "method.search=false", f"method.share={share}").plan(calibration, 0.5))
        for share in (1.0, 0.95, 0.9)  # a population of three starts with these
    ]
    assert searched <= min(uniform) + 1e-5


def test_the_search_by_coordinates_finds_the_one_projection_that_gains(llama):
    # A weight of rank 1: its low-rank path gives back all that its channels lose.
    down = llama.model.layers[1].mlp.down_proj
    with torch.no_grad():
        down.weight.copy_(down.weight[:, :1] @ torch.randn(1, down.in_features) * 3)
    calibration = make_calibration(llama)
    method = RSparseByCoordinates(choices=(1.0, 0.8), search_tokens=64)
    plan = method.plan(calibration, 0.6)
    shares = plan.provenance.details["shares"]
    assert shares["1.down"] == 0.8
    ids = calibration.search_tokens(64)
    budgeted = BudgetedRules(calibration, 0.6, "paper")
    found = calibration_loss(calibration, ids, budgeted.rules(tuple(shares.values())))
    assert found < calibration_loss(calibration, ids, budgeted.rules((1.0,) * len(shares)))
    assert plan.provenance.search.evaluations["share search"] == len(shares)

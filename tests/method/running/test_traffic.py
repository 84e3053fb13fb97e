"""Bytes and kept channels of sparse tokens, counted by hand."""

import pytest
import torch
from wisparse.method.plan import ProjectionRule, SparsityPlan
from wisparse.method.running.apply import applied

from ...conftest import make_calibration, make_method, make_protocol, make_tiny_model
from .given_tokens import ids_of


def test_traffic_by_hand():
    model = make_tiny_model("llama")
    shapes = make_calibration(model).shapes
    # Everything dropped in block 0's down and q; the rest dense.
    rules = {
        name: ProjectionRule(thresholds=torch.full((shapes[name][1],), torch.inf)) for name in ("0.down", "0.q")
    }
    with applied(model, SparsityPlan(shapes, rules), make_protocol("all")) as session:
        model(input_ids=ids_of(2, 10))
        report = session.report()
    block = 48 * 48 * 2 + 48 * 24 * 2 + 48 * 80 * 3
    dropped = 48 * 48 + 48 * 80
    assert report["realised_sparsity"] == pytest.approx(dropped / (2 * block))
    assert report["by_projection"]["down"] == pytest.approx(0.5)
    assert report["by_block"] == pytest.approx([dropped / block, 0.0])
    always = 5 * 48 + 48 * 128  # norms and lm_head
    assert report["dense_bytes_per_token"] == (2 * block + always) * 4
    assert report["bytes_per_token"] == pytest.approx((2 * block - dropped + always) * 4)


def test_zeros_that_tie_with_the_kth_score_count_as_skipped():
    """Three quarters of the neurons are 0, as behind a ReLU, and half of them should be kept, then all."""
    model = make_tiny_model("llama")
    shapes = make_calibration(model).shapes
    for block in model.model.layers:
        block.mlp.up_proj.weight[20:] = 0.0
    for k in (40, 80):
        rules = {f"{index}.down": ProjectionRule(top_k=k, weights=torch.ones(80)) for index in range(2)}
        ids = ids_of(1, 8)
        with applied(model, SparsityPlan(shapes, rules), make_protocol("all")) as session:
            sparse = model(input_ids=ids).logits
        assert session.report()["by_projection"]["down"] == pytest.approx(0.75)
        assert torch.equal(sparse, model(input_ids=ids).logits)


def test_a_dropped_gate_neuron_skips_up_and_down():
    model = make_tiny_model("llama")
    shapes = make_calibration(model).shapes
    thresholds = torch.zeros(80)
    thresholds[:20] = torch.inf
    plan = SparsityPlan(shapes, gate_thresholds={0: thresholds, 1: thresholds})
    ids = ids_of(1, 8)
    with applied(model, plan, make_protocol("all")) as session:
        sparse = model(input_ids=ids).logits
    assert session.report()["by_projection"] == pytest.approx(
        {"q": 0, "k": 0, "v": 0, "o": 0, "gate": 0, "up": 0.25, "down": 0.25}
    )
    for block in model.model.layers:
        block.mlp.down_proj.weight[:, :20] = 0.0
    assert torch.allclose(model(input_ids=ids).logits, sparse, atol=1e-6)


def test_low_rank_factors_are_counted_as_bytes():
    model = make_tiny_model("llama")
    calibration = make_calibration(model)
    method = make_method("rsparse", "method.search=false", "method.share=0.5")
    with applied(model, method.plan(calibration, 0.4), make_protocol("all")) as session:
        model(input_ids=calibration.input_ids)
    report = session.report()
    assert report["low_rank_share"] > 0.1
    weights = sum(out * inner for out, inner in calibration.shapes.values())
    read = (1 - report["realised_sparsity"] + report["low_rank_share"]) * weights
    always = report["dense_bytes_per_token"] / 4 - weights
    assert report["bytes_per_token"] == pytest.approx((read + always) * 4)

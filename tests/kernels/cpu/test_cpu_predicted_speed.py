"""The bench of predicted neurons: the share that is computed is forced, and rows hold the same weights."""

import argparse
from dataclasses import replace

import pytest
import torch
from wisparse.kernels.bench import predicted_neurons
from wisparse.kernels.bench.parts import steps_in_turn
from wisparse.kernels.bench.parts.drawn import filled_cache, random_weights, row_weights
from wisparse.kernels.bench.predicted_neurons import (
    as_active,
    gated_weights,
    knowing,
    nothing_read,
    predicting,
    shares_read,
)
from wisparse.kernels.cpu.step import decode_step
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.decoder import DecoderShape
from wisparse.kernels.plan.block_plan import BlockPlan

SHAPE = DecoderShape(2, 256, 640, 4, 2, 64, 128, 1e-5, (None, None), "relu")


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return random_weights(SHAPE, 16, 16, torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize("wanted", [0.1, 0.3])
def test_the_share_that_is_computed_is_forced(weights, wanted):
    rows = row_weights(weights)
    computed, active = shares_read(rows, predicting(rows, wanted)[0])
    assert computed == pytest.approx(wanted, abs=0.05)
    # Of neurons with so few unlike signs most are above zero; of all neurons half are.
    assert 0.7 * computed < active < computed
    assert shares_read(rows, predicting(rows, 0.0)[0]) == (0.0, 0.0)


def test_the_share_that_is_known_to_be_zero_is_forced(weights):
    gated = gated_weights(weights, row_weights(weights))
    (plan, _) = knowing(gated, 0.3)
    x = torch.randn(64, SHAPE.hidden).bfloat16()
    kept = (x @ gated.blocks[0].gate).relu() >= plan.gate.thresholds
    assert kept.float().mean().item() == pytest.approx(0.3, abs=0.02)
    gate, up = weights.blocks[1].gate_up.chunk(2, dim=1)
    assert torch.equal(gated.blocks[1].gate, gate)
    assert torch.equal(gated.blocks[1].up_rows, up.T)


def test_as_few_neurons_are_active_as_of_a_trained_model(weights):
    rows = row_weights(weights)
    (plan, _) = predicting(rows, 0.5)
    assert shares_read(as_active(rows, plan, 0.2), plan) == pytest.approx((0.5, 0.2), abs=0.04)
    with pytest.raises(
        KernelError, match=r"at most 0\.\d+ of the neurons are active where 0\.5\d* are computed; 0\.6"
    ):
        as_active(rows, plan, 0.6)


@pytest.mark.slow
def test_with_every_neuron_computed_a_step_is_the_dense_one(compiled, weights):
    rows, found = row_weights(weights), []
    every = [replace(plan.signs, limit=SHAPE.hidden) for plan in predicting(rows, 0.5)]
    dense = (BlockPlan(),) * SHAPE.blocks
    for given, rules in ((weights, dense), (rows, tuple(BlockPlan(signs=one) for one in every))):
        torch.manual_seed(1)
        cache = filled_cache(SHAPE, torch.bfloat16, torch.device("cpu"), 8)
        found.append(decode_step(given, rules, cache)(torch.tensor([3])).clone())
    assert torch.allclose(*found, atol=1e-3, rtol=1e-3)
    none = (nothing_read(SHAPE, torch.device("cpu")), weights), (predicting(rows, 0.0), rows)
    found = []
    for rules, given in none:
        torch.manual_seed(1)
        cache = filled_cache(SHAPE, torch.bfloat16, torch.device("cpu"), 8)
        found.append(decode_step(given, rules, cache)(torch.tensor([3])).clone())
    assert torch.allclose(*found, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_every_kind_of_plan_has_a_row(compiled, monkeypatch):
    monkeypatch.setattr(steps_in_turn, "read_bandwidth", lambda _: 20e9)
    options = argparse.Namespace(context=8, computed=[0.3], trained=[[0.4, 0.2, 0.25]])
    found = list(predicted_neurons.rows("tiny", SHAPE, torch.device("cpu"), options))
    assert [(row["kind"], row["blocks"], row["read_gb_s"]) for row in found] == [
        (kind, 2, 20.0) for kind in ("dense", "nothing", "signs", *("predicted", "known") * 2)
    ]
    assert found[3]["computed"] == pytest.approx(0.3, abs=0.05)
    assert (found[4]["computed"], found[4]["active"]) == (1.0, found[3]["active"])
    assert (found[5]["computed"], found[5]["active"]) == pytest.approx((0.4, 0.2), abs=0.05)
    assert (found[6]["computed"], found[6]["active"]) == (1.0, 0.25)
    assert all(row["ms"] > 0 for row in found)

"""What a study of plans on quantised weights computes, on a small random model."""

import numpy as np
import pytest
import torch
from wisparse.kernels.quantised.int8 import int8_rounded
from wisparse.method.errors import UserError
from wisparse.method.projections import model_projections
from wisparse.method.running.apply import applied
from wisparse.method.token_policy import TokenPolicy
from wisparse.repro.studies.quantised_plans import (
    Bench,
    InE4m3,
    Passed,
    masked,
    norms_of,
    with_other_norms,
)

from ...conftest import make_calibration, make_method


@pytest.fixture
def calibration(llama):
    return make_calibration(llama)


@pytest.fixture
def plan(calibration):
    return make_method("teal").plan(calibration, 0.5)


def test_masks_are_those_that_the_plan_s_runtime_makes(llama, calibration, plan):
    with applied(llama, plan, TokenPolicy("all", "")):
        expected = llama(calibration.input_ids).logits
    with masked(llama, plan):
        found = llama(calibration.input_ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.equal(llama(calibration.input_ids).logits, found)


def test_a_plan_is_compared_at_the_weights_that_it_reads(llama, calibration):
    bench = Bench(llama, calibration.input_ids, seed=0)
    rows = len(calibration.input_ids)
    among = [Passed(np.full(rows, surprisal), read) for surprisal, read in ((3.0, 0.6), (1.0, 0.4), (2.0, 0.5))]
    row = bench.row(Passed(np.full(rows, 2.5), 0.45), among)
    assert float(row["ratio"]) == pytest.approx(np.exp(2.5 - 1.5), abs=1e-4)
    assert float(row["perplexity"]) == pytest.approx(np.exp(2.5), abs=1e-3)
    with pytest.raises(UserError, match=r"reads 0\.700 of the weights, beyond"):
        bench.row(Passed(np.full(rows, 2.5), 0.7), among)


def test_all_weights_are_read_where_thresholds_are_zero(llama, calibration, plan):
    bench = Bench(llama, calibration.input_ids, seed=0)
    dense = bench.dense(plan)
    logits = llama(calibration.input_ids).logits[:, :-1].double().log_softmax(-1)
    expected = -logits.gather(-1, calibration.input_ids[:, 1:, None])[..., 0].mean(dim=1)
    assert dense.read == pytest.approx(1.0)
    assert dense.surprisal == pytest.approx(expected.numpy(), abs=1e-4)


def test_norms_of_other_weights_move_thresholds_and_their_own_none(llama, plan):
    norms = norms_of(llama)
    same = with_other_norms(plan, norms, norms)
    twice = with_other_norms(plan, norms, {name: 2 * norm for name, norm in norms.items()})
    for name, rule in plan.rules.items():
        assert torch.allclose(same.rules[name].thresholds, rule.thresholds)
        assert torch.allclose(twice.rules[name].thresholds, rule.thresholds / 2)
    assert norms["0.q"][3] == pytest.approx(
        float(model_projections(llama)["0.q"].weight[:, 3].norm()), rel=1e-5
    )


def test_e4m3_keeps_what_it_can_hold_and_is_within_a_sixteenth_of_the_rest():
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    found = InE4m3(weight).dequantised()
    stored = int8_rounded(weight)
    scale = stored.row_scales[:, None] * stored.column_scales * 127.0 / 448.0
    normal = (weight / scale).abs() >= 2.0**-6
    assert normal.float().mean() > 0.9
    assert ((found - weight).abs() <= weight.abs() / 16 * (1 + 1e-5))[normal].all()
    assert torch.allclose(InE4m3(found).dequantised(), found, rtol=1 / 16)

"""TopK-Guided: bounds around a threshold's choice by hand, and what is refused."""

import dataclasses

import pytest
import torch
from wisparse.baselines.topk_guided import TopKGuided
from wisparse.kernels.plan.projection_rule import ProjectionRule
from wisparse.kernels.reference import dropped_within_bounds
from wisparse.method.errors import UserError
from wisparse.method.plan import SparsityPlan
from wisparse.method.running.apply import applied
from wisparse.method.search.blocks import UniformBlocks

from ..conftest import make_calibration, make_method, make_protocol

THRESHOLDS = torch.tensor([1.0, 2.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("x", "kept"),
    [
        ([1.5, 1.0, 0.5, 0.4], [True, False, False, True]),  # one reaches its threshold; 0.4 / 0.5 is next
        ([1.5, 2.5, 0.5, 0.1], [True, True, False, False]),  # two do, which is within the bounds
        ([3.0, 4.5, 2.0, 1.5], [True, True, False, True]),  # all do; 2.0 / 1.0 is the lowest of four
        ([0.0, 0.0, 0.0, 0.2], [False, False, False, True]),  # a zero is never kept
    ],
)
def test_bounds_by_hand(x, kept):
    dropped = dropped_within_bounds(torch.tensor([x, x]), THRESHOLDS, fewest=2, most=3)
    assert dropped.logical_not().tolist() == [kept, kept]


def test_wide_bounds_are_the_threshold_and_narrow_ones_top_k():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropped_within_bounds(x, THRESHOLDS, 0, 4), x.abs() < THRESHOLDS)
    assert (dropped_within_bounds(x, THRESHOLDS, 2, 2).sum(1) == 2).all()


def test_no_token_is_beyond_the_bounds(llama):
    calibration = make_calibration(llama)
    method = TopKGuided(spread=0.05, allocator=UniformBlocks())
    plan = method.plan(calibration, 0.5)
    assert plan.rules["0.up"].bounds == (int(48 * 0.45), int(48 * 0.55 + 1e-9))
    kept = []

    def record(_, inputs):
        kept.append((inputs[0] != 0).sum(-1))

    with applied(llama, plan, make_protocol("all")):
        handle = llama.model.layers[0].mlp.up_proj.register_forward_pre_hook(record)
        llama(input_ids=calibration.input_ids)
    handle.remove()
    counts = torch.cat(kept)
    assert (int(counts.min()), int(counts.max())) == (21, 26)  # both bounds hold some token back


def test_a_plan_comes_back_from_disk_and_a_dense_one_has_no_bounds(llama, tmp_path):
    calibration, method = make_calibration(llama), make_method("topk_guided")
    plan = method.plan(calibration, 0.4)
    plan.save(tmp_path / "plan")
    again = SparsityPlan.load(tmp_path / "plan")
    assert [rule.bounds for rule in again.rules.values()] == [rule.bounds for rule in plan.rules.values()]
    assert all(rule.bounds is None for rule in method.plan(calibration, 0.0).rules.values())


def test_what_cannot_be_is_told(llama):
    rule = ProjectionRule(thresholds=THRESHOLDS, bounds=(2, 3))
    assert rule.misfit((5, 4)) is None
    for bounds in ((3, 2), (0, 5), (-1, 2), (1.0, 2)):
        assert "in order" in dataclasses.replace(rule, bounds=bounds).misfit((5, 4))
    with pytest.raises(ValueError, match="of thresholds"):
        ProjectionRule(top_k=1, weights=THRESHOLDS, bounds=(1, 2))
    with pytest.raises(UserError, match=r"method\.spread"):
        TopKGuided(spread=1.5)

"""Equal local error: one relative error for all projections, on curves by hand and on a small model."""

from __future__ import annotations

import pytest
import torch
from wisparse.baselines.equal_error import at_equal_error
from wisparse.method.projections import PROJECTION_PATHS, decoder_blocks, split_key

from ..conftest import make_calibration, make_method


def test_equal_error_on_two_curves_by_hand():
    # Twice as wrong at the same sparsity: half the sparsity at the same error.
    curves, levels = {"a": [0.0, 0.5, 1.0], "b": [0.0, 1.0, 2.0]}, [0.0, 0.5, 1.0]
    error, found = at_equal_error(levels, curves, {"a": 1, "b": 1}, 0.45)
    assert found == pytest.approx({"a": 0.6, "b": 0.3})
    assert error == pytest.approx(0.6)
    _, weighted = at_equal_error(levels, curves, {"a": 1, "b": 4}, 0.3)
    assert weighted == pytest.approx({"a": 0.5, "b": 0.25})


def test_all_projections_are_equally_wrong(llama):
    calibration = make_calibration(llama)
    # Two hundred levels, so that what is linear between them is close to what is measured.
    plan = make_method("equal_error", "method.levels=200", "method.block_tokens=256").plan(calibration, 0.5)
    errors, expected = {}, plan.provenance.details["error"]
    for name, rule in plan.rules.items():
        block, projection = split_key(name)
        linear = decoder_blocks(llama)[block].get_submodule(PROJECTION_PATHS[projection])
        seen = []
        handle = linear.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0]))
        llama(input_ids=calibration.input_ids)
        handle.remove()
        x = seen[0].flatten(0, 1)
        lost = torch.where(x.abs() >= rule.thresholds, 0.0, x)
        wrong, dense = (torch.nn.functional.linear(part, linear.weight).norm(dim=-1) for part in (lost, x))
        errors[name] = float((wrong / dense).mean())
    assert list(errors.values()) == pytest.approx([expected] * len(errors), rel=0.05)
    shares = {name: float(rule.thresholds.isfinite().float().mean()) for name, rule in plan.rules.items()}
    assert set(shares.values()) == {1.0}
    sparsities = plan.provenance.details["sparsities"]
    assert max(sparsities.values()) - min(sparsities.values()) > 0.02

"""Exact zeros of a ReLU: a lossless plan, counted as it should be; and more than there are on request."""

import copy

import pytest
import torch
from wisparse.method.errors import OutOfReachError
from wisparse.method.projections import parameter_shares
from wisparse.method.running.apply import applied

from ..conftest import make_calibration, make_method, make_protocol


@pytest.fixture
def relu(llama):
    """A ReLU model, two thirds of whose gates are zero: each is shifted by a share of its spread."""
    model = copy.deepcopy(llama)
    for block in model.model.layers:
        block.mlp.act_fn = torch.nn.ReLU()
        gate = block.mlp.gate_proj
        gate.bias = torch.nn.Parameter(torch.full((gate.out_features,), -0.4 * gate.weight.norm(dim=1).mean()))
    return model


def zeros_of(model, ids):
    """Share of exact zeros behind the gates, without the suite's own hooks."""
    seen = []
    handles = [
        b.mlp.act_fn.register_forward_hook(lambda _, __, y: seen.append((y == 0).float().mean()))
        for b in model.model.layers
    ]
    logits = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return logits, torch.stack(seen).mean().item()


def test_what_is_exactly_zero_is_left_out_without_a_loss(relu):
    calibration = make_calibration(relu)
    dense, zeros = zeros_of(relu, calibration.input_ids)
    assert 0.5 < zeros < 0.9
    plan = make_method("relu_zeros").plan(calibration, 0.0)
    with applied(relu, plan, make_protocol("all")) as session:
        assert torch.equal(relu(input_ids=calibration.input_ids).logits, dense)
    shares = parameter_shares(relu.model.layers[0])
    assert session.report()["realised_sparsity"] == pytest.approx(
        zeros * (shares["up"] + shares["down"]), abs=1e-6
    )


def test_models_without_zeros_are_warned_of(relu, llama, caplog):
    make_method("relu_zeros").plan(make_calibration(relu), 0.3)
    assert not caplog.records
    make_method("relu_zeros").plan(make_calibration(llama), 0.3)
    assert [record.getMessage() for record in caplog.records] == [
        "relu_zeros skips exact zeros behind a ReLU, and this model's silu has hardly any: what it drops above "
        "them is CATS's; take a ReLU model, or method=cats"
    ]


def test_thresholds_rise_where_more_is_asked_for_than_there_are_zeros(relu):
    calibration = make_calibration(relu)
    _, zeros = zeros_of(relu, calibration.input_ids)
    shares = parameter_shares(relu.model.layers[0])
    reach = shares["up"] + shares["down"]
    tiny = torch.finfo(torch.float32).tiny
    few = make_method("relu_zeros").plan(calibration, (zeros - 0.2) * reach)
    more = make_method("relu_zeros").plan(calibration, (zeros + 0.1) * reach)
    # Zeros lie in the lowest bin of a histogram, far below every other activation.
    assert all(
        (tiny <= thresholds).all() and (thresholds < 1e-5).all() for thresholds in few.gate_thresholds.values()
    )
    assert all((thresholds > 1e-3).all() for thresholds in more.gate_thresholds.values())
    with applied(relu, more, make_protocol("all")) as session:
        relu(input_ids=calibration.input_ids)
    assert session.report()["realised_sparsity"] == pytest.approx((zeros + 0.1) * reach, abs=0.02)
    with pytest.raises(OutOfReachError):
        make_method("relu_zeros").plan(calibration, reach)

"""SparseInfer: bits and products by hand, the release's own rule, a lossless end, and what is counted."""

import pytest
import torch
from wisparse.baselines.sparseinfer import SparseInfer
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.plan.signs import negative_products, packed_signs, plus_minus
from wisparse.method.errors import OutOfReachError, UserError
from wisparse.method.projections import projection_shapes
from wisparse.method.running.apply import applied
from wisparse.method.signs.predictor import PredictedNeurons, alpha_of, predicted_neurons

from ..conftest import make_calibration, make_method, make_protocol, make_tiny_model


@pytest.fixture
def relu():
    return make_tiny_model("llama", activation="relu")


def test_signs_are_packed_bit_by_bit():
    weight = torch.tensor([[-1.0, 2.0, 0.0, -0.0, -3.0, 1.0, 1.0, -1.0, -5.0, 4.0]])
    packed = packed_signs(weight)
    assert packed.tolist() == [[0b10010001, 0b00000001]]  # bit 0 is channel 0; zeros are not negative
    assert plus_minus(packed, 10).tolist() == [[-1, 1, 1, 1, -1, 1, 1, -1, -1, 1]]
    x = torch.tensor([1.0, -1.0, -2.0, 0.0, -3.0, 5.0, -1.0, 2.0, -1.0, 1.0])
    # Unlike signs: channels 0, 1, 2, 6 and 7.
    assert negative_products(x, plus_minus(packed, 10)).tolist() == [5.0]


def test_the_limit_is_the_releases_comparison():
    """100·N₋ − s·N₊ > 0 with α = s/100: exactly what is beyond the limit that α stands for."""
    channels = 96
    for percent in (100, 103, 120):
        beyond = [n for n in range(channels + 1) if 100 * n - percent * (channels - n) > 0]
        limit = beyond[0] - 1
        assert alpha_of(limit, channels) <= percent / 100 < alpha_of(limit + 1, channels)


def test_shares_by_hand():
    counts = PredictedNeurons(
        active=torch.tensor([4, 3, 2, 1]), zero=torch.tensor([0, 1, 2, 7]), every=torch.tensor([4, 4, 4, 8])
    )
    assert [counts.limit(recall) for recall in (0.4, 0.7, 0.71, 0.9, 1.0)] == [0, 1, 2, 2, 3]
    assert counts.predicted(1) == pytest.approx(12 / 20)
    assert counts.zeros(1) == pytest.approx((12 + 1) / 20)
    assert counts.recall(1) == pytest.approx(0.7)
    assert counts.precision(1) == pytest.approx(1 - 3 / 12)
    assert counts.precision(3) == 1.0


def test_a_recall_of_all_loses_no_single_neuron_of_many():
    counts = torch.tensor([2**26, 1, 0])
    assert PredictedNeurons(active=counts, zero=counts, every=counts).limit(1.0) == 1


def test_a_block_without_an_active_neuron_loses_none():
    none, some = torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3])
    counts = PredictedNeurons(active=none, zero=some, every=some)
    assert counts.limit(1.0) == 0
    assert (counts.recall(0), counts.precision(0)) == (1.0, 1.0)


def test_signs_tell_more_than_chance(relu):
    for counts in predicted_neurons(make_calibration(relu)):
        limit = counts.limit(0.9)
        assert counts.recall(limit) >= 0.9
        # Chance would leave out as many active neurons as others.
        assert counts.predicted(limit) > 1.5 * (1 - counts.recall(limit))
        assert int(counts.every.sum()) == 8 * 32 * 80
        assert int(counts.active.sum() + counts.zero.sum()) == int(counts.every.sum())


def test_without_a_prediction_only_zeros_are_left_out_and_nothing_is_lost(relu):
    calibration = make_calibration(relu)
    dense = relu(input_ids=calibration.input_ids).logits
    with applied(relu, make_method("sparseinfer").plan(calibration, 0.0), make_protocol("all")) as session:
        assert torch.equal(relu(input_ids=calibration.input_ids).logits, dense)
    by_projection = session.report()["by_projection"]
    assert by_projection["gate"] == 0.0
    assert 0.3 < by_projection["up"] == by_projection["down"] < 0.7


def test_predicted_neurons_and_signs_are_counted(relu):
    calibration = make_calibration(relu)
    plan = make_method("sparseinfer").plan(calibration, 0.3)
    with applied(relu, plan, make_protocol("all")) as session:
        relu(input_ids=calibration.input_ids)
    report, details = session.report(), plan.provenance.details
    assert report["realised_sparsity"] == pytest.approx(0.3, abs=0.02)
    assert report["by_projection"]["gate"] < report["by_projection"]["up"] == report["by_projection"]["down"]
    predicted = sum(details["predicted"]) / 2
    assert report["by_projection"]["gate"] == pytest.approx(predicted, abs=0.02)
    weights = sum(out * inner for out, inner in projection_shapes(relu).values())
    saved = report["dense_bytes_per_token"] - report["bytes_per_token"]
    assert saved == pytest.approx(4 * weights * report["realised_sparsity"] - 2 * 80 * 48 / 8)
    # Blocks keep the same share of their active neurons, as far as whole numbers of products allow.
    assert all(recall >= details["recall"] - 1e-6 for recall in details["recalls"])


def test_what_it_cannot_do_is_refused(relu):
    with pytest.raises(OutOfReachError, match="leaves attention dense"):
        make_method("sparseinfer").plan(make_calibration(relu), 0.7)
    plan = make_method("sparseinfer").plan(make_calibration(relu), 0.3)
    relu.config.hidden_act = "silu"
    with pytest.raises(KernelError, match="act_fn is a ReLU, unlike in other Llama models"):
        DecodeEngine(relu, plan, capacity=32)


def test_a_recall_that_is_asked_for_sets_alpha_by_block(relu):
    calibration = make_calibration(relu)
    plan = make_method("sparseinfer", "method.recall=0.9").plan(calibration, 0.1)
    details = plan.provenance.details
    counted = predicted_neurons(calibration)
    assert [rule.limit for rule in plan.signs.values()] == [one.limit(0.9) for one in counted]
    assert details["alphas"] == [alpha_of(one.limit(0.9), 48) for one in counted]
    for one, kept in zip(counted, details["recalls"], strict=True):
        assert kept >= 0.9 > one.recall(one.limit(0.9) - 1)  # the least limit that keeps as many
    with applied(relu, plan, make_protocol("all")) as session:
        relu(input_ids=calibration.input_ids)
    assert session.report()["realised_sparsity"] > 0.1
    assert make_method("sparseinfer", "method.recall=0.9").plan(calibration, 0.0).signs[0].limit == 48


def test_what_a_recall_does_not_allow_is_refused(relu):
    with pytest.raises(OutOfReachError, match=r"method\.recall=0\.99 leaves out 0\.\d+ .* not 0\.55"):
        make_method("sparseinfer", "method.recall=0.99").plan(make_calibration(relu), 0.55)
    with pytest.raises(UserError, match=r"recall=1\.5 is not a number above 0 up to 1"):
        SparseInfer(recall=1.5)


def test_models_without_zeros_are_warned_of(relu, llama, caplog):
    make_method("sparseinfer").plan(make_calibration(relu), 0.3)
    assert not caplog.records
    make_method("sparseinfer").plan(make_calibration(llama), 0.3)
    assert [record.getMessage() for record in caplog.records] == [
        "sparseinfer predicts exact zeros behind a ReLU, and this model's silu has hardly any: active neurons "
        "are lost instead; take a ReLU model, or another method"
    ]

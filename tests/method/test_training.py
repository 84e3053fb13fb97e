"""Lightly trained methods: gradients against differences, divergence that falls, the budget that holds."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.method.calibration import Calibration
from wisparse.method.equal_loss.method import EqualLoss
from wisparse.method.errors import UserError
from wisparse.method.folding.method import Folded
from wisparse.method.folding.stream_basis import BasisSettings
from wisparse.method.plan import ProjectionRule, SparsityPlan
from wisparse.method.projections import model_projections, projection_shapes
from wisparse.method.running.apply import applied
from wisparse.method.token_policy import TokenPolicy
from wisparse.method.training.distillation import Distillation
from wisparse.method.training.method import Trained
from wisparse.method.training.own_text import own_text
from wisparse.method.training.trained_rules import BAND, TrainedProjection

from ..conftest import make_calibration, make_method, make_protocol, make_tiny_model

HALF = TokenPolicy(name="half", source="", dense_share=0.5)
FEW = Distillation(steps=30, sequences=8, bias_rate=0.02, threshold_rate=0.02)


@pytest.fixture
def model():
    return make_tiny_model("llama")


@pytest.fixture
def calibration(model):
    return Calibration(model, make_calibration(model, sequences=16).input_ids, 8, HALF)


def divergence(calibration: Calibration, plan: SparsityPlan) -> tuple[float, float]:
    """KL(dense ‖ sparse) of a sparse token, and the realised sparsity."""
    model, input_ids = calibration.model, calibration.input_ids
    dense = model(input_ids).logits.log_softmax(-1)
    with applied(model, plan, HALF) as session:
        sparse = model(input_ids).logits.log_softmax(-1)
    found = torch.nn.functional.kl_div(sparse, dense, reduction="sum", log_target=True)
    return float(found) / (dense.shape[0] * dense.shape[1] / 2), session.report()["realised_sparsity"]


def test_training_lowers_the_divergence_at_the_same_sparsity(calibration):
    plan = make_method("teal_uniform").plan(calibration, 0.5)
    calibration.prepare({"final_states"})
    before, at = divergence(calibration, plan)
    found = {}
    for name, settings in {"both": FEW, "biases": replace(FEW, threshold_rate=0.0)}.items():
        trained = settings.run(calibration, plan.rules, at)
        found[name], realised = divergence(calibration, replace(plan, rules=trained.rules))
        assert realised == pytest.approx(at, abs=0.02)
        assert trained.losses[-1] < trained.losses[0] == pytest.approx(before, rel=0.2)
        assert trained.stream is None
    rules = trained.rules
    assert found["both"] < found["biases"] < 0.95 * before
    assert {len(rule.bias) for name, rule in rules.items() if name.endswith(".k")} == {24}
    assert all(torch.allclose(rule.thresholds, plan.rules[name].thresholds) for name, rule in rules.items())


def test_a_basis_that_is_trained_along_lowers_the_divergence_further(calibration):
    """What the plan does then is what the training had reached: all that it trains belongs together."""
    few = BasisSettings(steps=3, tokens=64, tokens_a_step=16)
    inner = EqualLoss(correction_rounds=0)
    found, streams = {}, {}
    for rate in (0.0, 0.01):
        trained = Trained("trained", inner, replace(FEW, basis_rate=rate))
        plan = Folded("folded", trained, 16, few).plan(calibration, 0.5)
        found[rate], realised = divergence(calibration, plan)
        assert realised == pytest.approx(0.5, abs=0.03)
        last = plan.provenance.details["divergence_by_ten_steps"][-1]
        assert found[rate] < 1.1 * last  # of a step ten before the end
        streams[rate] = plan.folded.stream
        assert plan.folded.misfit(calibration.shapes) is None
    assert found[0.01] < 0.95 * found[0.0]
    assert not torch.allclose(*streams.values(), atol=1e-3)


def test_a_basis_is_trained_in_folded_bases_alone(calibration):
    plan = make_method("teal_uniform").plan(calibration, 0.5)
    calibration.prepare({"final_states"})
    with pytest.raises(UserError, match=r"basis_rate turns a basis .* set it to 0"):
        replace(FEW, basis_rate=0.01).run(calibration, plan.rules, 0.5)


def test_gradients_of_thresholds_and_biases(model):
    """A threshold's is gradient · x · slope of the logistic function, summed over the sparse tokens."""
    linear = model_projections(model)["0.k"]
    projection = TrainedProjection(linear, ProjectionRule(thresholds=torch.ones(48)), "output", thresholds=True)
    x = torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(0))
    sparse = torch.tensor([[False, False, True, True]])
    handles = list(projection.hooks(sparse))
    at_output = torch.randn(1, 4, 24, generator=torch.Generator().manual_seed(1))
    output = linear(x)
    output.backward(at_output)
    for handle in handles:
        handle.remove()
    kept = torch.where((x.abs() >= 1) | ~sparse[..., None], x, 0.0)
    assert torch.allclose(output, linear(kept), atol=1e-6)
    soft = torch.sigmoid(x.abs().log2() / BAND)
    slope = (soft * (1 - soft) / BAND)[:, 2:]
    expected = -((at_output @ linear.weight)[:, 2:] * x[:, 2:] * slope).sum(dim=(0, 1))
    assert torch.allclose(projection.log2_thresholds.grad, expected, atol=1e-5)
    assert torch.allclose(projection.density.grad, slope.sum(dim=(0, 1)), atol=1e-5)
    assert torch.allclose(projection.vector.grad, at_output[:, 2:].sum(dim=(0, 1)), atol=1e-5)
    assert int(projection.dropped) == int((x[:, 2:].abs() < 1).sum())


def test_a_vector_at_the_input_is_the_bias_that_the_weight_makes_of_it(model):
    linear = model_projections(model)["0.down"]
    projection = TrainedProjection(
        linear, ProjectionRule(thresholds=torch.zeros(80)), "input", thresholds=False
    )
    projection.vector.data.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.allclose(projection.rule().bias, linear.weight @ projection.vector, atol=1e-5)


def test_biases_are_kept_counted_and_added_to_sparse_tokens_alone(model, tmp_path):
    bias = torch.arange(24.0)
    plan = SparsityPlan(
        projection_shapes(model), {"1.v": ProjectionRule(thresholds=torch.zeros(48), bias=bias)}
    )
    plan.save(tmp_path / "plan")
    read = SparsityPlan.load(tmp_path / "plan")
    assert torch.equal(read.rules["1.v"].bias, bias)
    seen = []
    input_ids = make_calibration(model, 1, 8).input_ids
    handle = model_projections(model)["1.v"].register_forward_hook(lambda _, __, output: seen.append(output))
    model(input_ids)
    with applied(model, read, make_protocol("half")) as session:
        last = model_projections(model)["1.v"].register_forward_hook(lambda _, __, output: seen.append(output))
        model(input_ids)
        last.remove()
    handle.remove()
    assert torch.allclose(seen[-1][:, :4], seen[0][:, :4], atol=1e-6)
    assert torch.allclose(seen[-1][:, 4:], seen[0][:, 4:] + bias, atol=1e-5)
    report = session.report()
    assert report["bytes_per_token"] == report["dense_bytes_per_token"] + 24 * 4
    with DecodeEngine(model, read, capacity=16) as engine:
        found = engine.generate(input_ids, new_tokens=6)
    with applied(model, read, make_protocol("decode_only")):
        assert torch.equal(
            found, model.generate(input_ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
        )


def test_own_text_begins_in_the_calibration_text_or_anywhere_and_goes_on_as_the_model_predicts(model):
    input_ids = make_calibration(model, 4, 32).input_ids
    model.lm_head.weight.data.mul_(30)  # so sure of itself that drawn is what is most likely
    found = own_text(model, input_ids, sequences=7, prompt=3, seed=0)
    assert found.shape == (7, 32)
    given = {tuple(row[start : start + 3].tolist()) for row in input_ids for start in range(1, 30)}
    assert [tuple(row[1:4].tolist()) in given for row in found] == [True, False] * 3 + [True]
    predicted = model(found).logits.argmax(dim=-1)[:, :-1] == found[:, 1:]
    assert predicted[:, 3:].float().mean() > 0.9
    assert predicted[1::2, 1:].float().mean() > 0.9  # after one token already
    assert torch.equal(found, own_text(model, input_ids, sequences=7, prompt=3, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spon", "equal_loss_trained"])
def test_configured_methods_make_plans_with_biases(model, method):
    plan = make_method(method).plan(make_calibration(model), 0.5)
    assert all(rule.bias is not None for rule in plan.rules.values())
    assert plan.provenance.search.evaluations["training"] == 2
    assert (plan.folded is None) == (method == "spon")
    assert ("sparsities" in plan.provenance.details) == (method == "spon")  # SPON's thresholds stay


def test_settings_and_plans_that_cannot_be_trained_are_refused(model):
    with pytest.raises(UserError, match="at least one step"):
        Distillation(steps=0)
    method = make_method("spon").inner
    wina = replace(method, inner=make_method("wina", "method.greedy=false"))
    with pytest.raises(UserError, match="static thresholds"):
        wina.plan(make_calibration(model), 0.5)
    for inner, part in (
        ("teal_folded", "folded bases"),  # the training would be of rules on channels that are not there
        ("teal_rotated", "rotated bases"),
        ("spon", "biases of sparse tokens"),  # they would be lost
        ("prox", "proxies"),
    ):
        with pytest.raises(UserError, match=f"has {part}"):
            replace(method, inner=make_method(inner))
    with pytest.raises(UserError, match="prompt=40"):
        own_text(model, make_calibration(model, 2, 16).input_ids, 2, 40, 0)


def test_own_text_of_a_model_whose_predictions_are_no_numbers_is_refused(model):
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = torch.nan
    with pytest.raises(UserError, match="the model's predictions are not finite on text of its own"):
        own_text(model, make_calibration(model, 2, 16).input_ids, 2, 3, 0)

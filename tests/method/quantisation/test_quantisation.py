"""A model that computes with quantised weights: what is stored, counted, refused, and given back afterwards."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.quantised.int8 import int8_rounded
from wisparse.method.errors import UserError
from wisparse.method.plan import PlanError, SparsityPlan
from wisparse.method.projections import decoder_of, model_projections, projection_shapes
from wisparse.method.quantisation.calibrated import CalibratedInt4
from wisparse.method.quantisation.pruning import Wanda
from wisparse.method.quantisation.quantisers import Int4, Int8
from wisparse.method.quantised_model import description_of, quantised, relative_error
from wisparse.method.rotation import rotated
from wisparse.method.running.apply import applied

from ...conftest import make_calibration, make_method, make_protocol

INT8 = Int8("int8", lm_head="none")
INT4 = Int4("int4", lm_head="same", group=4, symmetric=False)
INT8_HEAD = CalibratedInt4("int4_calibrated", lm_head="int8", group=8, symmetric=True, damping=0.01)
CALIBRATED = CalibratedInt4("int4_calibrated", lm_head="same", group=8, symmetric=True, damping=0.01)


@pytest.fixture
def calibration(llama):
    return make_calibration(llama)


def state(model) -> dict[str, torch.Tensor]:
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "quantiser", [INT8, INT4, CALIBRATED, INT8_HEAD], ids=lambda one: f"{one.name}-{one.lm_head}"
)
def test_a_model_computes_with_them_and_has_its_own_again(llama, calibration, quantiser, tmp_path):
    parameters, before = dict(llama.named_parameters()), state(llama)
    found = quantiser.weights(calibration)
    assert set(found.weights) == set(projection_shapes(llama)) | (
        {"lm_head"} if quantiser.lm_head != "none" else set()
    )
    with suppress(ZeroDivisionError), quantised(llama, found):
        for name, linear in model_projections(llama).items():
            assert torch.equal(linear.weight, found.weights[name].dequantised().T)
        assert description_of(llama) == found.description
        assert not torch.equal(llama.lm_head.weight, before["lm_head.weight"]) or quantiser.lm_head == "none"
        assert llama(calibration.input_ids).logits.isfinite().all()
        raise ZeroDivisionError  # whatever happens inside
    assert description_of(llama) is None
    for name, parameter in llama.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, before[name])


def test_the_error_of_all_weights_together_by_hand(llama, calibration):
    found = INT4.weights(calibration)
    linears = model_projections(llama) | {"lm_head": llama.lm_head}
    own = torch.cat([linear.weight.T.double().flatten() for linear in linears.values()])
    stored = torch.cat([found.weights[name].dequantised().double().flatten() for name in linears])
    assert relative_error(llama, found) == pytest.approx(float((stored - own).norm() / own.norm()), rel=1e-5)
    with quantised(llama, found):
        assert relative_error(llama, found) == 0.0


@pytest.mark.parametrize("quantiser", [INT8, CALIBRATED, Wanda("wanda", 0.5, "none")], ids=lambda one: one.name)
def test_weights_that_are_others_meanwhile_are_not_quantised_for_the_model_s_own(llama, calibration, quantiser):
    """They were, and passed for those of the model's own weights: rounded twice, or in other bases."""
    found, bases = INT4.weights(calibration), make_method("teal_folded").plan(calibration, 0.5)
    for context, who in (
        (quantised(llama, found), "its quantisation"),
        (applied(llama, bases, make_protocol("all")), "a plan in folded bases"),
    ):
        with context, pytest.raises(KernelError, match=f"^{who} holds .* others meanwhile; .* before or after"):
            quantiser.weights(calibration)
    assert INT4.weights(calibration).weight_samples == found.weight_samples


def test_a_head_that_shares_the_embedding_leaves_it_alone(llama):
    llama.lm_head.weight = llama.model.embed_tokens.weight
    with quantised(llama, INT4.weights(make_calibration(llama))):
        assert llama.lm_head.weight is not llama.model.embed_tokens.weight
        assert llama.model.embed_tokens.weight.unique().numel() > 16 * 128
    assert llama.lm_head.weight is llama.model.embed_tokens.weight


def traffic(model, plan, ids):
    with applied(model, plan, make_protocol("all")) as session:
        model(ids)
        return session.report()


@pytest.mark.slow
def test_bytes_of_one_projection_by_hand(llama, calibration):
    """20 of 80 channels of down are kept: each has 48 values in 4 bits and 6 groups."""
    plan = SparsityPlan(projection_shapes(llama))
    quantiser = Int4("int4", lm_head="none", group=8, symmetric=False)
    found = quantiser.weights(calibration)
    with quantised(llama, found):
        dense = make_method("dense").plan(calibration, 0.0)
        read = traffic(llama, dense, calibration.input_ids)
        rule = make_method("wina").plan(calibration, 0.5).rules["1.down"]
        rule = type(rule)(top_k=20, weights=rule.weights)
        plan = SparsityPlan(projection_shapes(llama), {"1.down": rule}, quantisation=found.description)
        sparse = traffic(llama, plan, calibration.input_ids)
    row = 48 // 2 + 48 // 8 * (2 + 1)
    assert read["bytes_per_token"] - sparse["bytes_per_token"] == pytest.approx(60 * row)
    weights = sum(out * inner for out, inner in projection_shapes(llama).values())
    always = sum(p.numel() for p in llama.parameters() if p.ndim == 1) + llama.lm_head.weight.numel()
    stored = weights / 2 + weights / 8 * 3
    assert read["dense_bytes_per_token"] == read["bytes_per_token"] == stored + 4 * always
    whole = Int4("int4", lm_head="same", group=8, symmetric=False).weights(calibration)
    with quantised(llama, whole):
        head = traffic(llama, make_method("dense").plan(make_calibration(llama), 0.0), calibration.input_ids)
    lm_head = llama.lm_head.weight.numel()
    assert read["bytes_per_token"] - head["bytes_per_token"] == 4 * lm_head - (lm_head / 2 + lm_head / 8 * 3)


def test_a_neuron_dropped_by_its_gate_leaves_up_s_row_scales_to_be_read(llama, calibration):
    found = INT8.weights(calibration)
    with quantised(llama, found):
        plan = SparsityPlan(
            projection_shapes(llama),
            gate_thresholds={0: torch.full((80,), float("inf"))},
            quantisation=found.description,
        )
        read = traffic(llama, plan, calibration.input_ids)
    up, down = 48 * 80 + 80 * 4, 80 * 48 + 80 * 4
    assert read["dense_bytes_per_token"] - read["bytes_per_token"] == pytest.approx(up + down)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teal", "wina", "rsparse", "cats", "chess", "equal_loss", "wisparse"])
def test_every_method_plans_on_quantised_weights(llama, calibration, name):
    found = Int4("int4", lm_head="none", group=8, symmetric=True).weights(calibration)
    before = state(llama)
    with quantised(llama, found):
        plan = make_method(name).plan(calibration, 0.2)
        read = traffic(llama, plan, calibration.input_ids)
        assert plan.quantisation == found.description
    factors = sum(rule.left.numel() + rule.right.numel() for rule in plan.rules.values() if rule.rank)
    assert (factors > 0) == (name == "rsparse")
    # Factors are not quantised: what they read alone may be more than 4 bits of everything.
    assert 0 < read["bytes_per_token"] - 4 * factors < read["dense_bytes_per_token"]
    assert all(torch.equal(parameter, before[name]) for name, parameter in llama.named_parameters())


def test_rotated_weights_are_quantised_after_the_rotation(llama, calibration):
    """What is multiplied is on the format's grid in the new basis, not the rotated values of the old one."""
    basis = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(1)))[0]
    block = decoder_of(llama).blocks[1]
    gains, weight = block.input_layernorm.weight.clone(), model_projections(llama)["1.k"].weight.clone()
    exact = (weight.double() * gains.double() @ basis.double()).float()
    with quantised(llama, INT8.weights(calibration)):
        before = model_projections(llama)["1.k"].weight.clone()
        with rotated(llama, {"1.attention_input": basis}):
            assert torch.equal(model_projections(llama)["1.k"].weight.T, int8_rounded(exact.T).dequantised())
        assert torch.equal(model_projections(llama)["1.k"].weight, before)
    with quantised(llama, CALIBRATED.weights(calibration)):
        refused = rotated(llama, {"1.attention_input": basis})
        with pytest.raises(UserError, match="not calibrated in rotated bases"):
            refused.__enter__()
        assert torch.equal(block.input_layernorm.weight, gains)


@pytest.mark.parametrize("name", ["teal_rotated", "wina_rotated"])
def test_calibrated_weights_refuse_rotated_methods_before_anything_is_loaded(name):
    with pytest.raises(UserError, match="take a method without rotations, or quantisation=int4"):
        CALIBRATED.check_method(make_method(name).mechanisms)
    INT4.check_method(make_method(name).mechanisms)


def test_a_plan_for_other_bits_is_refused_and_kept_apart_on_disk(llama, calibration, tmp_path):
    own = make_method("teal_uniform").plan(calibration, 0.5)
    found = INT8.weights(calibration)
    with quantised(llama, found):
        with pytest.raises(UserError, match="changed since this calibration was begun"):
            make_method("teal_uniform").plan(calibration, 0.5)
        plan = make_method("teal_uniform").plan(make_calibration(llama), 0.5)
        with pytest.raises(PlanError, match="made for the model's own weights, and the model has int8 by row"):
            traffic(llama, own, calibration.input_ids)
    plan.save(tmp_path / "plan")
    assert SparsityPlan.load(tmp_path / "plan").quantisation == found.description
    with pytest.raises(
        PlanError, match="made for int8 by row and column, lm_head as it was, and the model has"
    ):
        traffic(llama, plan, calibration.input_ids)
    with quantised(llama, INT4.weights(calibration)), pytest.raises(PlanError, match="has int4 in groups of 4"):
        traffic(llama, plan, calibration.input_ids)
    with pytest.raises(KernelError, match=r"made on int8 by row.*the engine reads the model's own weights"):
        DecodeEngine(llama, plan, capacity=8)
    with pytest.raises(KernelError, match="made on the model's own weights, and the engine reads int8 by row"):
        DecodeEngine(llama, own, quantised=found, capacity=8)
    with DecodeEngine(llama, plan, quantised=found, capacity=8) as engine:
        assert engine.weights.formats == {"int8"}


def test_weights_that_cannot_be_stored_are_refused_by_name(llama, calibration):
    with pytest.raises(UserError, match=r"group=32 does not divide the 48 outputs of 0\.q.*group=8$"):
        Int4("int4", lm_head="none", group=32, symmetric=True).check_model(llama)
    model_projections(llama)["1.up"].weight.data[3, 2] = float("nan")
    for quantiser in (INT8, INT4):
        with pytest.raises(UserError, match=rf"quantisation={quantiser.name}: 1\.up: 1 weights are infinite"):
            quantiser.weights(calibration)


def test_a_head_may_have_a_format_of_its_own(llama, calibration):
    before = llama.lm_head.weight.clone()
    for quantiser in (INT8_HEAD, Int4("int4", lm_head="int8", group=8, symmetric=True)):
        found = quantiser.weights(calibration)
        with quantised(llama, found):
            expected = int8_rounded(before.T).dequantised().T
            assert torch.equal(llama.lm_head.weight, expected)
        assert found.description.endswith("lm_head int8 by row and column")
        assert found.weights["0.q"].format == "int4"
    with pytest.raises(UserError, match=r"quantisation\.lm_head is 'int2'; choose none, int8, same"):
        Int8("int8", lm_head="int2")

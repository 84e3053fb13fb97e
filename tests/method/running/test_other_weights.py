"""A plan is for the weights that it was made of: in any type, saved or not, and on no others of its shapes."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import wisparse
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.method.errors import UserError
from wisparse.method.heads.choice import with_heads
from wisparse.method.plan import PlanError, SparsityPlan
from wisparse.method.quantisation.quantisers import Int4
from wisparse.method.quantised_model import quantised
from wisparse.repro.cell.plan_cache import plan_digest

from ...conftest import make_calibration, make_method, make_tiny_model

IDS = torch.arange(12)[None]
FOLDED = "equal_loss_folded_given"
NOT_ITS_OWN = r"this plan is of another model, or of this one before it was changed: model\."


def made(model, method: str = "teal_uniform") -> SparsityPlan:
    return make_method(method).plan(make_calibration(model), 0.5)


@pytest.mark.parametrize("method", ["teal_uniform", "wina", "rsparse", "chess", "larosa", FOLDED])
def test_a_plan_of_another_model_of_the_same_shapes_is_refused(llama, tmp_path, method):
    plan, other = made(llama, method), make_tiny_model("llama", seed=7)
    plan.save(tmp_path / "plan.safetensors")
    plan.save(tmp_path / "folder")
    for found in (plan, *map(wisparse.load_plan, (tmp_path / "plan.safetensors", tmp_path / "folder"))):
        with pytest.raises(PlanError, match=NOT_ITS_OWN), wisparse.sparse(other, found):
            pass
        with wisparse.sparse(llama, found, tokens="all") as session:
            llama(IDS)
        assert session.report()["realised_sparsity"] > 0.2


@pytest.mark.parametrize("method", ["teal_uniform", "chess"])
def test_a_plan_is_refused_on_the_same_weights_under_another_activation_function(llama, tmp_path, method):
    plan = made(llama, method)
    plan.save(tmp_path / "plan")
    config = copy.deepcopy(llama.config)
    config.hidden_act = "relu"
    other = type(llama)(config).eval()
    other.load_state_dict(llama.state_dict())
    refusal = rf"{NOT_ITS_OWN}layers\.0\.mlp\.act_fn is not what it was made of"
    for found in (plan, wisparse.load_plan(tmp_path / "plan")):
        with pytest.raises(PlanError, match=refusal), wisparse.sparse(other, found):
            pass
        with pytest.raises(KernelError, match=refusal), wisparse.engine(other, found, capacity=40):
            pass


@pytest.mark.parametrize("method", ["teal_uniform", FOLDED])
def test_no_engine_decodes_with_one(llama, method):
    plan, other = made(llama, method), make_tiny_model("llama", seed=7)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    for make in (
        lambda: DecodeEngine(other, plan, capacity=40),
        lambda: wisparse.engine(other, plan, capacity=40).__enter__(),
    ):
        with pytest.raises(KernelError, match=NOT_ITS_OWN):
            make()
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with wisparse.engine(llama, plan, capacity=40) as engine:
        engine.generate(IDS, new_tokens=4)
        assert engine.report()["realised_sparsity"] > 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("made_in", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_its_own_model_may_be_loaded_in_another_type(tmp_path, made_in, dtype):
    made(make_tiny_model("llama").to(made_in)).save(tmp_path / "plan.safetensors")
    plan, model = wisparse.load_plan(tmp_path / "plan.safetensors"), make_tiny_model("llama").to(dtype)
    with wisparse.sparse(model, plan, tokens="all") as session:
        assert model(IDS).logits.isfinite().all()
    assert session.report()["realised_sparsity"] > 0.2
    if dtype is not torch.float16:  # in which a CPU has no engine
        with wisparse.engine(model, plan, capacity=40) as engine:
            engine.generate(IDS, new_tokens=3)


def test_a_plan_of_stored_weights_is_for_those_of_one_model(llama):
    calibration, other = make_calibration(llama), make_tiny_model("llama", seed=7)
    quantiser = Int4("int4", lm_head="none", group=4, symmetric=True)
    with quantised(llama, quantiser.weights(calibration)):
        plan = made(llama)
        with wisparse.sparse(llama, plan):
            llama(IDS)
    theirs = quantiser.weights(make_calibration(other))
    with quantised(other, theirs):
        with pytest.raises(PlanError, match=NOT_ITS_OWN), wisparse.sparse(other, plan):
            pass
        with pytest.raises(KernelError, match=NOT_ITS_OWN):
            DecodeEngine(other, plan, quantised=theirs, capacity=8)


def test_after_a_step_of_training_plan_and_calibration_are_refused(llama):
    calibration = make_calibration(llama)
    plan = make_method("teal_uniform").plan(calibration, 0.5)
    llama.requires_grad_(True)
    llama(IDS).logits.square().mean().backward()
    torch.optim.SGD(llama.parameters(), lr=1e-3).step()
    llama.requires_grad_(False)
    with pytest.raises(PlanError, match=NOT_ITS_OWN), wisparse.sparse(llama, plan):
        pass
    with pytest.raises(UserError, match="changed since this calibration was begun"):
        make_method("wina").plan(calibration, 0.5)
    with wisparse.sparse(llama, made(llama)):
        llama(IDS)


def test_weights_on_disk_are_told_apart_too(llama, tmp_path):
    from accelerate import disk_offload

    plan, other = made(llama), make_tiny_model("llama", seed=7)
    for number, model in enumerate((llama, other)):
        disk_offload(model.model.layers[1], tmp_path / str(number), torch.device("cpu"))
    with wisparse.sparse(llama, plan, tokens="all") as session:
        llama(IDS)
    assert session.report()["realised_sparsity"] > 0.2
    with pytest.raises(PlanError, match=NOT_ITS_OWN), wisparse.sparse(other, plan):
        pass
    with pytest.raises(UserError, match=r"are put away.*load it whole to make a plan"):
        wisparse.plan(llama, None, IDS, method="teal_uniform")


def test_plans_of_versions_before_are_warned_of_once(llama, tmp_path, caplog):
    plan = dataclasses.replace(made(llama), weight_samples=None)
    plan.save(tmp_path / "plan.safetensors")
    assert not caplog.text
    found = wisparse.load_plan(tmp_path / "plan.safetensors")
    assert caplog.text.count("does not say which weights it was made of") == 1
    with wisparse.sparse(llama, found):
        llama(IDS)
    assert caplog.text.count("does not say which weights it was made of") == 1


def test_the_hash_of_a_plan_in_records_is_of_what_it_does(llama, tmp_path):
    plan = made(llama)
    plan.save(tmp_path / "plan")
    dataclasses.replace(plan, weight_samples=None).save(tmp_path / "before")
    assert plan_digest(tmp_path / "plan") == plan_digest(tmp_path / "before")


def test_routers_of_another_model_join_no_plan(llama):
    other = make_tiny_model("llama", seed=7)
    for plan, heads in ((made(llama), made(other)), (made(other), made(llama))):
        with pytest.raises(PlanError, match=NOT_ITS_OWN):
            with_heads(plan, heads, llama)

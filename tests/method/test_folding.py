"""Methods in folded bases: what the bases are, and what a plan in them does."""

import pytest
import torch
from wisparse.kernels.engine import DecodeEngine
from wisparse.method.apply import applied
from wisparse.method.calibration import Calibration
from wisparse.method.folding.bases import shared_bases
from wisparse.method.plan import PlanError, SparsityPlan
from wisparse.method.projections import decoder_of
from wisparse.method.token_policy import TokenPolicy

from ..conftest import make_calibration, make_method, make_protocol, make_tiny_model
from ..kernels.decoded_tokens import generated, prompts


@pytest.fixture
def model():
    return make_tiny_model("llama")


HALF = TokenPolicy(name="half", source="", dense_share=0.5)


def test_bases_are_the_principal_axes_of_the_sparse_tokens(model):
    input_ids = make_calibration(model).input_ids
    bases = shared_bases(Calibration(model, input_ids, 3, HALF), 8)
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    block = model.model.layers[0]
    attended = []
    handle = block.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: attended.append(inputs[0]))
    middle = []
    other = model.model.layers[0].post_attention_layernorm.register_forward_pre_hook(
        lambda _, inputs: middle.append(inputs[0])
    )
    last = []
    third = model.model.layers[1].post_attention_layernorm.register_forward_pre_hook(
        lambda _, inputs: last.append(inputs[0])
    )
    model(input_ids)
    for one in (handle, other, third):
        one.remove()
    sites = torch.cat(
        [found[:, 16:].flatten(0, 1) for found in (states[0], middle[0], states[1], last[0])]
    ).double()
    normed = sites / sites.square().mean(dim=1, keepdim=True).sqrt()
    turned = normed @ bases.stream.double()
    products = turned.T @ turned
    energies = products.diagonal()
    assert (products - energies.diag()).abs().max() < 1e-3 * energies.max()
    assert (energies.diff() < 1e-3 * energies.max()).all()
    shape = decoder_of(model).shape
    heads = (
        attended[0][:, 16:]
        .flatten(0, 1)
        .unflatten(-1, (shape.kv_heads, -1, shape.head_dim))[:, 1]
        .flatten(0, 1)
    )
    turned = heads.double() @ bases.values[0][1].double()
    products = turned.T @ turned
    assert (products - products.diagonal().diag()).abs().max() < 1e-3 * products.max()


@pytest.mark.parametrize("method", ["teal_folded", "equal_loss_folded"])
def test_a_plan_in_folded_bases_is_kept_and_leaves_the_model_whole(model, tmp_path, method):
    before = {name: value.clone() for name, value in model.named_parameters()}
    plan = make_method(method).plan(make_calibration(model), 0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    plan.save(tmp_path / "plan")
    read = SparsityPlan.load(tmp_path / "plan")
    assert torch.equal(read.folded.stream, plan.folded.stream)
    assert {block: bases.tolist() for block, bases in read.folded.values.items()} == {
        block: bases.tolist() for block, bases in plan.folded.values.items()
    }
    input_ids, found = prompts(model, 2), []
    for one in (plan, read):
        with applied(model, one, make_protocol("all")) as session:
            found.append(model(input_ids).logits)
        assert 0.3 < session.report()["realised_sparsity"] < 0.7
    assert torch.equal(*found)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_dense_tokens_stay_as_they_are(model):
    plan = make_method("teal_folded").plan(make_calibration(model), 0.6)
    input_ids = prompts(model, 1)
    expected = model(input_ids).logits
    with applied(model, plan, make_protocol("half")):
        found = model(input_ids).logits
    dense = -(-input_ids.shape[1] // 2)
    assert torch.allclose(found[:, :dense], expected[:, :dense], atol=1e-4)
    assert not torch.allclose(found[:, dense:], expected[:, dense:], atol=1e-4)


@pytest.mark.slow
def test_the_engine_decodes_in_folded_bases_as_generate_does(tiny_model):
    plan = make_method("teal_folded").plan(make_calibration(tiny_model), 0.5)
    input_ids = prompts(tiny_model, 1)
    expected = generated(tiny_model, plan, "half", input_ids, 20)
    own = tiny_model.lm_head.weight
    with DecodeEngine(tiny_model, plan, capacity=40) as engine, DecodeEngine(tiny_model, capacity=40) as dense:
        with applied(tiny_model, plan, make_protocol("half")):
            found = engine.generate(input_ids, new_tokens=20)
        without = dense.generate(input_ids, new_tokens=20)
    assert found.tolist() == expected.tolist()
    assert without.tolist() == tiny_model.generate(input_ids, max_new_tokens=20, do_sample=False).tolist()
    assert tiny_model.lm_head.weight is own


def test_bases_that_stand_beside_rotations_are_refused(model, tmp_path):
    plan = make_method("teal_folded").plan(make_calibration(model), 0.5)
    plan.rotations["0.mlp_input"] = torch.eye(48)
    plan.save(tmp_path / "plan")
    with pytest.raises(PlanError, match="rotated and folded bases"):
        SparsityPlan.load(tmp_path / "plan")

"""Methods in folded bases: what the bases are, and what a plan in them does."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.plan.bases import FoldedBases
from wisparse.method.calibration import Calibration
from wisparse.method.equal_loss.method import EqualLoss
from wisparse.method.equal_loss.sensitivity import channel_sensitivities
from wisparse.method.errors import UserError
from wisparse.method.folding.bases import _Measured, bases_at, shared_bases
from wisparse.method.folding.method import Folded
from wisparse.method.folding.repeated import Repeated
from wisparse.method.folding.stream_basis import BasisSample, BasisSettings, _Cost, fitted_basis
from wisparse.method.folding.turns import Turns
from wisparse.method.plan import PlanError, ProjectionRule, SparsityPlan
from wisparse.method.projections import decoder_of
from wisparse.method.rotation import folded_into
from wisparse.method.running.apply import applied
from wisparse.method.token_policy import TokenPolicy

from ..conftest import make_calibration, make_method, make_protocol, make_tiny_model
from ..kernels.decoded_tokens import generated, prompts


@pytest.fixture
def model():
    return make_tiny_model("llama")


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on a GPU")
HALF = TokenPolicy(name="half", source="", dense_share=0.5)


FEW = BasisSettings(steps=3, tokens=64, tokens_a_step=16)


def test_bases_of_values_are_the_principal_axes_of_the_sparse_tokens(model):
    input_ids = make_calibration(model).input_ids
    bases, _ = shared_bases(Calibration(model, input_ids, 3, HALF), 8, FEW)
    attended = []
    handle = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda _, inputs: attended.append(inputs[0])
    )
    model(input_ids)
    handle.remove()
    shape = decoder_of(model).shape
    by_group = attended[0][:, 16:].flatten(0, 1).unflatten(-1, (shape.kv_heads, -1, shape.head_dim))
    turned = by_group[:, 1].flatten(0, 1).double() @ bases.values[0][1].double()
    products = turned.T @ turned
    energies = products.diagonal()
    assert (products - energies.diag()).abs().max() < 1e-3 * energies.max()
    assert (energies.diff() < 1e-3 * energies.max()).all()


def test_the_basis_of_the_stream_is_fitted_to_what_norms_make_and_to_gradients_behind_their_gains(model):
    calibration = Calibration(model, make_calibration(model).input_ids, 3, HALF)
    sample = _Measured(calibration, 8, BasisSettings(tokens=10**6), {}).stream()
    with torch.no_grad():
        states = model(calibration.input_ids, output_hidden_states=True).hidden_states[1][:, 16:].flatten(0, 1)
    normed = states / states.square().mean(dim=1, keepdim=True).sqrt()
    assert sample.inputs.shape == (4, 8 * 16, 48)
    assert torch.allclose(sample.inputs[2], normed, atol=1e-4)
    assert sample.sites.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert sample.outs.tolist() == [48, 24, 24, 80, 80] * 2
    sensitivities = channel_sensitivities(calibration, 0, 8)
    gains = model.model.layers[1].input_layernorm.weight
    diagonal = sample.fishers[6].diagonal() / gains.square()  # another order of labels is drawn: k of block 1
    assert (diagonal / sensitivities["1.k"]).log().abs().mean() < 0.5


@pytest.mark.parametrize("policy", [None, HALF])
def test_sensitivities_in_any_bases_follow_from_the_gradients_that_these_were_found_from(model, policy):
    input_ids = make_calibration(model).input_ids
    calibration, inside = (Calibration(model, input_ids, 3, policy) for _ in range(2))
    bases, fishers = shared_bases(calibration, 8, replace(FEW, rate=0.1))
    with folded_into(model, bases):
        measured = channel_sensitivities(inside, 0, 8)
    found = fishers.sensitivities(bases)
    assert found.keys() == measured.keys()
    for name, expected in measured.items():
        assert torch.allclose(found[name], expected, rtol=1e-3), name
    own = channel_sensitivities(calibration, 0, 8)
    assert not torch.allclose(found["1.q"], own["1.q"], rtol=0.05)


def test_a_plan_in_folded_bases_takes_no_gradients_twice(model, monkeypatch):
    monkeypatch.setattr("wisparse.method.equal_loss.sensitivity._measured", None)
    settings = replace(FEW, seed=0)
    method = Folded("folded", EqualLoss(sensitivity_sequences=8, correction_rounds=1), 8, settings, 1)
    assert method.plan(make_calibration(model), 0.5).folded is not None


def test_bases_found_again_are_bases_of_the_models_own_weights(model):
    """Where nothing is dropped and nothing turned, what is measured in the bases are the turned activations."""
    calibration = Calibration(model, make_calibration(model).input_ids, 3, HALF)
    (reached, _), still = shared_bases(calibration, 8, FEW), BasisSettings(steps=0, tokens=64)
    with folded_into(model, reached):
        again = bases_at(calibration, {}, reached, 8, still)
    assert torch.allclose(again.stream, reached.stream, atol=1e-6)
    axes = (reached.values[1].transpose(1, 2) @ again.values[1]).abs()  # the same ones, but for their signs
    assert torch.allclose(axes, torch.eye(axes.shape[-1]).expand_as(axes), atol=0.05)


def test_bases_found_again_see_what_the_sparse_model_computes(model):
    calibration = Calibration(model, make_calibration(model).input_ids, 3, HALF)
    rules = {"0.down": ProjectionRule(thresholds=torch.full((80,), torch.inf))}
    settings = BasisSettings(tokens=10**6)
    dense, sparse = (_Measured(calibration, 8, settings, given) for given in ({}, rules))
    same, other = (dense.stream().inputs[site] - sparse.stream().inputs[site] for site in (1, 2))
    assert same.abs().max() < 1e-5  # in front of what is dropped
    assert other.abs().max() > 1e-2


def test_a_plan_of_bases_found_again_is_in_other_bases(model):
    calibration = make_calibration(model)
    once, again = (
        Folded("folded", EqualLoss(correction_rounds=1), 8, FEW, rounds).plan(calibration, 0.5)
        for rounds in (0, 1)
    )
    assert not torch.allclose(once.folded.stream, again.folded.stream, atol=1e-4)
    assert again.folded.misfit(calibration.shapes) is None


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_what_is_repeated_changes_its_tensors_each_time(device):
    total, added, calls = torch.zeros((), device=device), torch.ones((), device=device), []

    def add() -> None:
        calls.append(1)
        total.add_(added)

    once = Repeated(add, total.device)
    for step in range(5):
        added.fill_(step)
        once()
    assert total == 10
    assert len(calls) == (5 if device == "cpu" else 2)  # a GPU captures the second


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_a_hidden_sparse_basis_is_found(device):
    """Activations that have few channels in some basis: dropping then costs next to nothing there."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.linalg.qr(torch.randn(12, 12, generator=generator).double())[0].float()
    rare = torch.randn(1, 2000, 12, generator=generator) * (torch.rand(1, 2000, 12, generator=generator) < 0.2)
    fishers = torch.eye(12, device=device)[None]
    sample = BasisSample((rare @ hidden.T).to(device), torch.tensor([0]), fishers, torch.tensor([12]))
    settings = BasisSettings(steps=300, tokens_a_step=400, rate=0.02)
    basis = fitted_basis(sample, settings, settings.steps).cpu()
    assert torch.allclose(basis.T @ basis, torch.eye(12), atol=1e-5)

    def dropped(found: torch.Tensor) -> float:
        squares = (sample.inputs.cpu() @ found).square().flatten().sort().values
        return float(squares[: len(squares) * 55 // 100].sum() / squares.sum())

    assert dropped(hidden) < 1e-6
    assert dropped(basis) < 0.2 * dropped(torch.eye(12))


@pytest.mark.parametrize("groups", [(), (3,)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_the_slope_of_a_basis_is_that_of_autograd(groups, device):
    generator = torch.Generator().manual_seed(0)
    inputs, gradients, basis = (
        torch.randn(*groups, *shape, generator=generator).to(device)
        for shape in ((3, 90, 12), (6, 40, 12), (12, 12))
    )
    sites, outs = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([12, 6, 6, 20, 9, 9])
    cost = _Cost(BasisSample(inputs, sites, gradients.mT @ gradients, outs), BasisSettings())
    leaf = torch.linalg.qr(basis)[0].requires_grad_()
    losses = cost.losses(leaf, inputs)
    price = cost.price(losses.detach())
    (expected,) = torch.autograd.grad(cost(losses, price), leaf)
    assert torch.allclose(cost.slope(leaf.detach(), inputs, price), expected, rtol=1e-4, atol=1e-8)


def test_a_basis_of_what_costs_nothing_stays_a_basis():
    """So many weights may be dropped that no gradient comes back."""
    inputs = torch.randn(1, 50, 12, generator=torch.Generator().manual_seed(0))
    for fishers in (torch.zeros(12, 12), torch.eye(12) * (torch.arange(12) == 3)):
        sample = BasisSample(inputs, torch.tensor([0]), fishers[None], torch.tensor([12]))
        basis = fitted_basis(sample, FEW, FEW.steps)
        assert torch.allclose(basis.T @ basis, torch.eye(12), atol=1e-5)


def test_turns_stay_orthogonal_and_go_against_their_slope():
    generator = torch.Generator().manual_seed(0)
    basis, towards = (torch.linalg.qr(torch.randn(40, 40, generator=generator))[0] for _ in range(2))
    basis *= torch.linalg.det(basis @ towards).sign()
    turns, before = Turns(basis), (basis * towards).sum()
    for _ in range(60):
        basis = turns.turned(basis, -towards, 0.03)
        assert torch.allclose(basis.T @ basis, torch.eye(40), atol=1e-5)
    assert (basis * towards).sum() > before + 20  # of 40 where it is reached


def test_bases_of_values_can_be_fitted_as_that_of_the_stream(model):
    """Each head's own is found beside the others': what o drops of them then costs less than on their axes."""
    calibration = Calibration(model, make_calibration(model).input_ids, 3, HALF)
    settings = replace(FEW, tokens=10**6, tokens_a_step=128, value_steps=150, rate=0.01)
    axes, fitted = (
        shared_bases(calibration, 8, one)[0].values for one in (replace(settings, value_steps=0), settings)
    )
    sample = _Measured(calibration, 8, settings, {}).heads()
    assert sample.inputs.shape == (2 * 2, 2, 8 * 16, 12)
    cost = _Cost(sample, settings)

    def lagrangian(bases):
        losses = cost.losses(torch.cat([bases[0], bases[1]]), sample.inputs)
        return float(cost(losses, price))

    price = cost.price(cost.losses(torch.cat([axes[0], axes[1]]), sample.inputs))
    assert lagrangian(fitted) < 0.98 * lagrangian(axes)
    assert FoldedBases(None, fitted).misfit(calibration.shapes) is None


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


@pytest.mark.parametrize(("inner", "part"), [("teal_rotated", "rotated bases"), ("lte", "routers")])
def test_what_is_of_the_models_own_bases_is_not_planned_in_folded_ones(inner, part):
    with pytest.raises(UserError, match=f"has {part}"):
        replace(make_method("teal_folded"), inner=make_method(inner))


@pytest.mark.parametrize("name", ["equal_loss_folded_given", "teal_folded"])
def test_a_model_with_norms_of_its_own_is_refused_before_any_work(model, name, monkeypatch):
    model.model.layers[1].post_attention_layernorm = torch.nn.LayerNorm(48)
    monkeypatch.setattr("wisparse.method.folding.method.shared_bases", None)
    with pytest.raises(UserError, match="unlike other Llama models"):
        make_method(name).plan(make_calibration(model), 0.5)

"""What every method must satisfy; the list is the folder of configurations."""

import functools
import math
import tempfile
from pathlib import Path

import pytest
import torch
from wisparse.kernels.plan.block_rules import needed
from wisparse.kernels.plan.mechanism import Mechanism
from wisparse.method.errors import UserError
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import SITE_OF_PROJECTION, key, parameter_shares, split_key
from wisparse.method.rotation import folded_into, rotated
from wisparse.method.running.apply import applied

from ..conftest import (
    FAMILIES,
    METHODS,
    make_calibration,
    make_method,
    make_protocol,
    make_tiny_model,
    with_routers,
)

SPARSITY = 0.4  # within reach of every method, the feed-forward-only ones included

CHANNEL_RULES = {Mechanism.THRESHOLD, Mechanism.TOP_K, Mechanism.SHARED_TOP_K, Mechanism.LOW_RANK}


FOLDER = tempfile.TemporaryDirectory(prefix="routers-")
"""Folder with the files of all models' routers, as long as this process lives."""


@functools.cache
def calibrated(family):
    folder = Path(FOLDER.name) / family
    folder.mkdir()
    model = with_routers(make_tiny_model(family), folder)
    return model, make_calibration(model)


@functools.cache
def planned(name, family="llama", sparsity=SPARSITY):
    model, calibration = calibrated(family)
    before = hook_count(model)
    plan = make_method(name).plan(calibration, sparsity)
    assert hook_count(model) == before  # searches clean up
    return model, calibration, plan


def made_of(plan) -> set[Mechanism]:
    """What a plan is made of besides the rules of channels."""
    folded = set() if plan.folded is None else {Mechanism.FOLDED}
    return (needed(plan.block_plans()) | folded) - CHANNEL_RULES


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


VARIANTS = [name for name in METHODS if any(name.startswith(f"{other}_") for other in METHODS)]
"""Configurations of a method that another one names; a family each will do for them."""
ON_FAMILIES = [(name, family) for name in METHODS if name not in VARIANTS for family in sorted(FAMILIES)]
ON_FAMILIES += [(name, sorted(FAMILIES)[place % len(FAMILIES)]) for place, name in enumerate(VARIANTS)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), ON_FAMILIES)
def test_every_method_on_every_family(name, family):
    model, calibration, plan = planned(name, family)
    assert made_of(plan) >= make_method(name).mechanisms_at(SPARSITY)
    with applied(model, plan, make_protocol("all")) as session:
        logits = model(input_ids=calibration.input_ids).logits
    assert logits.isfinite().all()
    report = session.report()
    wanted = 0.0 if name == "dense" else SPARSITY
    # Some of a method's budget may be read as low-rank factors or rotations instead of as channels.
    net = report["realised_sparsity"] - report["low_rank_share"] - report["rotation_share"]
    net -= report.get("proxy_share", 0.0) + report.get("neuron_router_share", 0.0)
    # What earlier sparse layers do to later ones grows with the sparsity that rotations leave to the channels.
    assert net == pytest.approx(wanted, abs=0.06 if plan.rotations else 0.03)
    assert report["sparse_token_share"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_plan_that_was_saved_computes_the_same_to_the_last_bit(name, tmp_path):
    """Products with a matrix in another order of memory round otherwise."""
    model, calibration, plan = planned(name)
    plan.save(tmp_path / "plan")
    logits, reports = [], []
    for one in (plan, SparsityPlan.load(tmp_path / "plan")):
        with applied(model, one, make_protocol("all")) as session:
            logits.append(model(input_ids=calibration.input_ids).logits)
        reports.append(session.report())
        assert all(basis.is_contiguous() for basis in one.rotations.values())
    assert torch.equal(*logits)
    assert reports[0] == reports[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_realised_sparsity_is_nominal_on_calibration_data(name):
    """Each rule drops what it should of the dense activations it was calibrated on, within a point.

    k is a whole number of channels, rounded down: a top-k drops up to one channel more.
    """
    llama, calibration, plan = planned(name)
    shares = parameter_shares(llama.model.layers[0])
    blocks = len(llama.model.layers)
    dropped = {}
    inputs = recorded_inputs(llama, calibration.input_ids, plan)
    for full_name, rule in plan.rules.items():
        x = inputs[full_name]
        _, keep = scores_and_mask(x, rule)
        dropped[full_name] = (
            1.0
            - keep.float().mean().item()
            - rule.rank * sum(calibration.shapes[full_name]) / math.prod(calibration.shapes[full_name])
        )
    for block, thresholds in plan.gate_thresholds.items():
        gate = inputs[f"{block}.gate_activation"]
        share = (gate.abs() < thresholds).float().mean().item()
        dropped[key(block, "up")] = dropped[key(block, "down")] = share
    for block, rule in plan.signs.items():
        weight = llama.model.layers[block].mlp.gate_proj.weight
        unlike = (inputs[key(block, "gate")][..., None, :] < 0) ^ (weight < 0)
        predicted = unlike.sum(-1) > rule.limit
        dropped[key(block, "gate")] = predicted.float().mean().item()
        zero = predicted | (inputs[f"{block}.gate_activation"] == 0)
        dropped[key(block, "up")] = dropped[key(block, "down")] = zero.float().mean().item()
    for block, rule in plan.proxies.items():
        for projection in ("gate", "up", "down"):
            dropped[key(block, projection)] = 1.0 - rule.kept / rule.neurons
    for block, rule in plan.routers.items():
        logits = inputs[key(block, "gate")] @ rule.weight.T
        left_out = (logits <= rule.threshold).float().mean().item()
        dropped |= {key(block, projection): left_out for projection in ("gate", "up", "down")}
    mean = sum(value * shares[split_key(n)[1]] for n, value in dropped.items()) / blocks
    besides = (Mechanism.ROTATION, Mechanism.PROXY, Mechanism.ROUTER)
    products = sum(block.mechanisms()[one] for block in plan.block_plans() for one in besides)
    mean -= products / sum(map(math.prod, plan.shapes.values()))
    top_k = [name for name, rule in plan.rules.items() if rule.top_k is not None]
    channel = max((1 / calibration.shapes[name][1] for name in top_k), default=0.0)
    # Limits are whole numbers of products, and neurons are whole ones.
    step = 1 / 48 if plan.signs or plan.proxies else channel
    assert -0.01 <= mean - (0.0 if name == "dense" else SPARSITY) <= 0.01 + step


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_kept_channels_have_the_highest_scores(name):
    llama, calibration, plan = planned(name)
    inputs = recorded_inputs(llama, calibration.input_ids, plan)
    for full_name, rule in plan.rules.items():
        scores, keep = scores_and_mask(inputs[full_name], rule)
        if rule.top_k is not None or rule.bounds is not None:  # within each token
            kept = scores.masked_fill(~keep, torch.inf).amin(-1)
            lost = scores.masked_fill(keep, -torch.inf).amax(-1)
            assert (kept >= lost).all()
        elif keep.any() and not keep.all():  # over all tokens
            assert scores[keep].min() >= scores[~keep].max() * (1 - 1e-5)


def recorded_inputs(model, input_ids, plan):
    """Dense inputs of every projection, in the plan's bases, and outputs of the gate activations."""
    inputs, handles = {}, []
    for index, block in enumerate(model.model.layers):
        modules = {"attention": block.self_attn, "mlp": block.mlp}
        for projection in SITE_OF_PROJECTION:
            linear = getattr(modules["attention" if projection in "qkvo" else "mlp"], f"{projection}_proj")
            full_name = key(index, projection)
            handles.append(
                linear.register_forward_pre_hook(lambda _, x, name=full_name: inputs.__setitem__(name, x[0]))
            )
        handles.append(
            block.mlp.act_fn.register_forward_hook(
                lambda _, __, y, name=f"{index}.gate_activation": inputs.__setitem__(name, y)
            )
        )
    with folded_into(model, plan.folded), rotated(model, plan.rotations, plan.gains_kept):
        model(input_ids=input_ids)
    for handle in handles:
        handle.remove()
    return inputs


def scores_and_mask(x, rule):
    """Scores and kept channels computed apart from the suite's own kernels."""
    if rule.top_k is not None:
        scores = x.abs() * rule.weights
        order = scores.argsort(dim=-1, descending=True)
        keep = torch.zeros_like(x, dtype=torch.bool).scatter(-1, order[..., : rule.top_k], True)
        return scores, keep
    positive = rule.thresholds > 0
    scores = torch.where(positive, x.abs() / rule.thresholds.clamp_min(1e-30), torch.inf)
    keep = x.abs() >= rule.thresholds
    if rule.bounds is not None:
        rank = scores.argsort(dim=-1, descending=True).argsort(dim=-1)
        keep = (keep | (rank < rule.bounds[0])) & (rank < rule.bounds[1])
    return scores, keep


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_survives_its_file_exactly(name, tmp_path):
    llama, calibration, plan = planned(name)
    plan.save(tmp_path / "plan")
    again = SparsityPlan.load(tmp_path / "plan")
    assert again.is_dense == plan.is_dense == (name == "dense")
    assert again.shapes == plan.shapes
    assert again.provenance.to_dict() == plan.provenance.to_dict()
    assert list(again.rules) == list(plan.rules)
    for full_name, rule in plan.rules.items():
        for part, value in vars(rule).items():
            other = getattr(again.rules[full_name], part)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert all(torch.equal(plan.gate_thresholds[b], t) for b, t in again.gate_thresholds.items())
    assert again.rotations.keys() == plan.rotations.keys()
    assert again.gains_kept == plan.gains_kept
    assert again.signs.keys() == plan.signs.keys()
    assert all(again.signs[block].limit == rule.limit for block, rule in plan.signs.items())
    assert all(torch.equal(again.signs[block].signs, rule.signs) for block, rule in plan.signs.items())
    assert all(torch.equal(plan.rotations[site], basis) for site, basis in again.rotations.items())
    with applied(llama, plan, make_protocol("half")):
        one = llama(input_ids=calibration.input_ids).logits
    with applied(llama, again, make_protocol("half")):
        assert torch.equal(llama(input_ids=calibration.input_ids).logits, one)


@pytest.mark.parametrize("name", METHODS)
def test_sparsity_zero_is_dense_bit_for_bit(name):
    llama, calibration, plan = planned(name, sparsity=0.0)
    assert made_of(plan) == make_method(name).mechanisms_at(0.0)
    dense = llama(input_ids=calibration.input_ids).logits
    with applied(llama, plan, make_protocol("all")) as session:
        assert torch.equal(llama(input_ids=calibration.input_ids).logits, dense)
    assert session.report()["realised_sparsity"] == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_no_hook_outlives_the_context(name):
    llama, calibration, plan = planned(name)
    before = hook_count(llama)
    dense = llama(input_ids=calibration.input_ids).logits
    with pytest.raises(IndexError), applied(llama, plan, make_protocol("all")):
        llama(input_ids=torch.tensor([[llama.config.vocab_size]]))  # fails inside the context
    assert hook_count(llama) == before
    assert torch.equal(llama(input_ids=calibration.input_ids).logits, dense)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_plan(name):
    _, calibration, plan = planned(name)
    again = make_method(name).plan(calibration, SPARSITY)
    for full_name, rule in plan.rules.items():
        other = again.rules[full_name]
        assert rule.top_k == other.top_k
        assert rule.thresholds is None or torch.equal(rule.thresholds, other.thresholds)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, math.nan])
def test_sparsity_out_of_range_is_refused(name, sparsity):
    with pytest.raises(UserError, match="sparsity must be"):
        make_method(name).plan(calibrated("llama")[1], sparsity)

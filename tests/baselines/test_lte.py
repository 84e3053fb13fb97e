"""LTE: the choice of neurons by hand, what is counted, the trained threshold, and what is refused."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from wisparse.kernels.plan.projection_rule import ProjectionRule
from wisparse.kernels.plan.routers import NeuronRouter
from wisparse.kernels.weight_samples import weight_samples
from wisparse.method.errors import OutOfReachError, UserError
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes
from wisparse.method.running.apply import applied
from wisparse.method.stored.routers import FILE, METADATA, save_routers

from ..conftest import make_calibration, make_method, make_protocol, make_tiny_model, with_routers


@pytest.fixture
def routed(llama, tmp_path):
    return with_routers(llama, tmp_path)


def test_neurons_by_hand():
    """Logits 3, -1 and 0.5: the neighbours of the first group, and of the third below a threshold of 0.5."""
    router = NeuronRouter(torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.5, -0.25]]), 0.4)
    x = torch.tensor([[2.0, 1.0]])
    assert router.logits(x).tolist() == [[3.0, -1.0, 0.75]]
    assert router.chosen(x, 6).tolist() == [[True, True, False, False, True, True]]
    assert dataclasses.replace(router, threshold=0.75).chosen(x, 3).tolist() == [[True, False, False]]


def test_what_routers_take_is_counted_by_hand(routed):
    calibration = make_calibration(routed)
    plan = make_method("lte").plan(calibration, 0.45)
    with applied(routed, plan, make_protocol("all")) as session:
        routed(input_ids=calibration.input_ids)
    report = session.report()
    weights = sum(out * inner for out, inner in projection_shapes(routed).values())
    routers = 2 * 10 * 48  # two blocks, ten groups of eight neurons
    assert report["neuron_router_share"] == pytest.approx(routers / weights)
    dropped = report["by_projection"]["gate"]
    assert report["by_projection"] == pytest.approx(
        {"q": 0, "k": 0, "v": 0, "o": 0, "gate": dropped, "up": dropped, "down": dropped}
    )
    saved = report["dense_bytes_per_token"] - report["bytes_per_token"]
    assert saved == pytest.approx(4 * (2 * 3 * 80 * 48 * dropped - routers))
    flops = report["dense_flops_per_token"] - report["flops_per_token"]
    assert flops == pytest.approx(2 * (2 * 3 * 80 * 48 * dropped - routers))


def test_a_little_is_what_the_routers_were_trained_to_leave_out(routed):
    calibration = make_calibration(routed)
    as_trained, more = (make_method("lte").plan(calibration, sparsity) for sparsity in (0.01, 0.5))
    assert {rule.threshold for rule in as_trained.routers.values()} == {0.0}  # a sigmoid of 0.5
    found = more.provenance.details
    assert found["threshold"] > 0.0
    assert found["dropped"] > as_trained.provenance.details["dropped"]
    inputs = []
    handle = routed.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    with applied(routed, as_trained, make_protocol("all")):
        routed(input_ids=calibration.input_ids)
    handle.remove()
    groups = inputs[0].unflatten(-1, (10, 8))
    assert 0.2 < (groups == 0).all(-1).float().mean() < 0.8  # whole groups, and no neurons of others
    assert not (groups == 0).any(-1).logical_xor((groups == 0).all(-1)).any()


def test_a_plan_comes_back_from_disk(routed, tmp_path):
    plan = make_method("lte").plan(make_calibration(routed), 0.4)
    for path in (tmp_path / "folder", tmp_path / "one.safetensors"):
        plan.save(path)
        again = SparsityPlan.load(path).routers
        assert again.keys() == plan.routers.keys()
        for block, rule in plan.routers.items():
            assert again[block].threshold == rule.threshold
            assert torch.equal(again[block].weight, rule.weight)


def test_what_does_not_fit_is_told(routed):
    plan = make_method("lte").plan(make_calibration(routed), 0.4)
    rule = plan.routers[0]
    for change, part in (
        ({"weight": torch.zeros(10, 47)}, "router has shape (10, 47)"),
        ({"weight": torch.zeros(11, 48)}, "router has shape (11, 48)"),
        ({"threshold": float("nan")}, "not a finite number"),
    ):
        assert part in dataclasses.replace(plan, routers={0: dataclasses.replace(rule, **change)}).misfit()
    up = ProjectionRule(thresholds=torch.zeros(48))
    assert "by a router and has up" in dataclasses.replace(plan, rules={"0.up": up}).misfit()
    assert dataclasses.replace(plan, routers={7: rule}).misfit() == "7 is of no block of its model"
    assert not plan.without({"0.up"}).block_plans()[0].mechanisms()


def test_two_choices_of_neurons_exclude_each_other(routed):
    calibration = make_calibration(routed)
    plan = make_method("lte").plan(calibration, 0.4)
    both = dataclasses.replace(plan, proxies=make_method("prox").plan(calibration, 0.4).proxies)
    assert "it chooses neurons by proxies and has a router of its own" in both.misfit()


def test_models_without_routers_are_refused(llama, tmp_path):
    calibration = make_calibration(llama)
    llama.name_or_path = ""
    with pytest.raises(UserError, match="this one has no folder"):
        make_method("lte").plan(calibration, 0.3)
    llama.name_or_path = str(tmp_path)
    with pytest.raises(UserError, match=rf"has no readable {FILE}.*make train-relu"):
        make_method("lte").plan(calibration, 0.3)
    samples = weight_samples(llama)
    save_routers(tmp_path, {0: torch.zeros(10, 48)}, samples)
    with pytest.raises(UserError, match="not of the model's 2 blocks"):
        make_method("lte").plan(calibration, 0.3)
    save_routers(tmp_path, {block: torch.zeros(10, 40) for block in range(2)}, samples)
    with pytest.raises(UserError, match="router has shape"):
        make_method("lte", f"method.routers={tmp_path}").plan(calibration, 0.3)


def test_routers_of_another_model_are_refused(routed, tmp_path, caplog):
    other = make_tiny_model("llama", seed=7)
    other.name_or_path = routed.name_or_path
    with pytest.raises(UserError, match=rf"{FILE} is of another model.*embed_tokens"):
        make_method("lte").plan(make_calibration(other), 0.4)
    make_method("lte").plan(make_calibration(routed.bfloat16()), 0.4)
    assert not caplog.text
    save_file(load_file(tmp_path / FILE), tmp_path / FILE)  # as versions before wrote it
    make_method("lte").plan(make_calibration(routed), 0.4)
    assert "does not say which weights its routers were trained with" in caplog.text


@pytest.mark.parametrize("metadata", ["{not JSON", "null", "[1, 2]"])
def test_metadata_that_nothing_wrote_is_refused(routed, tmp_path, metadata):
    save_file(load_file(tmp_path / FILE), tmp_path / FILE, {METADATA: metadata})
    with pytest.raises(UserError, match="not what was written"):
        make_method("lte").plan(make_calibration(routed), 0.2)


def test_routers_of_which_a_byte_has_changed_are_refused(routed, tmp_path):
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-2] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match="not what was written"):
        make_method("lte").plan(make_calibration(routed), 0.2)


@pytest.mark.parametrize(
    "changed", [lambda router: router[:0], lambda router: router.to(torch.int8), lambda router: router > 0]
)
def test_what_is_no_router_is_refused(routed, tmp_path, changed):
    routers = {int(block): changed(router) for block, router in load_file(tmp_path / FILE).items()}
    save_routers(tmp_path, routers, weight_samples(routed))
    with pytest.raises(UserError, match="block 0: its router"):
        make_method("lte").plan(make_calibration(routed), 0.2)


def test_limits_are_told(routed):
    with pytest.raises(OutOfReachError, match="reads routers of"):
        make_method("lte").plan(make_calibration(routed), 0.7)

"""Prox: the choice of neurons by hand, what is counted, and what is refused."""

import dataclasses

import pytest
import torch
from wisparse.baselines.prox import Prox
from wisparse.kernels.plan.projection_rule import ProjectionRule
from wisparse.kernels.plan.proxies import ProxyRule
from wisparse.method.errors import OutOfReachError, UserError
from wisparse.method.hooks import hooked
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes
from wisparse.method.running.apply import applied
from wisparse.method.running.projection_hooks import ProjectionHooks
from wisparse.method.running.proxy_hooks import dropped_neurons, on_proxies, proxy_of

from ..conftest import make_calibration, make_method, make_protocol


def test_neurons_by_hand():
    """The second channel of x is left out, and would have turned the choice."""
    rule = ProxyRule(neurons=3, channels=3, kept=1, read=2, group=3)
    x = torch.tensor([[3.0, 0.5, -2.0]])
    gate = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 90.0], [1.0, 0.0, 1.0]])
    up = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 90.0], [0.0, 1.0, 0.0]])
    # x̂·gate = 1, 6, -2 and x̂·up = 3, 1, 3: behind the ReLU 3, 6 and 0.
    assert dropped_neurons(x, gate, up, torch.nn.ReLU(), rule).tolist() == [[True, False, True]]
    every = dataclasses.replace(rule, read=3)
    assert dropped_neurons(x, gate, up, torch.nn.ReLU(), every).tolist() == [[True, True, False]]


def test_a_proxy_is_the_nearest_of_fifteen_levels_of_its_group():
    weight = torch.tensor([[0.7, 0.3], [-0.26, 0.0], [14.0, 1.4]])  # (out, in); groups of two outputs
    # First channel: scales 0.7/7 and 14/7. Second channel: 0.3/7 and 1.4/7, in float16.
    expected = torch.tensor([[0.7, -0.3, 14.0], [0.3, 0.0, 1.4]])
    assert torch.allclose(proxy_of(weight, group=2), expected, rtol=1e-3)


def test_what_proxies_take_is_counted_by_hand(llama):
    calibration = make_calibration(llama)
    plan = make_method("prox").plan(calibration, 0.4)
    rule = plan.proxies[0]
    assert (rule.neurons, rule.channels, rule.read) == (80, 48, 24)
    # 24 channels of gate and of up: 80 values of half a byte, and two scales of two bytes.
    assert rule.bytes_read == 2 * 24 * (40 + 2 * 2)
    weights = sum(out * inner for out, inner in projection_shapes(llama).values()) // 2  # of a block
    proxies = rule.bytes_read / 2
    assert rule.kept == int(80 * (1 - (0.4 * weights + proxies) / (3 * 80 * 48)))
    with applied(llama, plan, make_protocol("all")) as session:
        llama(input_ids=calibration.input_ids)
    report = session.report()
    dropped = 1 - rule.kept / 80
    assert report["by_projection"] == pytest.approx(
        {"q": 0, "k": 0, "v": 0, "o": 0, "gate": dropped, "up": dropped, "down": dropped}
    )
    assert report["proxy_share"] == pytest.approx(proxies / weights)
    saved = report["dense_bytes_per_token"] - report["bytes_per_token"]
    assert saved == pytest.approx(2 * 4 * (3 * 80 * 48 * dropped - proxies))  # two blocks of float32
    flops = report["dense_flops_per_token"] - report["flops_per_token"]
    assert flops == pytest.approx(2 * 2 * (3 * 80 * 48 * dropped - 2 * 24 * 80))


def test_exact_proxies_choose_the_neurons_that_matter_most(llama):
    """Scores are the neurons' own where all channels are read, and 4 bits hold the weights."""
    with torch.no_grad():
        for block in llama.model.layers:
            for linear in (block.mlp.gate_proj, block.mlp.up_proj):
                linear.weight.copy_(proxy_of(linear.weight, 16).T)
    calibration = make_calibration(llama)
    method = Prox(input_share=1.0, group=16)
    plan = method.plan(calibration, 0.3)
    hidden = {}

    def record(_, inputs):
        hidden["x"] = inputs[0]

    handle = llama.model.layers[0].mlp.down_proj.register_forward_pre_hook(record)
    llama(input_ids=calibration.input_ids)
    dense = hidden["x"]
    with applied(llama, plan, make_protocol("all")):
        llama(input_ids=calibration.input_ids)
    handle.remove()
    kept = hidden["x"] != 0
    assert (kept.sum(-1) == plan.proxies[0].kept).all()
    least = dense.abs().masked_fill(~kept, torch.inf).amin(-1)
    most_dropped = dense.abs().masked_fill(kept, 0.0).amax(-1)
    assert (least >= most_dropped * (1 - 1e-4)).all()


def test_a_plan_comes_back_from_disk(llama, tmp_path):
    plan = make_method("prox").plan(make_calibration(llama), 0.4)
    for path in (tmp_path / "folder", tmp_path / "one.safetensors"):
        plan.save(path)
        assert SparsityPlan.load(path).proxies == plan.proxies


def test_what_does_not_fit_is_told(llama):
    plan = make_method("prox").plan(make_calibration(llama), 0.4)
    rule = plan.proxies[0]
    for change, part in (
        ({"neurons": 79}, "not (80, 48)"),
        ({"kept": 81}, "choose 81 of 80"),
        ({"read": 49}, "read 49 of 48"),
        ({"group": 0}, "groups of no neuron"),
        ({"kept": True}, "no whole number"),
    ):
        assert part in (dataclasses.replace(plan, proxies={0: dataclasses.replace(rule, **change)}).misfit())
    up = ProjectionRule(thresholds=torch.zeros(48))
    clashing = dataclasses.replace(plan, rules={"0.up": up})
    assert "chooses neurons by proxies and has up" in clashing.misfit()
    assert dataclasses.replace(plan, proxies={7: rule}).misfit() == "7 is of no block of its model"
    assert not plan.without({"0.up"}).block_plans()[0].mechanisms()


def test_limits_and_settings_are_told(llama):
    calibration = make_calibration(llama)
    with pytest.raises(OutOfReachError, match="reads proxies of"):
        make_method("prox").plan(calibration, 0.65)
    with pytest.raises(UserError, match="input_share"):
        Prox(input_share=0.0)
    with pytest.raises(UserError, match=r"Prox\.group=0 is not a whole number from 1 up"):
        Prox(group=0)
    assert make_method("prox").plan(calibration, 0.0).proxies == {}


def test_proxies_meet_activations_though_weights_wait_elsewhere(llama):
    """Weights streamed block by block lie in main memory when their proxies are made."""
    mlp = llama.model.layers[0].mlp
    rule = make_method("prox").plan(make_calibration(llama), 0.4).proxies[0]
    with hooked(on_proxies(0, llama.model.layers[0], rule, ProjectionHooks())):
        mlp.to("meta")
        assert mlp(torch.ones(1, 3, 48, device="meta")).device.type == "meta"


def test_a_group_of_more_neurons_than_there_are_is_one_line(llama):
    neurons = llama.config.intermediate_size
    with pytest.raises(UserError, match=f"group=1000000000 is more than a block's {neurons} neurons; lower it"):
        dataclasses.replace(make_method("prox"), group=10**9).plan(make_calibration(llama), 0.2)
    dataclasses.replace(make_method("prox"), group=neurons).plan(make_calibration(llama), 0.2)

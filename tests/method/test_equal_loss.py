"""Sensitivities against autograd taken another way, and against what dropping a channel really costs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from wisparse.method.calibration import Calibration
from wisparse.method.equal_loss import block_backward, marginal_loss, sensitivity
from wisparse.method.equal_loss.loss_threshold import LossThreshold
from wisparse.method.equal_loss.marginal_loss import MarginalLosses, marginal_losses
from wisparse.method.equal_loss.sensitivity import channel_sensitivities, sensitivities_at
from wisparse.method.errors import UserError
from wisparse.method.plan import ProjectionRule, SparsityPlan
from wisparse.method.projections import model_projections
from wisparse.method.running.apply import applied

from ..conftest import make_calibration, make_method, make_protocol, make_tiny_model
from .test_oracles import logits_under, rescaled


def test_gradients_that_are_not_finite_end_in_one_line_that_names_the_projection(llama, monkeypatch):
    broken = model_projections(llama)["1.down"].in_features

    def recorder(total, positions):
        def record(*_):
            total.fill_(torch.nan if len(total) == broken else 1.0)

        return record

    monkeypatch.setattr(sensitivity, "_recorder", recorder)
    with pytest.raises(
        UserError,
        match=r"gradients at 0\.down, 1\.down are not finite.*load the model in float32 \(model\.dtype\)",
    ):
        channel_sensitivities(make_calibration(llama), seed=0, sequences=2)


@pytest.mark.parametrize("protocol", [None, "half"])
def test_sensitivities_are_gradients_at_the_input_of_each_projection(llama, protocol):
    calibration = make_calibration(llama, sequences=2, length=8)
    if protocol is not None:
        calibration = Calibration(llama, calibration.input_ids, search_policy=make_protocol(protocol))
    found = channel_sensitivities(calibration, seed=5, sequences=2)
    # The same labels, and a zero added to each projection's own input, whose gradient is what is looked for.
    shifts, handles = {}, []
    for name, linear in model_projections(llama).items():
        shifts[name] = torch.zeros(2, 8, linear.in_features, requires_grad=True)
        handles.append(
            linear.register_forward_pre_hook(lambda _, inputs, shift=shifts[name]: (inputs[0] + shift,))
        )
    log_probabilities = llama(calibration.input_ids).logits.log_softmax(-1)
    labels = torch.multinomial(
        log_probabilities.detach().exp().flatten(0, 1), 1, generator=torch.Generator().manual_seed(5)
    )
    chosen = log_probabilities.flatten(0, 1).gather(1, labels).view(2, 8)
    counted = slice(4, None) if protocol else slice(None)
    chosen[:, counted].sum().backward()
    for handle in handles:
        handle.remove()
    for name, shift in shifts.items():
        expected = shift.grad[:, counted].double().square().flatten(0, 1).mean(0)
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-9), name


def test_sensitivities_at_a_sparse_model_are_those_of_what_it_passes_on(llama):
    """Nothing is lost in front of a projection whose whole output is dropped behind it."""
    calibration = make_calibration(llama, sequences=2, length=8)
    nothing = {name: torch.zeros(inner) for name, (_, inner) in calibration.shapes.items()}
    dense = channel_sensitivities(calibration, 5, 2)
    kept = sensitivities_at(calibration, nothing, 5, 2)
    assert all(torch.allclose(kept[name], dense[name]) for name in dense)
    down = torch.full_like(nothing["1.down"], torch.inf)
    without = sensitivities_at(calibration, nothing | {"1.down": down}, 5, 2)
    assert without["1.gate"].abs().max() == 0
    assert (without["1.o"] > 0).all()
    assert (without["1.down"] > 0).all()  # what it would cost to lose more there is still known


@pytest.mark.slow
def test_sensitivity_predicts_what_dropping_a_channel_costs(llama):
    calibration = make_calibration(llama)
    drawn = [channel_sensitivities(calibration, seed, 64)["0.down"] for seed in range(8)]
    inputs = []
    handle = model_projections(llama)["0.down"].register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    dense = llama(calibration.input_ids).logits.log_softmax(-1)
    handle.remove()
    predicted = 0.5 * torch.stack(drawn).mean(0) * inputs[0].double().square().flatten(0, 1).mean(0)
    measured = []
    for channel in range(len(predicted)):
        thresholds = torch.zeros(len(predicted))
        thresholds[channel] = torch.inf
        plan = SparsityPlan(calibration.shapes, {"0.down": ProjectionRule(thresholds=thresholds)})
        sparse = logits_under(llama, plan, calibration.input_ids).log_softmax(-1)
        measured.append(F.kl_div(sparse, dense, log_target=True, reduction="none").sum(-1).mean().double())
    ratio = torch.stack(measured).log() - predicted.log()
    assert ratio.std() < 0.35
    assert abs(ratio.mean()) < 0.35
    assert predicted.log().std() > 2 * ratio.std()


def test_gradients_are_the_same_where_there_is_room_for_what_autograd_keeps(llama, monkeypatch):
    calibration = make_calibration(llama, sequences=2, length=8)
    calibration.prepare({"final_states"})
    thresholds = {name: torch.full((inner,), 0.1) for name, (_, inner) in calibration.shapes.items()}
    again, passes = [], 0

    def counted(*_):
        nonlocal passes
        passes += 1

    llama.model.layers[0].register_forward_hook(counted)
    for rooms in ([False, False], [True, True], [True, False]):  # what there is of it for each block
        monkeypatch.setattr(block_backward, "_MemoryOfBlocks", lambda *_, rooms=rooms: Room(rooms))
        again.append(marginal_losses(calibration, thresholds, thresholds, slice(None)))
    assert passes == 1 + 2 + 1 + 1  # first for the arguments of blocks
    for other in again[1:]:
        assert torch.equal(other.cost, again[0].cost)
        assert torch.equal(other.near, again[0].near)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with a CPU")
@pytest.mark.parametrize("protocol", [None, "half"])
def test_marginal_losses_on_a_gpu_are_those_on_a_cpu(protocol, monkeypatch):
    on_cpu = marginal_losses_on("cpu", protocol)
    coarse = marginal_losses_on("cuda", protocol)
    monkeypatch.setattr(marginal_loss, "coarse_passes", lambda _: nullcontext())
    fine = marginal_losses_on("cuda", protocol)
    # TF32 alone, emulated on a CPU, moves 5 % of these activations over an edge of their octave, costs by 10 %.
    for on_gpu, moved, off in ((fine, 0.01, 0.05), (coarse, 0.08, 0.2)):
        assert (on_gpu.near.cpu() - on_cpu.near).abs().sum() < moved * on_cpu.near.sum()
        assert (on_gpu.cost.cpu() - on_cpu.cost).norm() < off * on_cpu.cost.norm()


def marginal_losses_on(device, protocol):
    policy = None if protocol is None else make_protocol(protocol)
    model = make_tiny_model("llama").to(device)
    calibration = Calibration(model, make_calibration(model).input_ids, search_policy=policy)
    calibration.prepare({"final_states"})
    thresholds = {name: torch.full((inner,), 0.1) for name, (_, inner) in calibration.shapes.items()}
    return marginal_losses(calibration, thresholds, thresholds, slice(None))


class Room:
    """Memory that is there for the first blocks of a model of two."""

    def __init__(self, blocks):
        self._blocks = iter([*blocks, False])
        self.look()

    def look(self):
        self.has_room = next(self._blocks)


@pytest.mark.parametrize("protocol", [None, "half"])
def test_marginal_losses_are_gradients_at_the_sparse_model(llama, protocol):
    search_policy = None if protocol is None else make_protocol(protocol)
    ids = make_calibration(llama, sequences=2, length=8).input_ids
    calibration = Calibration(llama, ids, search_policy=search_policy)
    calibration.prepare({"final_states"})
    sensitivities = channel_sensitivities(calibration, seed=0, sequences=2)
    threshold = LossThreshold(calibration)
    thresholds = threshold.by_key(threshold.thresholds(threshold.together(sensitivities), 0.5))
    curvature = {name: torch.rand(inner) for name, (_, inner) in calibration.shapes.items()}
    found = marginal_losses(calibration, thresholds, curvature, slice(None))
    # The same products by another way: the share of each channel that is kept as a number to differentiate by.
    dense = llama(ids).logits.log_softmax(-1).detach()
    counted = slice(4, None) if protocol else slice(None)
    shares, inputs, handles = {}, {}, []
    for name, linear in model_projections(llama).items():

        def keep(_, arguments, name=name):
            x = arguments[0]
            kept = (x.abs() >= thresholds[name]).to(x.dtype)
            if protocol:
                kept[:, :4] = 1.0
            shares[name], inputs[name] = kept.requires_grad_(), x.detach()
            return (x * shares[name],)

        handles.append(linear.register_forward_pre_hook(keep))
    F.kl_div(llama(ids).logits.log_softmax(-1), dense, reduction="sum", log_target=True).backward()
    for handle in handles:
        handle.remove()
    for number, (name, (out, inner)) in enumerate(calibration.shapes.items()):
        magnitudes = inputs[name].abs()[:, counted]
        near = (magnitudes >= thresholds[name] / 2**0.5) & (magnitudes < thresholds[name] * 2**0.5)
        kept = magnitudes >= thresholds[name]
        second = 0.5 * curvature[name] * magnitudes.square() * torch.where(kept, 1.0, -1.0)
        expected = (second - shares[name].grad[:, counted]).double() * near
        assert near.any()
        assert torch.equal(found.near[number, :, :inner], near.sum(1).double())
        assert not found.near[number, :, inner:].any()
        assert torch.allclose(found.cost[number, :, :inner], expected.sum(1) / out, rtol=1e-3, atol=1e-7), name
        mean = expected.sum() / near.sum() / out
        assert float(found.mean[number]) == pytest.approx(float(mean), rel=1e-3, abs=1e-9), name


def test_channels_count_by_their_own_cost_as_far_as_sequences_agree():
    generator = torch.Generator().manual_seed(0)
    near = torch.full((16, 400), 100.0, dtype=torch.float64)
    true = 1.0 + 0.5 * torch.randn(400, generator=generator).double()
    noise = torch.randn(16, 400, generator=generator).double()

    def error(deviation: float) -> tuple[float, float, float]:
        cost = (true + deviation * noise) * near
        own = cost.mean(0) / 100.0
        drawn = MarginalLosses(cost[None], near[None]).by_channel[0]
        return tuple(float((found - true).square().mean()) for found in (drawn, own, own.mean().expand(400)))

    drawn, own, alike = error(0.1)
    assert drawn < 1.05 * own < 0.1 * alike
    drawn, own, alike = error(2.0)  # a channel's mean is as uncertain as channels differ
    assert drawn < 0.7 * min(own, alike)
    drawn, own, alike = error(40.0)
    assert max(drawn, alike) < 0.03 * own


def test_a_channel_or_text_that_tells_no_noise_is_like_its_projection():
    cost = torch.tensor([[1.0, 5.0, 0.0], [3.0, 9.0, 90.0]]).double()
    near = torch.tensor([[2e3, 1e3, 0.0], [2e3, 1e3, 3.0]]).double()
    loss = MarginalLosses(cost[None], near[None])
    assert loss.by_channel[0, 2] == loss.mean == pytest.approx(108 / 6003)
    one = MarginalLosses(cost[None, :1], near[None, :1])
    assert one.by_channel.tolist() == [[float(one.mean)] * 3]
    none = MarginalLosses(torch.zeros(1, 2, 3).double(), torch.zeros(1, 2, 3).double())
    assert none.by_channel.tolist() == [[0.0] * 3]


@pytest.mark.slow
def test_corrections_move_sparsity_to_where_the_sparse_model_minds_less(llama):
    calibration = make_calibration(llama)
    plain = make_method("equal_loss", "method.correction_rounds=0").plan(calibration, 0.5)
    once = (
        make_method("equal_loss", "method.correction_rounds=1", "method.correction_bound=1e6")
        .plan(calibration, 0.5)
        .provenance
    )
    plain, search, once = plain.provenance.details, once.search, once.details
    assert set(plain["corrections"].values()) == {1.0}
    corrections = once["corrections"]
    assert len(set(corrections.values())) > 1
    dearest, cheapest = max(corrections, key=corrections.get), min(corrections, key=corrections.get)
    assert once["sparsities"][dearest] < plain["sparsities"][dearest]
    assert once["sparsities"][cheapest] > plain["sparsities"][cheapest]
    sizes = {name: out * inner for name, (out, inner) in calibration.shapes.items()}
    mean = sum(sizes[name] * share for name, share in once["sparsities"].items()) / sum(sizes.values())
    assert mean == pytest.approx(0.5, abs=1e-4)
    assert search.evaluations["correction"] > 0


@pytest.mark.slow
def test_a_rescale_that_changes_no_output_changes_no_choice():
    plain, scaled = make_tiny_model("llama"), rescaled(make_tiny_model("llama"))
    calibrations = [make_calibration(model) for model in (plain, scaled)]
    plans = [make_method("equal_loss").plan(one, 0.5) for one in calibrations]
    ids = calibrations[0].input_ids
    first, second = (logits_under(c.model, p, ids) for c, p in zip(calibrations, plans, strict=True))
    assert (first - second).abs().max() < 1e-3


def test_what_nothing_depends_on_is_dropped_first(llama):
    # With up at zero the feed-forward part gives nothing: its three projections, 31 % of the weights, are free.
    llama.model.layers[0].mlp.up_proj.weight.zero_()
    plan = make_method("equal_loss").plan(make_calibration(llama), 0.3)
    sparsities = plan.provenance.details["sparsities"]
    free = {"0.gate", "0.up", "0.down"}
    assert min(sparsities[name] for name in free) > 0.85
    assert max(found for name, found in sparsities.items() if name not in free) < 0.05


def test_no_model_keeps_hooks_or_gradients(llama):
    make_method("equal_loss").plan(make_calibration(llama), 0.5)
    assert not any(module._backward_hooks for module in llama.modules())
    assert all(parameter.grad is None for parameter in llama.parameters())
    with applied(llama, SparsityPlan(make_calibration(llama).shapes), make_protocol("all")):
        assert llama(torch.arange(4)[None]).logits.isfinite().all()


def test_turns_take_other_sequences_until_all_were_taken(llama):
    text = torch.arange(40).view(20, 2)
    calibration = Calibration(llama, text)
    turns = [text[calibration.spread(5, turn)] for turn in range(5)]
    assert all(len(rows) == 5 for rows in turns)
    assert torch.equal(torch.cat(turns[:4]).unique(dim=0), text)
    assert torch.equal(turns[4], turns[0])
    assert torch.equal(text[calibration.spread(15, 1)], text)

"""Each part against an answer known beforehand: by hand, by brute force, or by an invariance."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from wisparse.method.errors import UserError
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import PROJECTIONS, key, parameter_shares
from wisparse.method.provenance import SearchCost
from wisparse.method.rules import RuleBuilder, StaticThreshold, TopK
from wisparse.method.running.apply import applied
from wisparse.method.search.block_error import BlockError
from wisparse.method.search.block_probe import walk_blocks
from wisparse.method.search.divergence import OutputDivergence
from wisparse.method.search.greedy import GreedySettings, greedy_allocation
from wisparse.method.wisparse.alpha_search import search_alphas

from ..conftest import make_calibration, make_method, make_protocol, make_tiny_model

WITHOUT_SEARCH = ("allocation=uniform", "method.fine=false", "method.alpha_search=false")


def logits_under(model, plan, ids, protocol="all"):
    with applied(model, plan, make_protocol(protocol)):
        return model(input_ids=ids).logits


def rescaled(model, seed=3):
    """The same function: norm gains ÷ c, and the columns that they feed × c.

    Powers of two, so that not even rounding differs.
    """
    generator = torch.Generator().manual_seed(seed)

    def factors(n):
        return 2.0 ** torch.randint(-3, 4, (n,), generator=generator)

    for block in model.model.layers:
        for norm, consumers in (
            (block.input_layernorm, (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)),
            (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
        ):
            c = factors(len(norm.weight))
            norm.weight.div_(c)
            for linear in consumers:
                linear.weight.mul_(c)
    return model


def test_without_search_alpha_0_is_teal(llama):
    calibration = make_calibration(llama)
    ours = make_method("wisparse", *WITHOUT_SEARCH, "method.alpha=0.0").plan(calibration, 0.5)
    teal = make_method("teal_uniform").plan(calibration, 0.5)
    for name, rule in teal.rules.items():
        assert torch.equal(ours.rules[name].thresholds, rule.thresholds)
        assert rule.thresholds.unique().numel() == 1


def test_alpha_1_is_the_score_of_wina(llama):
    calibration = make_calibration(llama)
    ours = make_method("wisparse", *WITHOUT_SEARCH, "method.alpha=1.0").plan(calibration, 0.5)
    wina = make_method("wina", "method.greedy=false").plan(calibration, 0.5)
    for name, rule in wina.rules.items():
        assert torch.equal(rule.weights, calibration.column_norms[name])
        thresholds_on_scores = ours.rules[name].thresholds * rule.weights
        assert torch.allclose(thresholds_on_scores, thresholds_on_scores[:1])
        assert rule.top_k == math.floor(len(rule.weights) * 0.5)


def test_alpha_1_survives_a_rescale_that_changes_no_output_and_teal_does_not():
    plain, scaled = make_tiny_model("llama"), rescaled(make_tiny_model("llama"))
    calibrations = [make_calibration(model) for model in (plain, scaled)]
    ids = calibrations[0].input_ids
    assert torch.equal(plain(input_ids=ids).logits, scaled(input_ids=ids).logits)
    differences = {}
    for name, overrides in (("wisparse", (*WITHOUT_SEARCH, "method.alpha=1.0")), ("teal_uniform", ())):
        plans = [make_method(name, *overrides).plan(c, 0.5) for c in calibrations]
        sparse = [logits_under(c.model, p, ids) for c, p in zip(calibrations, plans, strict=True)]
        differences[name] = (sparse[0] - sparse[1]).abs().max().item()
    assert differences["wisparse"] < 1e-4
    assert differences["teal_uniform"] > 0.1


@pytest.mark.parametrize("channels", [10, 320, 960, 28_672])
def test_top_k_keeps_whole_numbers_whatever_float32_makes_of_a_sparsity(channels):
    """0.4 is a little more in float32: of 320 channels 191 were kept."""
    percent = range(100)
    sparsities = torch.tensor([one / 100 for one in percent])
    found = TopK().candidates(SimpleNamespace(channels=channels), torch.ones(channels), sparsities)
    assert found.top_k.flatten().tolist() == [channels * (100 - one) // 100 for one in percent]


@pytest.mark.parametrize("target", [0.0, 0.1, 0.5, 0.93])
@pytest.mark.parametrize("mask", [StaticThreshold(), TopK()])
def test_greedy_meets_its_target_and_stays_in_bounds(llama, target, mask):
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, mask, dict.fromkeys(calibration.shapes, 1.0))
    probe = next(walk_blocks(calibration, 64, 4096))
    found = greedy_allocation(
        probe, builder, target, GreedySettings(0.5, 64, 4096, BlockError("norm", "late")), SearchCost()
    )
    assert sum(found[name] * probe.shares[name] for name in PROJECTIONS) == pytest.approx(target, abs=1e-6)
    assert all(0.0 <= sparsity <= 1.0 for sparsity in found.values())


def test_greedy_takes_what_costs_nothing_first(llama):
    # With up at zero the feed-forward part gives nothing, sparse or dense.
    llama.model.layers[0].mlp.up_proj.weight.zero_()
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 0.0))
    probe = next(walk_blocks(calibration, 64, 4096))
    free = sum(probe.shares[name] for name in ("gate", "up", "down"))
    found = greedy_allocation(
        probe, builder, 0.9 * free, GreedySettings(0.3, 64, 4096, BlockError()), SearchCost()
    )
    assert [found[name] for name in ("q", "k", "v", "o")] == [0.0] * 4


def test_block_errors_equal_those_of_the_whole_model(llama):
    """Candidates batched on one block against a plan applied to the model, one at a time."""
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 0.5))
    ids, _ = calibration.search_tokens(128), calibration.statistics
    outputs = []
    handle = llama.model.layers[1].register_forward_hook(lambda _, __, y: outputs.append(y))
    llama(input_ids=ids)
    sparsities = torch.tensor([0.3, 0.6, 0.8])
    for sparsity in sparsities.tolist():
        plan = builder.plan({key(1, "down"): sparsity, key(1, "q"): sparsity})
        logits_under(llama, plan, ids)
    handle.remove()
    probe = list(walk_blocks(calibration, 128, 64))[1]
    rules = {name: builder.candidates(key(1, name), sparsities) for name in ("down", "q")}
    batched = probe.errors(rules, 3, BlockError())  # in turns: a forward pass holds fewer than asked for
    direct = [(y - outputs[0]).square().mean().item() for y in outputs[1:]]
    assert batched.tolist() == pytest.approx(direct, rel=1e-4)


def test_the_chosen_alpha_is_the_best_of_the_grid(llama):
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 0.0))
    probe = next(walk_blocks(calibration, 128, 4096))
    grid = [0.0, 0.5, 1.0, 1.4]
    only_down = dict.fromkeys(PROJECTIONS, 0.0) | {"down": 0.6}
    found = search_alphas(probe, builder, only_down, grid, BlockError(), others_sparse=True, cost=SearchCost())

    x, down = [], llama.model.layers[0].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _, inputs: x.append(inputs[0]))
    probe.block(probe.hidden, **probe.keywords)
    handle.remove()
    errors = []
    for alpha in grid:
        t = builder.candidates(key(0, "down"), torch.tensor([0.6]), alpha).thresholds[0, 0]
        errors.append(F.linear(torch.where(x[0].abs() < t, x[0], 0), down.weight).square().mean().item())
    assert found["down"] == grid[errors.index(min(errors))]
    assert [found[name] for name in PROJECTIONS if name != "down"] == [0.0] * 6  # nothing to choose


def test_divergence_is_the_kl_of_the_applied_plan(llama):
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 1.0))
    ids = calibration.search_tokens(96)
    sparsities = torch.tensor([0.0, 0.4, 0.7])
    rules = {name: builder.candidates(name, sparsities) for name in calibration.shapes}
    every_block_alike = torch.arange(3)[:, None].expand(3, len(llama.model.layers))
    batched = OutputDivergence(calibration, 96, batch_tokens=200)(rules, every_block_alike)
    dense = llama(input_ids=ids).logits.log_softmax(-1)
    for found, sparsity in zip(batched.tolist(), sparsities.tolist(), strict=True):
        plan = builder.plan(dict.fromkeys(calibration.shapes, sparsity))
        sparse = logits_under(llama, plan, ids).log_softmax(-1)
        kl = F.kl_div(sparse, dense, log_target=True, reduction="none").sum(-1).mean().item()
        assert found == pytest.approx(kl, abs=1e-5)
    assert batched[0].item() == pytest.approx(0.0, abs=1e-6)
    assert batched[1] < batched[2]


@pytest.mark.parametrize("at_once", [10**9, 5 * 128])  # logits: all tokens in one part, or five tokens a part
def test_candidates_that_share_blocks_get_what_each_gets_alone(at_once, monkeypatch):
    model = make_tiny_model("qwen2", blocks=4)
    calibration = make_calibration(model)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 1.0))
    tables = {name: builder.candidates(name, torch.tensor([0.2, 0.5, 0.8])) for name in calibration.shapes}
    choices = torch.tensor([[1, 1, 1, 1], [1, 1, 2, 0], [1, 0, 1, 1], [1, 1, 2, 1], [2, 1, 1, 0], [1, 1, 1, 1]])
    entered = []
    handles = [
        block.register_forward_pre_hook(lambda _, inputs, index=index: entered.append((index, len(inputs[0]))))
        for index, block in enumerate(model.model.layers)
    ]
    monkeypatch.setattr("wisparse.method.search.logits.LOGITS_AT_ONCE", at_once)
    divergence = OutputDivergence(calibration, 64, batch_tokens=128)
    alone = torch.cat([divergence(tables, choice[None]) for choice in choices])
    entered.clear()
    together = divergence(tables, choices)
    for handle in handles:
        handle.remove()
    assert together.tolist() == pytest.approx(alone.tolist(), rel=1e-4)
    assert together.unique().numel() == 5
    # Two sequences a candidate: two candidates differ in the first block, three at the end of the second, ...
    passed = [sum(rows for index, rows in entered if index == block) for block in range(4)]
    assert passed == [2 * 2, 2 * 3, 2 * 4, 2 * 5]
    assert max(rows for _, rows in entered) == 4  # 128 tokens


def test_wisparse_keeps_the_budget_through_all_its_stages(llama):
    plan = make_method("wisparse").plan(make_calibration(llama), 0.5)
    blocks = plan.provenance.details["block_sparsities"]
    assert sum(blocks) / len(blocks) == pytest.approx(0.5, abs=1e-12)
    shares = parameter_shares(llama.model.layers[0])
    for block, target in enumerate(blocks):
        inside = sum(plan.provenance.details["sparsities"][key(block, n)] * shares[n] for n in PROJECTIONS)
        assert inside == pytest.approx(target, abs=1e-6)
    assert list(plan.provenance.search.stages) == ["calibration", "coarse", "greedy", "alpha", "thresholds"]
    assert 1 <= plan.provenance.search.evaluations["coarse"] <= 3 * 4  # none twice


@pytest.mark.parametrize(
    ("switch", "left_out"),
    [("allocation=uniform", "coarse"), ("method.fine=false", "greedy"), ("method.alpha_search=false", "alpha")],
)
def test_every_stage_can_be_left_out(llama, switch, left_out):
    plan = make_method("wisparse", switch).plan(make_calibration(llama), 0.5)
    assert left_out not in plan.provenance.search.stages
    assert len(plan.provenance.search.stages) == 4


def test_too_high_a_sparsity_for_the_block_bounds_says_what_to_move(llama):
    with pytest.raises(UserError, match=r"allocation\.maximum"):
        make_method("wisparse").plan(make_calibration(llama), 0.97)


def test_a_search_that_wants_more_text_than_there_is_says_so(llama):
    with pytest.raises(
        UserError, match=r"wants 100000 calibration tokens but there are 256; calibrate on more sequences"
    ):
        make_method("teal", "method.block_tokens=100000").plan(make_calibration(llama), 0.5)


def test_a_plan_keeps_its_shapes(llama):
    plan = make_method("teal").plan(make_calibration(llama), 0.5)
    assert isinstance(plan, SparsityPlan)
    assert plan.shapes["0.down"] == (48, 80)


def test_a_search_under_a_protocol_measures_what_that_protocol_does(llama):
    """The divergence of candidates under `half` is the KL of the plan applied under `half`."""
    calibration = make_calibration(llama)
    calibration.search_policy = make_protocol("half")
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 1.0))
    ids = calibration.search_tokens(64)
    rules = {name: builder.candidates(name, torch.tensor([0.6])) for name in calibration.shapes}
    first = torch.zeros(1, len(llama.model.layers), dtype=torch.long)
    found = OutputDivergence(calibration, 64, batch_tokens=64)(rules, first).item()
    dense = llama(input_ids=ids).logits.log_softmax(-1)
    plan = builder.plan(dict.fromkeys(calibration.shapes, 0.6))
    sparse = logits_under(llama, plan, ids, "half").log_softmax(-1)
    kl = F.kl_div(sparse, dense, log_target=True, reduction="none").sum(-1)
    assert found == pytest.approx(kl.mean().item(), abs=1e-5)
    assert kl[:, :16].abs().max() < 1e-5  # the first half is dense
    probe = next(walk_blocks(calibration, 64, 4096))
    down = {"down": builder.candidates(key(0, "down"), torch.tensor([0.6]))}
    differences = []
    probe.errors(down, 1, lambda d, y: differences.append(d) or BlockError()(d, y))
    assert differences[0][:, :, :16].abs().max() < 1e-6 < differences[0][:, :, 16:].abs().max()

"""Measurements of each stage that makes or uses a plan: the real code, on some of its evaluations."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...baselines.rsparse import RSparse, calibration_loss, low_rank_factors
from ...baselines.teal import TEAL
from ...method.base import Method
from ...method.projections import (
    PROJECTIONS,
    block_projections,
    decoder_blocks,
)
from ...method.provenance import SearchCost
from ...method.running.apply import applied
from ...method.search.block_probe import walk_blocks
from ...method.search.blocks import BlockSearch
from ...method.search.greedy import greedy_allocation
from ...method.token_policy import TokenPolicy
from ...method.wisparse.alpha_search import search_alphas
from ...method.wisparse.method import WiSparse
from ..evaluation.passes.context import reproducible_attention
from ..evaluation.passes.generation import continued_tokens
from .cost_bench import Bench, Measurement, Watch

ROWS, LENGTH = 8, 512
"""Shape of an evaluation's batch: 4096 tokens to score, 8 prompts to continue, as in conf/suite/paper.yaml."""
SHARE_EVALUATIONS = 16
MORE_EVALUATIONS = 8
"""Evaluations of the evolutionary search on more tokens than configured, whose memory is what is asked for."""
EVERY_TOKEN = TokenPolicy(name="all", source="cost of masks at its highest")

Stage = Callable[[Bench, Any], list[Measurement]]


def calibration(bench: Bench, _: Method) -> list[Measurement]:
    """Histograms and moments of all calibration text, and column norms."""
    sequences, length = bench.calibration.input_ids.shape
    with Watch() as watch:
        bench.calibration.prepare({"statistics"})
        _ = bench.calibration.column_norms
    return [_whole("calibration", "sequence", length, sequences, watch)]


def coarse(bench: Bench, method: WiSparse) -> list[Measurement]:
    """The evolutionary search over blocks, on the configured tokens and, for its memory, on more."""
    wanted = {method.block_search_settings.tokens: bench.cost.evaluations}
    wanted |= dict.fromkeys(bench.cost.more_tokens, MORE_EVALUATIONS)
    return [_coarse(bench, method, tokens, evaluations) for tokens, evaluations in wanted.items()]


def _coarse(bench: Bench, method: WiSparse, tokens: int, evaluations: int) -> Measurement:
    settings, cost = replace(method.block_search_settings, tokens=tokens), SearchCost()
    evolution = settings.allocator
    offspring = min(evolution.offspring, evaluations)
    shortened = replace(evolution, generations=-(-evaluations // offspring), offspring=offspring)
    with Watch() as setup:
        builder = method.rule_builder(bench.calibration)
        settings = replace(settings, allocator=shortened)
        search = BlockSearch(bench.calibration, builder, bench.sparsity, settings, cost)
    generator, parent = random.Random(method.seed + 1), [0] * bench.blocks
    one_pass = -(-settings.batch_tokens // tokens)  # kernels are chosen and memory is taken
    steps = [evolution.mutate(parent, bench.sparsity, generator) for _ in range(one_pass)]
    search.fitness(bench.sparsity + evolution.step * torch.tensor(steps, dtype=torch.float64))
    cost.evaluations.clear()
    with Watch() as watch:
        search.run(method.seed)
    return Measurement(
        "coarse",
        "candidate",
        tokens,
        cost.evaluations["coarse"],
        watch.seconds,
        evolution.generations * evolution.offspring,
        setup.seconds,
        _higher(setup, watch),
    )


def greedy(bench: Bench, method: TEAL | WiSparse) -> list[Measurement]:
    """Greedy allocation of the first block, whole; each block counts as as many evaluations."""
    settings, cost = method.greedy_settings, SearchCost()
    builder = method.rule_builder(bench.calibration)
    probe = next(walk_blocks(bench.calibration, settings.tokens, settings.batch_tokens))
    with torch.inference_mode():
        one_step = settings.step * probe.shares["q"]
        greedy_allocation(probe, builder, one_step, settings, SearchCost())
        with Watch() as watch:
            greedy_allocation(probe, builder, bench.sparsity, settings, cost)
    measured = cost.evaluations["greedy"]
    total = bench.blocks * measured
    return [
        Measurement(
            "greedy", "block", settings.tokens, measured, watch.seconds, total, peak_bytes=watch.peak_bytes
        )
    ]


def alpha(bench: Bench, method: WiSparse) -> list[Measurement]:
    """The α search of one block."""
    cost, builder = SearchCost(), method.rule_builder(bench.calibration)
    inside = dict.fromkeys(PROJECTIONS, bench.sparsity)
    probe = next(walk_blocks(bench.calibration, method.block_tokens, method.batch_tokens))
    with torch.inference_mode(), Watch() as watch:
        search_alphas(probe, builder, inside, method.alpha_grid, method.block_error, method.others_sparse, cost)
    measured = cost.evaluations["alpha"]
    return [
        Measurement(
            "alpha",
            "block",
            method.block_tokens,
            measured,
            watch.seconds,
            bench.blocks * measured,
            peak_bytes=watch.peak_bytes,
        )
    ]


def thresholds(bench: Bench, method: Method) -> list[Measurement]:
    """The finished plan from the histograms."""
    with Watch() as watch:
        plan = bench.made_plan(method)
    return [_whole("thresholds", "projection", 0, len(plan.rules), watch)]


def application(bench: Bench, method: Method) -> list[Measurement]:
    """Putting a plan on the model and taking it off again."""
    plan = bench.plan(method)
    with Watch() as watch, applied(bench.model, plan, EVERY_TOKEN):
        pass
    return [_whole("application", "plan", 0, 1, watch)]


@torch.inference_mode()
def scoring(bench: Bench, method: Method) -> list[Measurement]:
    """A token scored in evaluation, under the plan."""
    ids = bench.random_ids(ROWS, LENGTH, seed=1)
    with applied(bench.model, bench.plan(method), EVERY_TOKEN), reproducible_attention():
        bench.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        with Watch() as watch:
            for _ in range(bench.cost.scoring_passes):
                bench.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    measured = bench.cost.scoring_passes * ids.numel()
    return [_rate("scoring", "token", 1, measured, watch)]


@torch.inference_mode()
def generation(bench: Bench, method: Method) -> list[Measurement]:
    """A step in which evaluation adds one token to each row, under the plan; without the prompt's pass."""
    ids = bench.random_ids(ROWS, LENGTH, seed=1)

    def generate(new_tokens: int) -> None:
        continued_tokens(bench.model, ids, torch.ones_like(ids), new_tokens)

    with applied(bench.model, bench.plan(method), EVERY_TOKEN), reproducible_attention():
        generate(2)
        with Watch() as first:
            generate(1)
        with Watch() as watch:
            generate(1 + bench.cost.new_tokens)
    watch.seconds -= first.seconds
    return [_rate("generation", "step", ROWS, bench.cost.new_tokens, watch)]


def plan(bench: Bench, method: Method) -> list[Measurement]:
    """A method that is made whole in seconds, stage by stage as it reports them itself."""
    with Watch() as watch:
        made = method.plan(bench.calibration, bench.sparsity)
    evaluations = made.provenance.search.evaluations
    length = bench.calibration.input_ids.shape[1]
    return [
        Measurement(
            stage,
            "sequence" if stage in evaluations else "plan",
            length if stage in evaluations else 0,
            evaluations.get(stage, 1),
            seconds,
            evaluations.get(stage, 1),
            peak_bytes=watch.peak_bytes,
        )
        for stage, seconds in made.provenance.search.stages.items()
        if stage != "calibration"  # shared, and measured by itself
    ]


def factors(bench: Bench, _: Method) -> list[Measurement]:
    """R-Sparse's truncation of every projection of the first block."""
    linears = block_projections(decoder_blocks(bench.model)[0])
    low_rank_factors(linears["k"].weight)
    with torch.inference_mode(), Watch() as watch:
        for linear in linears.values():
            low_rank_factors(linear.weight)
    return [Measurement("factors", "block", 0, 1, watch.seconds, bench.blocks, peak_bytes=watch.peak_bytes)]


def shares(bench: Bench, method: RSparse) -> list[Measurement]:
    """R-Sparse's search, with factors that are random: what they hold changes no evaluation's cost."""
    budgeted = bench.random_factors(method)
    input_ids = bench.calibration.search_tokens(method.search_tokens)
    projections, generator = len(bench.calibration.shapes), random.Random(method.seed)
    with Watch() as setup:  # the rules of every choice are made once
        for choice in method.choices:
            calibration_loss(bench.calibration, input_ids, budgeted.rules((choice,) * projections))
    with Watch() as watch:
        for _ in range(SHARE_EVALUATIONS):
            drawn = tuple(generator.choice(method.choices) for _ in range(projections))
            calibration_loss(bench.calibration, input_ids, budgeted.rules(drawn))
    offspring = method.population - max(2, method.population // 2)
    return [
        Measurement(
            "shares",
            "individual",
            method.search_tokens,
            SHARE_EVALUATIONS,
            watch.seconds,
            method.population + method.generations * offspring,
            setup.seconds,
            _higher(setup, watch),
        )
    ]


STAGES: dict[str, Stage] = {
    made.__name__: made
    for made in (
        calibration, coarse, greedy, alpha, thresholds, application, scoring, generation, plan, factors,
        shares,
    )
}  # fmt: skip
"""Stages that can be measured, by their names in conf/search_cost.yaml."""


def _whole(stage: str, unit: str, tokens: int, count: int, watch: Watch) -> Measurement:
    return Measurement(stage, unit, tokens, count, watch.seconds, count, peak_bytes=watch.peak_bytes)


def _rate(stage: str, unit: str, tokens: int, count: int, watch: Watch) -> Measurement:
    return Measurement(stage, unit, tokens, count, watch.seconds, None, peak_bytes=watch.peak_bytes)


def _higher(*watches: Watch) -> int | None:
    peaks = [watch.peak_bytes for watch in watches if watch.peak_bytes is not None]
    return max(peaks, default=None)

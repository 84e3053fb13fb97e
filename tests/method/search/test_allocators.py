"""Allocations over blocks on fitness functions whose best answer is known, and through WiSparse."""

import itertools
import math

import pytest
import torch
from wisparse.method.search.blocks import BlockCurves, EvolutionarySearch, GreedyBlocks
from wisparse.method.search.parzen import ParzenSearch

from ...conftest import make_calibration, make_method

WEIGHTS = torch.tensor([4.0, 1.0, 2.0, 0.5], dtype=torch.float64)
BOUNDS = {"step": 0.1, "minimum": 0.0, "maximum": 0.9}
ALLOCATORS = [
    GreedyBlocks(**BOUNDS),
    BlockCurves(**BOUNDS),
    EvolutionarySearch(generations=60, offspring=16, elitism=True, **BOUNDS),
    ParzenSearch(rounds=30, trials=16, spread=0.2, bandwidth=0.1, **BOUNDS),
]


def convex(sparsities):
    return (WEIGHTS * sparsities.square()).sum(dim=1)


def uneven(sparsities):
    """Separable, neither convex nor monotone."""
    return (WEIGHTS * (7 * sparsities).sin()).sum(dim=1)


def brute_force(fitness, target):
    grid = torch.tensor(list(itertools.product(range(10), repeat=4))).double() / 10
    return fitness(grid[(grid.mean(dim=1) - target).abs() < 1e-9]).min().item()


@pytest.mark.parametrize("allocator", ALLOCATORS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
def test_the_mean_is_the_target_within_the_bounds(allocator, target):
    found, _ = allocator.run(4, target, 0, convex)
    assert sum(found) / 4 == pytest.approx(target)
    assert min(found) > -1e-9
    assert max(found) < 0.9 + 1e-9


def test_curves_find_the_least_of_any_separable_loss():
    for fitness in (convex, uneven):
        found, history = BlockCurves(**BOUNDS).run(4, 0.5, 0, fitness)
        assert fitness(torch.tensor(found)[None]).item() == pytest.approx(brute_force(fitness, 0.5), abs=1e-6)
        assert history == pytest.approx([brute_force(fitness, 0.5)])


def test_parzen_estimators_find_the_least_of_an_uneven_one_among_thousands():
    search = ParzenSearch(rounds=30, trials=16, spread=0.2, bandwidth=0.1, **BOUNDS)
    asked = []

    def counted(sparsities):
        asked.extend(map(tuple, sparsities.tolist()))
        return uneven(sparsities)

    found, history = search.run(4, 0.5, 0, counted)
    assert uneven(torch.tensor(found)[None]).item() == pytest.approx(brute_force(uneven, 0.5), abs=1e-6)
    assert asked[0] == pytest.approx((0.5,) * 4)  # never worse than uniform
    assert len(asked) == len(set(asked)) <= 31 * 16
    assert history == sorted(history, reverse=True)
    again, _ = search.run(4, 0.5, 0, uneven)
    assert again == found


def test_parzen_estimators_by_hand():
    """One trial at +1 of three numbers of steps: a kernel of its own, and a uniform one beside it."""
    search = ParzenSearch(step=0.1, bandwidth=0.1)
    near, far = math.exp(-0.5), math.exp(-2.0)
    kernel = torch.tensor([far, near, 1.0], dtype=torch.float64) / (far + near + 1.0)
    assert torch.allclose(search._densities(torch.tensor([[1]]), (-1, 1)), (kernel + 1 / 3) / 2)


def test_greedy_finds_the_least_of_a_convex_one():
    found, history = GreedyBlocks(**BOUNDS).run(4, 0.5, 0, convex)
    assert convex(torch.tensor(found)[None]).item() == pytest.approx(brute_force(convex, 0.5))
    assert len(history) == 4 * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("allocation", "evaluations"),
    [("uniform", 0), ("greedy", 2 * 16 * 2), ("curves", 2 * 20 + 1), ("elitist", None)],
)
def test_every_allocation_through_wisparse(llama, allocation, evaluations):
    method = make_method(
        "wisparse", f"allocation={allocation}", "method.fine=false", "method.alpha_search=false"
    )
    plan = method.plan(make_calibration(llama), 0.4)
    found = sum(plan.provenance.search.evaluations.values())
    assert sum(plan.provenance.details["block_sparsities"]) / 2 == pytest.approx(0.4)
    assert found > 0 if evaluations is None else found <= evaluations
    assert (found == 0) == (allocation == "uniform")

import random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from wisparse.method.search.blocks import EvolutionarySearch


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(2, 40),
    target=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.9]),
    share=st.sampled_from([0.1, 0.5]),
    seed=st.integers(0, 10_000),
)
def test_mean_and_bounds_hold_at_every_mutation(blocks, target, share, seed):
    search = EvolutionarySearch(step=0.01, mutated_share=share)
    generator, parent = random.Random(seed), [0] * blocks
    for _ in range(60):
        parent = search.mutate(parent, target, generator)
        assert sum(parent) == 0  # the mean is the target exactly
        sparsities = [target + steps * search.step for steps in parent]
        assert min(sparsities) >= search.minimum - 1e-9
        assert max(sparsities) <= search.maximum + 1e-9


def test_it_finds_the_block_that_should_stay_dense():
    # Block 0 costs ten times as much as the others.
    weights = torch.tensor([10.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    search = EvolutionarySearch(generations=80, offspring=8, step=0.01)
    found, history = search.run(4, 0.5, 0, lambda p: (p.square() * weights).sum(dim=1))
    assert found[0] < min(found[1:])
    assert sum(found) / 4 == pytest.approx(0.5, abs=1e-12)
    assert history[-1] < history[0]


def test_without_elitism_the_best_offspring_replaces_a_better_parent():
    rising = iter(range(100))

    def fitness(p):
        return torch.full((len(p),), float(next(rising)), dtype=torch.float64)

    free, _ = EvolutionarySearch(generations=5, offspring=2).run(6, 0.5, 0, fitness)
    rising = iter(range(100))
    kept, _ = EvolutionarySearch(generations=5, offspring=2, elitism=True).run(6, 0.5, 0, fitness)
    first, _ = EvolutionarySearch(generations=1, offspring=2).run(6, 0.5, 0, lambda p: torch.zeros(len(p)))
    assert kept == first
    assert free != first


def test_same_seed_same_search():
    search = EvolutionarySearch(generations=10, offspring=4)
    runs = [search.run(5, 0.5, seed, lambda p: p.square().sum(dim=1))[0] for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_no_candidate_is_evaluated_twice():
    seen = []

    def fitness(p):
        seen.extend(tuple(row) for row in p.tolist())
        return p.square().sum(dim=1)

    EvolutionarySearch(generations=30, offspring=16).run(3, 0.5, 0, fitness)
    assert len(seen) == len(set(seen)) < 30 * 16

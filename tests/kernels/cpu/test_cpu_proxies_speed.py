"""The bench of chosen neurons, bounds on k and rotations: as much is left unread as by thresholds."""

import argparse
from dataclasses import replace

import pytest
import torch
from wisparse.kernels.bench import proxies
from wisparse.kernels.bench.parts import steps_in_turn
from wisparse.kernels.bench.parts.drawn import dropping, filled_cache, random_weights, row_weights
from wisparse.kernels.bench.parts.model_shapes import shape_of
from wisparse.kernels.bench.proxies import bounded, by_rank, choosing, proxied_weights, routing, turned_weights
from wisparse.kernels.cpu.step import decode_step
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.decoder import DecoderShape
from wisparse.kernels.plan.block_plan import BlockPlan
from wisparse.kernels.reference import dropped_within_bounds

SHAPE = DecoderShape(2, 256, 640, 4, 2, 64, 128, 1e-5, (None, None), "silu")


def test_as_much_is_left_unread_as_asked_for():
    """Llama-3.1-8B's gate, up and down, less the proxies, which are read for half of the channels."""
    shape = shape_of("llama3.1-8b")
    rule, neuron = choosing(shape, 0.5), 3 * 4096
    every = sum(out * inner for out, inner in shape.projection_shapes().values())
    read = 2 * 2048 * (14336 // 2 + 2 * 224) / 2
    assert (rule.read, rule.group) == (2048, 64)
    assert ((14336 - rule.kept) * neuron - read) / every == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(KernelError, match=r"cannot leave out 0\.9"):
        choosing(shape, 0.9)


def test_routers_leave_as_much_unread():
    """Llama-3.1-8B's gate, up and down, less a router of 448 groups; about that share is chosen."""
    torch.manual_seed(0)
    shape = replace(shape_of("llama3.1-8b"), blocks=2)
    share, plans = routing(shape, 0.5, torch.device("cpu"))
    every = sum(out * inner for out, inner in shape.projection_shapes().values())
    assert ((1 - share) * 3 * 14336 * 4096 - 448 * 4096) / every == pytest.approx(0.5, abs=1e-9)
    x = torch.randn(64, 4096)
    x = x / x.square().mean(dim=1, keepdim=True).sqrt()
    for plan in plans:
        assert plan.misfit(shape.projection_shapes()) is None
        assert plan.router.chosen(x, 14336).float().mean().item() == pytest.approx(share, abs=0.01)
    with pytest.raises(KernelError, match=r"routers cannot leave out 0\.9"):
        routing(shape, 0.9, torch.device("cpu"))


def test_a_bound_keeps_as_many_channels_as_thresholds_do():
    plans = dropping(SHAPE, 0.4, torch.device("cpu"))
    for thresholds, bounds in zip(plans, bounded(plans), strict=True):
        for name, rule in bounds.rules.items():
            x = torch.randn(1, len(rule.thresholds), generator=torch.Generator().manual_seed(2))
            dropped = dropped_within_bounds(x, rule.thresholds, *rule.bounds)
            assert dropped.sum() == thresholds.rules[name].thresholds.isinf().sum()


@pytest.mark.parametrize(("kind", "products"), [("rotated", 2), ("rotated stream", 1)])
def test_rotations_leave_as_much_unread(kind, products):
    """Llama-3.1-8B's blocks, less a product of 4096 channels or two: 0.8 and 1.2 of a nominal sparsity."""
    shape = shape_of("llama3.1-8b")
    rules, sizes = by_rank(shape, 0.4, products, torch.device("cpu")).rules, shape.projection_shapes()
    every = sum(out * inner for out, inner in sizes.values())
    dropped = sum(sizes[name][0] * (sizes[name][1] - rule.top_k) for name, rule in rules.items())
    assert (dropped - products * 4096**2) / every == pytest.approx(0.4, abs=1e-3)
    sparsities = {name: 1 - rule.top_k / sizes[name][1] for name, rule in rules.items()}
    assert sparsities["down"] / sparsities["gate"] == pytest.approx(1.5, abs=1e-3)
    with pytest.raises(KernelError, match=r"cannot leave out 0\.8"):
        by_rank(shape, 0.8, products, torch.device("cpu"))
    weights = random_weights(SHAPE, 16, 16, torch.bfloat16, torch.device("cpu"))
    (block, _) = turned_weights(weights, kind, torch.eye(256, dtype=torch.bfloat16)).blocks
    bases = (block.input_basis, block.mlp_basis, block.adapter)
    assert [basis is not None for basis in bases] == [products == 2, products == 2, products == 1]


@pytest.mark.slow
def test_with_every_neuron_chosen_a_step_is_the_dense_one(compiled):
    torch.manual_seed(0)
    dense = random_weights(SHAPE, 16, 16, torch.bfloat16, torch.device("cpu"))
    every = BlockPlan(proxies=replace(choosing(SHAPE, 0.1), kept=SHAPE.ffn))
    found = []
    for weights, rule in ((dense, BlockPlan()), (proxied_weights(row_weights(dense)), every)):
        torch.manual_seed(1)
        cache = filled_cache(SHAPE, torch.bfloat16, torch.device("cpu"), 8)
        found.append(decode_step(weights, (rule,) * SHAPE.blocks, cache)(torch.tensor([3])).clone())
    assert torch.allclose(*found, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_every_kind_of_plan_has_a_row(compiled, monkeypatch):
    monkeypatch.setattr(steps_in_turn, "read_bandwidth", lambda _: 20e9)
    options = argparse.Namespace(context=8, sparsities=[0.3, 0.4])
    found = list(proxies.rows("tiny", SHAPE, torch.device("cpu"), options))
    kinds = ("thresholds", "bounded", "proxies", "routed", "rotated", "rotated stream")
    assert [(row["kind"], row["sparsity"]) for row in found] == [
        ("dense", 0.0), *((kind, sparsity) for sparsity in (0.3, 0.4) for kind in kinds)
    ]  # fmt: skip
    assert [bool(row["neurons"]) for row in found] == [False, *[False, False, True, True, False, False] * 2]
    assert all(row["ms"] > 0 for row in found)

"""The decode step with chosen key-value groups against the transformers model under hooks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.cuda.attention import CUDAAttentionTile, cuda_attention
from wisparse.kernels.cuda.product import CUDATile
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.step_tiles import Chosen
from wisparse.kernels.triton.attention.short import ShortAttentionTile

from ...conftest import FAMILIES, make_tiny_model
from ...method.heads.head_plans import drawn_heads, with_heads
from ..triton_cases import DEVICE, SMALL_TILES
from .test_shared_masks_step import sharing
from .test_triton_step import both_decode, make_plan, step_of


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_alone(family):
    """Rows with padding choose groups of their own; block 0 is dense; a window, biases, norms of heads."""
    model = make_tiny_model(family, blocks=2 if family == "llama" else 1)
    plan = with_heads(model, kept=1, first=1 if family == "llama" else 0)
    expected, found = both_decode(model, plan, batch=2)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "batch"), [("teal", 2), ("wina", 1), ("rsparse", 1), ("chess", 1)])
def test_heads_beside_every_kind_of_rule(method, batch):
    """Lists of o are made behind attention, which writes all of it."""
    model = make_tiny_model("qwen2", blocks=1)
    plan = with_heads(model, kept=1, plan=make_plan(model, method), first=0)
    expected, found = both_decode(model, plan, batch=batch)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("combined", "projections"), [("sum", None), ("maximum", ("gate", "up", "down"))])
def test_heads_beside_a_mask_that_rows_share(combined, projections):
    """All projections are under it, or those of the MLP alone; rows choose groups of their own all the same."""
    model = make_tiny_model("llama", blocks=2)
    plan = sharing(make_plan(model, "wina"), combined)
    if projections is not None:
        plan = plan.without([name for name in plan.rules if name.split(".")[1] not in projections])
    plan = with_heads(model, kept=1, plan=plan)
    expected, found = both_decode(model, plan, batch=3)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
def test_heads_in_cuda():
    model = make_tiny_model("qwen2", blocks=1, heads=(3, 3)).half()
    plan = with_heads(model, kept=1, plan=make_plan(model, "teal"), first=0)
    plain = replace(SMALL_TILES, attention=ShortAttentionTile(step=16))
    attention = CUDAAttentionTile(warps=1, cluster=2, unroll=2, queries=2)
    tile = CUDATile(warps=2, cluster=2, unroll=2)
    products = {1: {"qkv": tile, "o": tile}, 2: {}}  # of a batch they are Triton's
    for batch in (1, 2):
        tiles = replace(plain, cuda=Chosen(products[batch], attention))
        found, expected = (both_decode(model, plan, batch, each, tokens=1)[1] for each in (tiles, plain))
        assert torch.allclose(found, expected, atol=4e-3)
    step = step_of(model, plan, 1, tiles)
    assert any(getattr(one.func, "func", one.func) is cuda_attention for one in step.launches)
    assert step.ran()["attention"] == "cuda"
    assert "triton" in step.ran()["selection"]


def test_a_row_without_a_rule_of_o_skips_what_attention_left_at_zero():
    model = make_tiny_model("llama", blocks=1).to(DEVICE)
    plan = with_heads(model, kept=1, first=0)
    modules = {
        batch: [one.func.__module__.rpartition(".")[2] for one in step_of(model, plan, batch).launches]
        for batch in (1, 2)
    }
    assert modules[1].count("compact") == modules[2].count("compact") + 1


def test_the_launch_that_scores_groups_takes_the_place_of_the_norm():
    model = make_tiny_model("llama", blocks=2).to(DEVICE)
    launches = step_of(model, with_heads(model, kept=1), 2).launches
    modules = [one.func.__module__.rpartition(".")[2] for one in launches]
    assert modules.count("router") == 1
    assert modules.count("compact") == 5  # the embedding, two norms of block 0, one of block 1, the last


def test_what_cannot_be_is_one_line(llama):
    other = replace(with_heads(llama, kept=1), heads=drawn_heads(make_tiny_model("llama", heads=(8, 4)), 1))
    with pytest.raises(KernelError, match="8 heads in 4 groups, and the model has 4 in 2"):
        step_of(llama.to(DEVICE), other, 1)

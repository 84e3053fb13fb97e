"""The decode step under masks that the rows of a batch share, against the transformers model under hooks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.gpu.step_tiles import Chosen

from ...conftest import make_tiny_model
from ..triton_cases import DEVICE, SMALL_TILES
from .test_triton_step import NEW, both_decode, make_plan, step_of


def sharing(plan, combined):
    """The plan with masks that a batch shares."""
    return replace(plan, rules={name: replace(rule, shared=combined) for name, rule in plan.rules.items()})


@pytest.mark.slow
@pytest.mark.parametrize(("combined", "batch"), [("sum", 2), ("maximum", 3), ("sum", 17)])
def test_a_mask_that_a_batch_shares(combined, batch):
    model = make_tiny_model("qwen2", blocks=1)
    plan = sharing(make_plan(model, "wina"), combined)
    expected, found = both_decode(model, plan, batch, tokens=1 if batch > 3 else NEW)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
def test_a_launch_of_its_own_finds_what_rows_keep_together():
    """Logits, and so lists, are bit for bit those of programs that find the smallest score themselves."""
    model = make_tiny_model("llama", blocks=1)
    plan = sharing(make_plan(model, "wina"), "sum")
    found = {}
    for own in (False, True):
        tiles = replace(SMALL_TILES, cuda=Chosen({}, shared_top_k=own))
        step = step_of(model.to(DEVICE), plan, 2, tiles)
        found[own] = step(torch.tensor([5, 7], device=DEVICE)).clone()
        assert step.ran()["selection"] == ("cuda and triton" if own else "triton")
    assert torch.equal(found[True], found[False])


@pytest.mark.slow
def test_one_row_has_the_top_k_of_its_own_under_a_shared_mask():
    """Bit for bit, so without a prompt: torch's own passes over one may differ from each other on a GPU."""
    model = make_tiny_model("llama", blocks=1).to(DEVICE)
    plan, token = make_plan(model, "wina"), torch.tensor([5], device=DEVICE)
    found, own = (step_of(model, kind, 1)(token).clone() for kind in (sharing(plan, "sum"), plan))
    assert torch.equal(found, own)
    assert not torch.equal(found, step_of(model, None, 1)(token))

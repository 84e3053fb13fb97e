"""Rows of a batch that share a mask, under hooks."""

from dataclasses import replace

import pytest
import torch
from wisparse.method.rules import SharedTopK

from ...conftest import make_calibration, make_method
from .given_tokens import ids_of, inputs_of


def shared_plan(model, combined="sum", sparsity=0.5):
    """The uniform top-k of |x| with masks that a batch shares, as a method with that mask rule makes it."""
    method = replace(make_method("teal_uniform"), mask=SharedTopK(combined))
    return method.plan(make_calibration(model), sparsity)


@pytest.mark.parametrize("combined", ["sum", "maximum"])
def test_rows_of_a_batch_share_a_mask(llama, combined):
    """Rows 0 and 1 do, row 2 has its own; bytes of a batch are those of one row."""
    ids = ids_of(3, 7)
    plan = shared_plan(llama, combined)
    x, report = inputs_of(llama, plan, ids, rows_sharing=2)
    kept = x != 0
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    k = plan.rules["0.q"].top_k
    assert (kept.sum(-1) == k).all()
    own, alone = inputs_of(llama, plan, ids)
    assert not torch.equal((own != 0)[0], (own != 0)[1])
    assert report["bytes_per_token"] == alone["bytes_per_token"]
    assert (report["tokens"], alone["tokens"]) == (2 * 7, 3 * 7)


def test_one_row_has_the_top_k_of_its_own(llama):
    shared = shared_plan(llama)
    plan = replace(shared, rules={name: replace(rule, shared=None) for name, rule in shared.rules.items()})
    (found, _), (expected, _) = inputs_of(llama, shared, ids_of(2, 7)), inputs_of(llama, plan, ids_of(2, 7))
    assert torch.equal(found, expected)


def test_tokens_that_are_dense_have_no_say_in_a_shared_mask(llama):
    """Where the other row's token is a prompt's, a row has the mask that it has alone."""
    ids, plan = ids_of(2, 8), shared_plan(llama)
    (beside_prompt, report), (together, _), (alone, _) = (
        inputs_of(llama, plan, ids, 2, (4, 8)),
        inputs_of(llama, plan, ids, 2, (4, 4)),
        inputs_of(llama, plan, ids[:1], 1, (4,)),
    )
    assert torch.equal(beside_prompt[0], alone[0])
    assert not torch.equal(together[0, 4:] != 0, alone[0, 4:] != 0)
    assert beside_prompt[1].all()
    assert report["sparse_tokens"] == 4

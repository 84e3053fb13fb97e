"""What a study of allocations and of tokens' budgets computes, on a small random model."""

import numpy as np
import pytest
import torch
from wisparse.method.running.apply import applied
from wisparse.method.token_policy import TokenPolicy
from wisparse.repro.studies.known_of_a_token import Followed, fitted, given, price
from wisparse.repro.studies.left_over import GROUP_MOVES, least_together
from wisparse.repro.studies.shifted_pass import Deviation, StudiedText

from ...conftest import make_calibration, make_method


@pytest.fixture
def text(llama):
    calibration = make_calibration(llama)
    return StudiedText(llama, make_method("equal_loss").plan(calibration, 0.5), calibration.input_ids, 4)


def test_a_pass_without_a_deviation_loses_and_reads_what_the_plan_does(text):
    found = text.lost(text.dense_states(), Deviation())
    dense = text.model(text.ids).logits.log_softmax(-1)
    with applied(text.model, text.plan, TokenPolicy("all", "")) as session:
        sparse = text.model(text.ids).logits.log_softmax(-1)
    assert torch.allclose(found.divergence, (dense.exp() * (dense - sparse)).sum(-1), atol=1e-4)
    assert float(found.read.mean()) == pytest.approx(1 - session.report()["realised_sparsity"], abs=1e-6)


def test_thresholds_fall_where_a_feature_tells_of_a_dear_token(text):
    dense = text.dense_states()
    plain = text.lost(dense, Deviation(), keep_seen=True)
    feature = given(price(plain)[..., None])
    shift = Followed(feature, fitted(feature, plain, text.batch_size), 0.1)
    moved = text.lost(dense, Deviation(shift=shift)).read - plain.read
    dear = plain.divergence > plain.divergence.median()
    assert float(moved[:, dear].mean()) > 0.0 > float(moved[:, ~dear].mean())


def test_top_k_and_moves_act_on_the_projections_that_are_named(text):
    dense = text.dense_states()
    plain, fewer = (text.lost(dense, Deviation(moves=moves)).read for moves in ({}, {"1.down": 2.0}))
    assert torch.equal(fewer[0], plain[0])
    assert (fewer[1] < plain[1]).all()
    every = dict.fromkeys(text.plan.shapes, 8)
    assert text.lost(dense, Deviation(top_k=every)).read.std() < 1e-6


def test_groups_are_moved_to_where_they_lose_least_together():
    moves = np.array(GROUP_MOVES)
    curve = np.stack([-moves, 0.1 * moves], axis=1)
    found = least_together({"dear": curve * (1.0, 3.0), "cheap": curve})
    assert found["dear"] == GROUP_MOVES[0]
    assert found["cheap"] == pytest.approx(GROUP_MOVES[-1], abs=0.01)

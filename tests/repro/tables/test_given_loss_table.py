"""Sparsity at a given loss: a known curve against its bisection, and no number beyond the cells."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from wisparse.repro.measured.given_loss import crossing, losses
from wisparse.repro.measured.real_cells import read_real
from wisparse.repro.tables.against_bytes.given_loss_table import GIVEN_LOSS

from .made_up_cells import write_cell


def bisected(rise: Callable[[float], float], wanted: float) -> float:
    """Sparsity at which a growing rise is as wanted."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rise(middle) < wanted else (low, middle)
    return low


def stretched(rise: float) -> float:
    """What a made-up cell's perplexity has to be stretched by, in its own unit."""
    return math.log1p(rise) / math.log(1.01)


@pytest.fixture
def records(tmp_path):
    """TEAL with rises of 0.2 % · e^(8 s), whose logarithm is linear in s; CHESS late; WINA with rotations."""
    rises = {"teal": lambda s: 0.002 * math.exp(8 * s), "chess": lambda s: 0.02 * math.exp(8 * s)}
    write_cell(tmp_path, "dense", 0.0, 0)
    for sparsity in (0.3, 0.4, 0.5, 0.6):
        for method, rise in rises.items():
            wide = {"low_rank_share": 0.02, "rotation_share": 0.1} if method == "chess" else {}
            realised = {"realised_sparsity": sparsity, "dense_bytes_per_token": 1e7} | wide
            realised["bytes_per_token"] = 1e7 * (1 - sparsity)
            write_cell(tmp_path, method, sparsity, stretched(rise(sparsity)), realised=realised)
    return tmp_path, rises


def test_a_known_curve_is_crossed_where_bisection_finds_it(records):
    folder, rises = records
    found = {(one.method, one.loss): one for one in losses(read_real(folder))}
    for loss in (0.05, 0.1):
        one = found["teal", loss]
        expected = bisected(rises["teal"], loss)
        assert one.status == "measured"
        assert one.sparsity.value == pytest.approx(expected, abs=1e-9)
        assert one.bytes_per_token.value == pytest.approx(1e7 * (1 - expected), rel=1e-9)
        # All documents are stretched alike, so that the resamples agree.
        assert one.sparsity.low == pytest.approx(one.sparsity.high) == pytest.approx(expected)


def test_a_model_without_what_it_was_trained_to_run_under_is_no_reference(records):
    folder, _ = records
    for sparsity in (0.5, 0.6):
        write_cell(folder, "lte", sparsity, 0)
    assert {one.method for one in losses(read_real(folder))} == {"teal", "chess"}


def test_nothing_is_told_beyond_the_cells(records):
    folder, _ = records
    found = {(one.method, one.loss): one for one in losses(read_real(folder))}
    early = found["teal", 0.01]  # 2.2 % are lost at 30 % already
    assert (early.status, early.sparsity, early.bytes_per_token) == ("before the first cell", None, None)
    assert found["chess", 0.1].status == "before the first cell"
    assert found["chess", 0.1].ends == pytest.approx((0.3 - 0.12, 0.6 - 0.12))  # net of factors and rotations
    for sparsity in (0.3, 0.6):
        write_cell(folder, "wina", sparsity, stretched(0.02 * sparsity))
    beyond = {one.loss: one for one in losses(read_real(folder)) if one.method == "wina"}
    assert beyond[0.01].status == "measured"
    assert beyond[0.05].status == "not reached"
    assert beyond[0.05].sparsity is None


def test_the_page_says_which_side_a_loss_is_on(records):
    folder, _ = records
    write_cell(folder, "wina", 0.3, 0)
    data = read_real(folder)
    page = GIVEN_LOSS.markdown(data)
    assert "| < 30.0 % |" in page
    assert "*not reached* at 30.1 %" in page  # made-up cells realise a thousandth more
    rows = list(csv.DictReader(io.StringIO(GIVEN_LOSS.csv(data))))
    assert {row["sparsity"] for row in rows if row["status"] != "measured"} == {""}
    assert sum(row["status"] == "measured" for row in rows) == 2


def test_the_mean_is_over_the_seeds_with_every_sparsity(records):
    folder, _ = records
    write_cell(folder, "teal", 0.5, 0, seed=1)
    (seeds,) = {one.seeds for one in losses(read_real(folder)) if one.method == "teal"}
    assert seeds == (0,)


def test_crossings_by_hand():
    rises = np.array([[1.0, -1.0, 3.0, 0.1], [4.0, 3.0, 5.0, 0.2]])
    wanted = np.array([2.0, 1.0, 2.0, 2.0])
    # e^(log 1 + ½·log 4) is 2; −1 and 3 have 1 in their middle; one starts above, one stays below.
    assert crossing(rises, wanted) == pytest.approx([0.5, 0.5, 0.0, 1.0])

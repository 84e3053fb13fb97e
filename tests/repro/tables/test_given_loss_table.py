"""Sparsity at a given loss: a known curve against its bisection, and no number beyond the cells."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from wisparse.repro.measured.given_loss import crossing, losses
from wisparse.repro.measured.real_cells import read_given_loss
from wisparse.repro.tables.against_bytes.given_loss_table import GIVEN_LOSS

from .made_up_cells import CONFIG, write_cell


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
    found = {(one.method, one.loss): one for one in losses(read_given_loss(folder))}
    for loss in (0.05, 0.1):
        one = found["teal", loss]
        expected = bisected(rises["teal"], loss)
        assert one.status == "measured"
        assert one.sparsity.value == pytest.approx(expected, abs=1e-9)
        assert one.bytes_per_token.value == pytest.approx(1e7 * (1 - expected), rel=1e-9)
        # All documents are stretched alike, so that the resamples agree.
        assert one.sparsity.low == pytest.approx(one.sparsity.high) == pytest.approx(expected)


def of_model(name: str) -> dict[str, object]:
    """A made-up cell's model under another name."""
    facts = {"device": "cpu", "device_name": "CPU", "threads": 2, "dtype": "float32", "fingerprint": name}
    return {"model": {"name": name} | facts}


def test_a_model_without_what_it_was_trained_to_run_under_is_no_reference(tmp_path):
    write_cell(tmp_path, "dense", 0.0, 0, **of_model("llama-mini-dense"))
    write_cell(tmp_path, "dense", 0.0, 50, **of_model("llama-mini-lte"))
    for sparsity, rise in ((0.2, 0.02), (0.4, 0.08)):
        write_cell(tmp_path, "lte", sparsity, stretched(rise), **of_model("llama-mini-lte"))
        write_cell(tmp_path, "teal", sparsity, stretched(rise), **of_model("llama-mini-dense"))
    found = {(one.section.model, one.method, one.loss): one for one in losses(read_given_loss(tmp_path))}
    routed = found["llama-mini-lte", "lte", 0.05]
    assert routed.reference == "llama-mini-dense"
    # From 2 to 8 % the logarithm is linear: 5 % is at log(2.5) / log(4) of the way, as for TEAL on the control.
    assert routed.sparsity.value == pytest.approx(0.201 + 0.2 * math.log(2.5) / math.log(4))
    assert routed.sparsity == found["llama-mini-dense", "teal", 0.05].sparsity
    # TEAL can run on the model with routers, LTE not on one without.
    assert found["llama-mini-lte", "teal", 0.05].status == "not measured"
    assert ("llama-mini-dense", "lte", 0.05) not in found


def test_without_the_control_nothing_is_measured(tmp_path):
    write_cell(tmp_path, "dense", 0.0, 0, **of_model("llama-mini-lte"))
    write_cell(tmp_path, "lte", 0.4, 5, **of_model("llama-mini-lte"))
    data = read_given_loss(tmp_path)
    assert {one.status for one in losses(data)} == {"not measured"}
    assert "- Not measured: `lte`." in GIVEN_LOSS.markdown(data)
    rows = list(csv.DictReader(io.StringIO(GIVEN_LOSS.csv(data))))
    assert [(row["status"], row["sparsity"], row["first_cell_sparsity"]) for row in rows] == [
        ("not measured", "", "")
    ] * 3


def test_pruned_weights_and_chosen_groups_stand_beside_methods(records):
    folder, _ = records
    for sparsity, rise in ((0.25, 0.04), (0.5, 0.16)):
        name = f"wanda-{sparsity:g}-bitmap"
        config = {"name": name, "sparsity": sparsity, "index": "bitmap"}
        bits = {"bits_per_weight": 32 * (1 - sparsity) + 1}
        weights = {"name": name, "config": config, "description": "half zeros by Wanda", **bits}
        realised = {
            "realised_sparsity": 0.0,
            "bytes_per_token": 1e7 * (1 - sparsity),
            "dense_bytes_per_token": 1e7,
        }
        write_cell(folder, "dense", 0.0, stretched(rise), realised=realised, quantisation=weights)
    for blocks, share, rise in ((7, 0.9, 0.04), (1, 0.6, 0.16)):
        heads = {"name": "polar", "config": {"name": "polar", "dense_blocks": blocks}}
        heads |= {"groups": 2, "kept": 1, "dense_blocks": blocks}
        realised = {"realised_sparsity": 0.01, "key_value_share": share, "dense_bytes_per_token": 1e7}
        realised["bytes_per_token"] = 1e7 * share
        for method in ("dense", "teal"):  # beside another method it is none of its own
            write_cell(folder, method, 0.0, stretched(rise), realised=realised, heads=heads)
    found = {(one.method, one.loss): one for one in losses(read_given_loss(folder))}
    # Of pruned weights a bit of 32 says which are kept.
    pruned, groups = found["pruned_wanda", 0.05], found["polar", 0.05]
    way = math.log(5 / 4) / math.log(4)
    assert pruned.ends == pytest.approx((0.25 - 1 / 32, 0.5 - 1 / 32))
    assert pruned.sparsity.value == pytest.approx(0.25 - 1 / 32 + 0.25 * way)
    assert groups.ends == pytest.approx((0.1, 0.4))
    assert groups.sparsity.value == pytest.approx(0.1 + 0.3 * way)
    assert found["teal", 0.05].cells == 4
    page = GIVEN_LOSS.markdown(read_given_loss(folder))
    assert "- `pruned_wanda`: weights pruned instead, by Wanda." in page


def test_a_suite_without_its_tasks_or_with_few_items_is_another(records):
    folder, _ = records
    config = CONFIG | {"search": {"name": "medium", "sparse_tokens": "all"}}
    few = {"suite": {"name": "embedded", "config": {"limit": None, "documents": 30, "tasks": []}}}
    write_cell(folder, "dense", 0.0, 0, config=config, **few)
    write_cell(folder, "teal", 0.3, 5, config=config, **few)
    some = {"suite": {"name": "embedded", "config": {"limit": 100, "documents": 30}}}
    limited = config | {"suite": {"limit": 100}}
    write_cell(folder, "dense", 0.0, 0, config=limited, **some)
    write_cell(folder, "teal", 0.3, 5, config=limited, **some)
    suites = [section.suite for section in read_given_loss(folder).sections]
    assert suites == ["embedded", "embedded, limit 100", "heldout"]


def test_nothing_is_told_beyond_the_cells(records):
    folder, _ = records
    found = {(one.method, one.loss): one for one in losses(read_given_loss(folder))}
    early = found["teal", 0.01]  # 2.2 % are lost at 30 % already
    assert (early.status, early.sparsity, early.bytes_per_token) == ("before the first cell", None, None)
    assert found["chess", 0.1].status == "before the first cell"
    assert found["chess", 0.1].ends == pytest.approx((0.3 - 0.12, 0.6 - 0.12))  # net of factors and rotations
    for sparsity in (0.3, 0.6):
        write_cell(folder, "wina", sparsity, stretched(0.02 * sparsity))
    beyond = {one.loss: one for one in losses(read_given_loss(folder)) if one.method == "wina"}
    assert beyond[0.01].status == "measured"
    assert beyond[0.05].status == "not reached"
    assert beyond[0.05].sparsity is None


def test_the_page_says_which_side_a_loss_is_on(records):
    folder, _ = records
    write_cell(folder, "wina", 0.3, 0)
    data = read_given_loss(folder)
    page = GIVEN_LOSS.markdown(data)
    assert "| < 30.0 % |" in page
    assert "*not reached* at 30.1 %" in page  # made-up cells realise a thousandth more
    rows = list(csv.DictReader(io.StringIO(GIVEN_LOSS.csv(data))))
    assert {row["sparsity"] for row in rows if row["status"] != "measured"} == {""}
    assert sum(row["status"] == "measured" for row in rows) == 2


def test_the_mean_is_over_the_seeds_with_every_sparsity(records):
    folder, _ = records
    write_cell(folder, "teal", 0.5, 0, seed=1)
    (seeds,) = {one.seeds for one in losses(read_given_loss(folder)) if one.method == "teal"}
    assert seeds == (0,)


def test_as_many_cells_at_other_sparsities_are_no_seed_of_the_mean(records):
    folder, _ = records
    for sparsity in (0.35, 0.45, 0.55, 0.65):
        write_cell(folder, "teal", sparsity, stretched(sparsity), seed=1)
    (seeds,) = {one.seeds for one in losses(read_given_loss(folder)) if one.method == "teal"}
    assert seeds == (0,)


def test_crossings_by_hand():
    rises = np.array([[1.0, -1.0, 3.0, 0.1], [4.0, 3.0, 5.0, 0.2]])
    wanted = np.array([2.0, 1.0, 2.0, 2.0])
    # e^(log 1 + ½·log 4) is 2; −1 and 3 have 1 in their middle; one starts above, one stays below.
    assert crossing(rises, wanted) == pytest.approx([0.5, 0.5, 0.0, 1.0])

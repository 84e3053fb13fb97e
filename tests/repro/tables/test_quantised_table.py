"""The table of sparse and quantised weights: cells made up, each number known."""

from __future__ import annotations

import csv
import io
import math

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.measured.quantised_cells import read_quantised
from wisparse.repro.tables.against_bytes.quantised_table import QUANTISED, budget_table

from .made_up_cells import write_cell


def weights(name: str, **settings: object) -> dict:
    return {
        "name": name,
        "config": {"name": name, "lm_head": "int8", **settings},
        "description": name,
        "bits_per_weight": 8.0,
    }


def cell(root, method, sparsity, broken, megabytes, quantisation=None, seed=0, **changes):
    realised = {
        "realised_sparsity": sparsity, "bytes_per_token": 1e6 * megabytes, "dense_bytes_per_token": 1e7,
    }  # fmt: skip
    found = {} if quantisation is None else {"quantisation": quantisation}
    return write_cell(root, method, sparsity, broken, realised=realised, seed=seed, **found, **changes)


@pytest.fixture
def folder(tmp_path):
    """Own weights 10 MB dense; int8 5 MB; `broken` n makes perplexity 1.01^n of the dense one."""
    eight = weights("int8")
    cell(tmp_path, "dense", 0.0, 0, 10.0)
    cell(tmp_path, "teal", 0.4, 10, 6.0)
    cell(tmp_path, "teal", 0.6, 30, 4.0)
    cell(tmp_path, "wina", 0.4, 12, 6.0)
    cell(tmp_path, "dense", 0.0, 2, 5.0, eight)
    cell(tmp_path, "teal", 0.4, 14, 3.0, eight)
    return tmp_path


def test_rows_are_means_over_the_seeds_beside_both_dense_models(folder):
    cell(folder, "teal", 0.4, 20, 6.5, seed=1)
    data = read_quantised(folder)
    rows = list(csv.DictReader(io.StringIO(QUANTISED.csv(data))))
    assert [(row["quantisation"], row["method"], row["sparsity"]) for row in rows] == [
        ("none", "dense", "0.0"), ("none", "teal", "0.4"), ("none", "wina", "0.4"), ("none", "teal", "0.6"),
        ("int8", "dense", "0.0"), ("int8", "teal", "0.4"),
    ]  # fmt: skip
    assert rows[0]["perplexity_ratio"] == ""
    assert rows[1]["seeds"] == "2"
    assert float(rows[1]["bytes_per_token"]) == 6.25e6
    assert float(rows[1]["perplexity_ratio"]) == pytest.approx(1.01**15, abs=1e-4)
    assert float(rows[4]["perplexity_ratio"]) == pytest.approx(1.01**2, abs=1e-4)
    assert rows[4]["ratio_in_format"] == ""
    assert float(rows[5]["perplexity_ratio"]) == pytest.approx(1.01**14, abs=1e-4)
    assert float(rows[5]["ratio_in_format"]) == pytest.approx(1.01**12, abs=1e-4)


def test_a_budget_takes_the_dense_model_of_a_format_or_what_lies_between_two_cells(folder):
    data = read_quantised(folder)
    found = data.within("llama-mini", "none", "teal", 5e6)
    assert found.ratio.value == pytest.approx(math.exp((10 + 30) / 2 * math.log(1.01)))
    assert found.sparsity == pytest.approx(0.5)
    near_dense = data.within("llama-mini", "none", "teal", 8e6)
    assert near_dense.ratio.value == pytest.approx(1.01**5)
    assert data.within("llama-mini", "none", "teal", 3.9e6) is None
    assert data.within("llama-mini", "int8", "teal", 8e6)[1:3] == ("dense", 0.0)
    assert data.within("llama-mini", "int8", "teal", 4e6).ratio.value == pytest.approx(1.01**8)
    assert data.best_within("llama-mini", "none", 7e6).method == "teal"
    lines = budget_table(data, "llama-mini", (0.8, 0.4, 0.1)).splitlines()[2:]
    assert lines == [
        "| 80% | 8.00 | 1.051 [1.051, 1.051] teal 20% | **1.020 [1.020, 1.020] dense** |",
        "| 40% | 4.00 | 1.348 [1.348, 1.348] teal 60% | **1.083 [1.083, 1.083] teal 20% |".replace(
            "20% |", "20%** |"
        ),
    ]


def test_the_page_and_the_plot(folder, tmp_path):
    data = read_quantised(folder)
    page = QUANTISED.markdown(data)
    assert "## llama-mini: perplexity ÷ dense at equal bytes a token" in page
    assert "llama-mini: weights quantised here to int8" in page
    assert len(QUANTISED.figure(data).axes) == 1


def test_one_format_under_two_settings_is_refused(folder):
    cell(folder, "wina", 0.4, 16, 3.0, weights("int8", group=3))
    with pytest.raises(UserError, match="records of different quantisation do not belong in one table"):
        read_quantised(folder)
    with pytest.raises(UserError, match=r"run `python repro/run\.py experiment=quantised` first"):
        read_quantised(folder, keep=lambda record: False)


def test_without_a_model_to_compare_with_there_is_no_table(tmp_path):
    cell(tmp_path, "dense", 0.0, 2, 5.0, weights("wanda-0.5-bitmap", index="bitmap"))
    with pytest.raises(UserError, match="run method=dense quantisation=none"):
        read_quantised(tmp_path)

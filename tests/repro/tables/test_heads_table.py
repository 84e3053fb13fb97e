"""The table of quality against head density: cells made up, each number known."""

from __future__ import annotations

import csv
import io

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.measured.head_cells import read_heads
from wisparse.repro.tables.heads_table import HEADS
from wisparse.repro.tables.table1 import TABLE1

from .made_up_cells import write_cell


def cell(root, method, sparsity, broken, kept=None, seed=0, epochs=5, **changes):
    """A finished cell of a model with four groups."""
    share = 1.0 if kept is None else (1 + 3 * kept / 4) / 4
    realised = {
        "realised_sparsity": sparsity,
        "bytes_per_token": 1e6 * (9 + share),
        "dense_bytes_per_token": 1e7,
    }
    heads = {}
    if kept is not None:
        realised["key_value_share"] = share
        config = {"name": "polar", "density": kept / 4, "training": {"epochs": epochs}}
        heads = {"heads": {"name": "polar", "config": config, "groups": 4, "kept": kept, "dense_blocks": 1}}
        found = {"heads": {"groups_found": [0.6, 0.8, 0.7]}}
        heads["plan"] = {"seconds_by_stage": {"routers": 4.0}, "provenance": {"evaluations": 0, **found}}
    return write_cell(root, method, sparsity, broken, realised=realised, seed=seed, **heads, **changes)


@pytest.fixture
def folder(tmp_path):
    """`broken` n makes perplexity 1.01^n of the dense one."""
    cell(tmp_path, "dense", 0.0, 0)
    cell(tmp_path, "dense", 0.0, 10, kept=2)
    cell(tmp_path, "dense", 0.0, 40, kept=1)
    cell(tmp_path, "teal", 0.5, 5)
    cell(tmp_path, "teal", 0.5, 25, kept=2)
    return tmp_path


def test_methods_that_were_never_routed_are_left_out(folder):
    cell(folder, "wina", 0.5, 7)
    cell(folder, "teal", 0.6, 9)
    rows = list(csv.DictReader(io.StringIO(HEADS.csv(read_heads(folder)))))
    assert {(row["method"], row["sparsity"]) for row in rows} == {("dense", "0.0"), ("teal", "0.5")}


def test_rows_stand_beside_the_dense_model_and_the_method_with_all_groups(folder):
    cell(folder, "dense", 0.0, 14, kept=2, seed=1)
    rows = list(csv.DictReader(io.StringIO(HEADS.csv(read_heads(folder)))))
    assert [(row["method"], row["density"], row["seeds"]) for row in rows] == [
        ("dense", "1.0000", "1"), ("dense", "0.5000", "2"), ("dense", "0.2500", "1"),
        ("teal", "1.0000", "1"), ("teal", "0.5000", "1"),
    ]  # fmt: skip
    assert [row["key_value_share"] for row in rows[:3]] == ["1.0000", "0.6250", "0.4375"]
    assert [row["groups_found"] for row in rows[:2]] == ["", "0.7000"]
    assert (rows[0]["perplexity_ratio"], rows[0]["ratio_in_method"]) == ("", "")
    for row, dense, method in ((1, 12, 12), (2, 40, 40), (3, 5, 0), (4, 25, 20)):
        assert float(rows[row]["perplexity_ratio"]) == pytest.approx(1.01**dense, abs=1e-4)
        if method:
            assert float(rows[row]["ratio_in_method"]) == pytest.approx(1.01**method, abs=1e-4)
    assert rows[3]["ratio_in_method"] == ""
    page = HEADS.markdown(read_heads(folder))
    assert "1 of 4 key-value groups from block 1 on" in page
    assert "62.5 %" in page


def test_what_does_not_belong_together_is_refused(folder):
    with pytest.raises(UserError, match="records of different heads do not belong"):
        TABLE1.read(folder)
    cell(folder, "teal", 0.5, 26, kept=1, epochs=60)
    with pytest.raises(UserError, match="records of different training of routers do not belong"):
        read_heads(folder)
    with pytest.raises(UserError, match=r"run `python repro/run\.py experiment=heads` first"):
        read_heads(folder, keep=lambda record: False)

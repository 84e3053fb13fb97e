"""Settings tried: rows at TEAL's bytes, and the one that loses least where no calibration has read."""

from __future__ import annotations

import csv
import io
import sys

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.measured.real_cells import read_tried
from wisparse.repro.tables.against_bytes.tried import best_changes, main, tried_rows, with_series

from ..made_up_cells import CONFIG, write_cell

APART = "wikitext_apart"


def cell(root, name, sparsity, broken, *changes, suite=APART, stage="coarse", **more):
    config = CONFIG | {"suite": CONFIG["suite"] | {"name": suite}}
    command = f"python repro/run.py experiment=x 'method.name={name}' {' '.join(changes)}"
    suite, plan = {"name": suite, "config": {}}, {"seconds_by_stage": {stage: 1.0}, "provenance": {}}
    more = {"seed": 0} | more
    write_cell(root, name, sparsity, broken, config=config, suite=suite, command=command, plan=plan, **more)


@pytest.fixture
def records(tmp_path):
    """Two settings between TEAL's cells, the one better on the text apart worse on another."""
    root = tmp_path / "records"
    cell(root, "dense", 0.0, 0)
    cell(root, "dense", 0.0, 0, suite="wikitext")
    for sparsity, broken in ((0.4, 5), (0.5, 10), (0.6, 30)):
        cell(root, "teal", sparsity, broken)
        cell(root, "teal", sparsity, broken, suite="wikitext")
    for sparsity, ours in ((0.5, 8), (0.6, 20)):
        cell(root, "again", sparsity, ours, "method.sparse_rounds=1", "method.basis.steps=7")
        cell(root, "again", sparsity, 40, suite="wikitext")
        cell(root, "plain", sparsity, ours + 2)
        cell(root, "plain", sparsity, 1, suite="wikitext")
        cell(root, "trained", sparsity, ours - 5, "method.rate=2", stage="training")
    cell(root, "half_done", 0.5, 1, "method.sparse_rounds=2")
    return root


def test_the_setting_is_chosen_on_the_text_apart_over_all_sparsities(records):
    data = read_tried(records)
    assert best_changes(data, trained=False) == ["method.sparse_rounds=1", "method.basis.steps=7"]
    assert best_changes(data, trained=True) == ["method.rate=2"]
    assert best_changes(data, trained=False, sparsity=0.5) == ["method.sparse_rounds=2"]


def test_without_a_comparison_nothing_is_chosen(tmp_path):
    cell(tmp_path, "dense", 0.0, 0)
    cell(tmp_path, "again", 0.5, 3)
    with pytest.raises(UserError, match="no setting was compared with teal on suite=wikitext_apart"):
        best_changes(read_tried(tmp_path), trained=False)


def test_rows_are_shares_at_teals_bytes_and_take_the_place_of_their_series(records, tmp_path):
    path = tmp_path / "tried.csv"
    old = [{"series": series, "setting": "old"} for series in ("4", "5")]
    columns = "series,setting,sparsity,text,realised_sparsity,perplexity,divergence,rise_share,between_cells"
    path.write_text(f"{columns}\n4,old,0.5,t,0.5,20,,0.9,true\n5,old,0.5,t,0.5,20,,0.9,true\n")
    arguments = ["tried", str(records), "--series", "5", "--rows", str(path)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", arguments)
        main()
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["setting"] for row in rows].count("old") == len(old) - 1
    text = "WikiText-2 validation, articles apart"
    again = [row for row in rows if row["setting"].startswith("again, ") and row["text"] == text]
    mine = next(row for row in again if row["sparsity"] == "0.5")
    changes = "method.sparse_rounds=1, method.basis.steps=7"
    assert mine["setting"] == f"again, {changes}, 16 sequences of 512 tokens of embedded, protocol half"
    assert float(mine["rise_share"]) == pytest.approx((1.01**8 - 1) / (1.01**10 - 1), abs=1e-3)
    assert mine["between_cells"] == "true"
    assert {row["series"] for row in rows} == {"4", "5"}


def test_a_series_begins_a_file(records):
    rows = list(tried_rows(read_tried(records), 1))
    assert with_series([], rows, 1).startswith("series,setting,sparsity")


def test_dense_cells_alone_end_in_one_line(tmp_path, monkeypatch, capsys):
    cell(tmp_path, "dense", 0.0, 0)
    path = tmp_path / "rows.csv"
    monkeypatch.setattr(sys, "argv", ["tried", str(tmp_path), "--rows", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code != 0
    assert "nothing but dense cells is there; measure a setting first" in capsys.readouterr().err
    assert not path.exists()


def test_rows_of_several_seeds_are_told_apart(records):
    cell(records, "plain", 0.5, 9, seed=1)
    named = [row["setting"] for row in tried_rows(read_tried(records), 5) if row["setting"].startswith("plain")]
    assert sum(name.endswith("protocol half, seed 1") for name in named) == 1
    assert sum(name.endswith("protocol half") for name in named) == len(named) - 1 > 0


def test_a_suite_without_a_perplexity_leaves_it_empty(tmp_path):
    cell(tmp_path, "dense", 0.0, 0, dense_documents=[])
    cell(tmp_path, "again", 0.5, 3, dense_documents=[])
    (row,) = tried_rows(read_tried(tmp_path), 5)
    assert (row["perplexity"], row["rise_share"]) == (None, None)

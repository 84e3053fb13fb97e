"""Table 2 from records: its rows in the paper's order, the steps by hand, and what it refuses."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.tables.table2 import STAGES, TABLE2, read_ablation

from .made_up_cells import TASKS, write_cell

BROKEN = {"wisparse_activation_only": 40, "wisparse_weight": 24, "wisparse": 10}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    root = tmp_path / "records"
    write_cell(root, "dense", 0.0, 0)
    for method, broken in BROKEN.items():
        write_cell(root, method, 0.5, broken)
    return root


def csv_rows(root: Path) -> dict[str, dict[str, str]]:
    return {row["method"]: row for row in csv.DictReader(io.StringIO(TABLE2.csv(read_ablation(root))))}


def test_the_rows_are_the_stages_in_the_papers_order(records):
    rows = csv_rows(records)
    assert [row["configuration"] for row in rows.values()] == list(STAGES.values())
    assert rows["dense"]["sparsity"] == "0.0"
    assert rows["wisparse_coarse"]["status"] == "not measured"


def test_steps_by_hand(records):
    rows = csv_rows(records)
    assert rows["wisparse_activation_only"]["step"] == ""
    assert float(rows["wisparse_weight"]["step"]) == pytest.approx(8.0)  # 16 of 200 items in each task
    assert float(rows["wisparse_weight"]["step_low"]) < 8.0 < float(rows["wisparse_weight"]["step_high"])
    assert float(rows["wisparse_weight"]["step_perplexity_ratio"]) == pytest.approx(1.01**-16, abs=1e-4)


def test_a_step_over_a_missing_stage_is_left_out(records):
    assert csv_rows(records)["wisparse"]["step"] == ""


def test_the_markdown_has_the_csvs_numbers(records):
    text = TABLE2.markdown(read_ablation(records))
    assert "not 7-8B results" in text
    lines = {line.split("|")[2].strip(): line for line in text.splitlines() if line.startswith("| llama-mini")}
    for row in csv_rows(records).values():
        line = lines[row["configuration"]]
        if row["status"] == "measured":
            for task in TASKS:
                assert f"| {float(row[task]):.1f} |" in line
            assert f"| {float(row['average']):.2f} |" in line
        else:
            assert "| not measured |" in line
    assert "+8.00 [" in lines["+ weight"]


def test_other_methods_are_refused(records):
    write_cell(records, "teal", 0.5, 20)
    with pytest.raises(UserError, match="holds teal, which Table 2 has no row for"):
        read_ablation(records)

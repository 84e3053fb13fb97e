"""What plans take, and WiSparse's search at as many generations as its budget has."""

import csv
import io

import pytest
from wisparse.repro.measured.real_cells import read_tried
from wisparse.repro.tables.against_bytes.plan_times import PLAN_TIMES

from ..made_up_cells import CONFIG, write_cell


def cell(root, name, generations, sparsity=0.5, **stages):
    search = CONFIG["search"] | {"name": "paper", "generations": 400}
    config = CONFIG | {"suite": CONFIG["suite"] | {"name": "embedded"}, "search": search}
    config |= {"allocation": {"generations": generations}}
    plan = {"seconds_by_stage": stages, "provenance": {}}
    suite = {"name": "embedded", "config": {}}
    write_cell(root, name, sparsity, 3, config=config, suite=suite, plan=plan, seed=0)


def test_a_tenth_of_the_generations_is_taken_ten_times(tmp_path):
    cell(tmp_path, "wisparse", 40, calibration=1.0, coarse=20.0, greedy=9.0)
    cell(tmp_path, "equal_loss", 400, calibration=1.0, correction=20.0)
    data = read_tried(tmp_path)
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(PLAN_TIMES.csv(data)))}
    assert float(rows["wisparse"]["seconds"]) == pytest.approx(30)
    assert float(rows["wisparse"]["whole_seconds"]) == pytest.approx(1 + 200 + 9)
    assert float(rows["equal_loss"]["whole_seconds"]) == pytest.approx(21)
    assert float(rows["equal_loss"]["share"]) == pytest.approx(0.1)
    assert rows["wisparse"]["share"] == ""
    assert "WiSparse ran 40 of 400 generations" in PLAN_TIMES.markdown(data)


def test_plans_are_compared_at_one_sparsity(tmp_path):
    cell(tmp_path, "wisparse", 400, 0.3, coarse=100.0)
    cell(tmp_path, "wisparse", 400, 0.5, coarse=20.0)
    cell(tmp_path, "equal_loss", 400, 0.5, correction=10.0)
    cell(tmp_path, "equal_loss", 400, 0.6, correction=10.0)
    rows = csv.DictReader(io.StringIO(PLAN_TIMES.csv(read_tried(tmp_path))))
    shares = {(row["method"], row["sparsity"]): row["share"] for row in rows}
    assert shares == {
        ("wisparse", "0.3"): "",
        ("wisparse", "0.5"): "",
        ("equal_loss", "0.5"): "0.5000",
        ("equal_loss", "0.6"): "",
    }

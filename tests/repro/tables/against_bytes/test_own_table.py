"""Own methods beside published ones: which cells are shown, and what is said to be trained."""

import csv
import io

import pytest
from wisparse.repro.measured.real_cells import read_own
from wisparse.repro.tables.against_bytes.own_table import OWN

from ..made_up_cells import write_cell

TRAINED = {"seconds_by_stage": {"correction": 4.0, "training": 6.0}, "provenance": {"evaluations": 7}}


@pytest.fixture
def data(tmp_path):
    write_cell(tmp_path, "dense", 0.0, 0)
    for sparsity, broken in ((0.4, 5), (0.5, 10), (0.6, 30)):
        write_cell(tmp_path, "teal", sparsity, broken)
    write_cell(tmp_path, "chess", 0.5, 40)
    write_cell(tmp_path, "equal_loss_folded", 0.5, 8)
    write_cell(tmp_path, "equal_loss_trained", 0.5, 6, plan=TRAINED)
    write_cell(tmp_path, "teal", 0.5, 60, protocol={"name": "all", "description": "every token"})
    return read_own(tmp_path)


def test_published_methods_stand_beside_own_ones_where_these_were_measured(data):
    assert [(place[1], place[2]) for place in data.cells] == [
        ("dense", 0.0), ("teal", 0.4), ("teal", 0.5), ("equal_loss_folded", 0.5), ("equal_loss_trained", 0.5),
        ("teal", 0.6),
    ]  # fmt: skip
    assert [section.protocol for section in data.sections] == ["half"]


def test_shares_and_what_is_trained(data):
    rows = {
        row["method"]: row for row in csv.DictReader(io.StringIO(OWN.csv(data))) if row["sparsity"] == "0.5"
    }
    rise = {broken: 1.01**broken - 1 for broken in (6, 8, 10)}
    for method, broken, trained, seconds in (
        ("equal_loss_folded", 8, "False", 4.0),
        ("equal_loss_trained", 6, "True", 10.0),
    ):
        assert float(rows[method]["rise_share"]) == pytest.approx(rise[broken] / rise[10], abs=1e-3)
        assert rows[method]["trained"] == trained
        assert float(rows[method]["plan_seconds"]) == seconds
    assert "Lightly trained, the model's weights as they are: equal_loss_trained." in OWN.markdown(data)


def test_what_is_trained_is_marked_apart(data):
    lines = [line for line in OWN.markdown(data).splitlines() if "| 50 % |" in line]
    assert [line.split("|")[1].strip() for line in lines] == ["teal", "equal_loss_folded", "equal_loss_trained"]
    perplexities = [line.split("|")[6].strip() for line in lines]
    assert [text.startswith("**") for text in perplexities] == [False, True, False]

"""Methods on several amounts of calibration text, beside TEAL on the largest."""

import csv
import io

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.measured.real_cells import read_text_amounts
from wisparse.repro.report.summaries.own import amounts_table
from wisparse.repro.tables.against_bytes.text_amounts import TEXT_AMOUNTS

from ..made_up_cells import write_cell


def cell(root, name, sparsity, broken, sequences=130, **changes):
    text = {"name": "english_wikitext", "sequences": sequences, "length": 2048}
    write_cell(root, name, sparsity, broken, calibration=text, **changes)


@pytest.fixture
def folder(tmp_path):
    cell(tmp_path, "dense", 0.0, 0)
    for sparsity, broken in ((0.4, 10), (0.5, 20), (0.6, 40)):
        cell(tmp_path, "teal", sparsity, broken)
    for sequences, broken in ((16, 16), (65, 12), (130, 8)):
        cell(tmp_path, "equal_loss_folded_long", 0.5, broken, sequences)
    return tmp_path


def rise(broken):
    return 1.01**broken - 1


def test_every_amount_is_held_against_teal_on_the_largest(folder):
    cell(folder, "teal", 0.5, 33, 16)
    rows = list(csv.DictReader(io.StringIO(TEXT_AMOUNTS.csv(read_text_amounts(folder)))))
    own = [row for row in rows if row["method"] == "equal_loss_folded_long"]
    assert [int(row["tokens"]) for row in own] == [32_768, 133_120, 266_240]
    shares = [rise(broken) / rise(20) for broken in (16, 12, 8)]
    assert [float(row["rise_share"]) for row in own] == pytest.approx(shares, abs=1e-4)
    assert [int(row["tokens"]) for row in rows if row["method"] == "teal"] == [32_768, 266_240]


def test_what_has_one_amount_is_left_out_and_none_with_two_is_refused(folder, tmp_path_factory):
    cell(folder, "wina", 0.5, 20)
    assert "wina" not in TEXT_AMOUNTS.csv(read_text_amounts(folder))
    other = tmp_path_factory.mktemp("one")
    cell(other, "dense", 0.0, 0)
    cell(other, "teal", 0.5, 20)
    with pytest.raises(UserError, match="on two amounts of text; run"):
        read_text_amounts(other)


def test_the_page_has_a_column_an_amount(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "text_amounts.csv"
    assert amounts_table(path) == "*Not measured.*"
    cell(folder, "equal_loss_folded_long", 0.6, 30, 16)
    cell(folder, "equal_loss_folded_long", 0.6, 20)
    path.write_text(TEXT_AMOUNTS.csv(read_text_amounts(folder)))
    head, _, at_half, at_60 = amounts_table(path).splitlines()
    assert head == "|  | sparsity | seeds | 32,768 tokens | 133,120 tokens | 266,240 tokens |"
    assert at_half.startswith("| `equal_loss_folded_long` | 50% | 1 | 0.78 [")
    assert at_60.split(" | ")[4] == "not measured"

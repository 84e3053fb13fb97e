"""The frontier on a real model, from committed records of published and own methods."""

from __future__ import annotations

import csv
import io

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.archive import unpacked
from wisparse.repro.figures.frontier_plot import frontier_figure
from wisparse.repro.measured.real_cells import read_real_frontier
from wisparse.repro.report.tables import display_table
from wisparse.repro.tables.against_bytes.frontier_table import FRONTIER
from wisparse.repro.tables.against_bytes.real_frontier_table import REAL_FRONTIER

from ...conftest import ROOT

PUBLISHED = unpacked(ROOT / "results" / "real" / "records" / "table1")
RECORDS = unpacked(ROOT / "results" / "real" / "records" / "method")
PRUNED = unpacked(ROOT / "results" / "real" / "records" / "pruned")
OTHER_TEXT = unpacked(ROOT / "results" / "real" / "records" / "method_text")
QUANTISED = unpacked(ROOT / "results" / "real" / "records" / "quantised")
SPARSITIES = (0.0, 0.5, 0.6)


def at_once(record):
    """Whether a cell is of one suite, protocol, seed and search budget, as those of a frontier are."""
    found = (record["suite"]["name"], record["protocol"]["name"], record["seed"])
    return (*found, record["config"]["search"]["name"]) == ("wikitext", "half", 0, "medium")


def of_half(record):
    """Some cells of WikiText-2 under one protocol: enough to compare at equal bytes."""
    return (
        at_once(record)
        and record["method"]["name"] in ("dense", "teal", "equal_loss_folded", "equal_loss_trained")
        and record["sparsity"] in (*SPARSITIES, 0.4)
    )


@pytest.fixture(scope="module")
def data():
    return read_real_frontier(PUBLISHED, RECORDS, keep=of_half)


@pytest.fixture(scope="module")
def rows(data):
    return list(csv.DictReader(io.StringIO(REAL_FRONTIER.csv(data))))


def test_columns_are_those_of_every_frontier_and_three_more(rows):
    of_frontier = [column.name for column in FRONTIER.columns(())]
    assert list(rows[0]) == [*of_frontier, "protocol", "calibration", "trained"]


def test_every_row_says_under_which_protocol_and_whether_it_was_trained(rows):
    assert {row["protocol"] for row in rows} == {"half"}
    trained = {row["method"]: row["trained"] for row in rows}
    assert trained["equal_loss_trained"] == "True"
    assert {trained["teal"], trained["equal_loss_folded"]} == {"False"}


def test_the_page_compares_with_teal_at_equal_bytes(data):
    page = REAL_FRONTIER.markdown(data)
    (line,) = [line for line in page.splitlines() if "| 50 % | equal_loss_trained |" in line]
    share = float(line.split("|")[-2].split()[0])
    assert 0.3 < share < 1.0  # TEAL itself is 1
    assert not [line for line in page.splitlines() if "| 50 % | teal |" in line]


def test_methods_that_are_trained_have_broken_lines(rows):
    axis = frontier_figure(rows).axes[0]
    styles = {line.get_label(): line.get_linestyle() for line in axis.get_lines()}
    assert (styles["equal_loss_trained"], styles["equal_loss_folded"]) == ("--", "-")
    assert axis.get_title() == "smollm2-135m, protocol half,\ncalibrated on english"


def test_the_report_shows_its_columns(rows):
    shown = display_table("real_frontier", "real-frontier", rows)
    assert {"protocol", "calibration", "trained"} <= {column.name for column in shown.columns}


def test_methods_are_compared_with_those_of_their_own_calibration_text():
    def on_either(record):
        shown = ("dense", "teal", "equal_loss_folded")
        return at_once(record) and record["method"]["name"].startswith(shown)

    data = read_real_frontier(PUBLISHED, RECORDS, OTHER_TEXT, keep=on_either)
    assert [section.text for section in data.sections] == ["english", "english_wikitext"]
    lines = [line for line in REAL_FRONTIER.markdown(data).splitlines() if "| equal_loss_folded_long |" in line]
    compared = [line.split("|")[1].strip() for line in lines if "÷" not in line and "1 of 1" in line]
    assert set(compared) == {"english_wikitext"}
    parts = [axis.get_title() for axis in frontier_figure(list(csv.DictReader(io.StringIO(
        REAL_FRONTIER.csv(data))))).axes]  # fmt: skip
    assert [part.splitlines()[1] for part in parts] == [f"calibrated on {s.text}" for s in data.sections]


def test_several_suites_are_not_one_frontier():
    def both(record):
        return record["seed"] == 0 and record["method"]["name"] == "equal_loss_folded"

    with pytest.raises(UserError, match="one suite"):
        read_real_frontier(PUBLISHED, RECORDS, keep=both)


def by_wanda(record):
    return record["quantisation"]["name"].startswith("wanda")


def test_pruned_weights_stand_in_the_frontier_by_how_and_how_many_are_zero():
    rows = list(csv.DictReader(io.StringIO(REAL_FRONTIER.csv(read_real_frontier(PRUNED, keep=by_wanda)))))
    assert {row["method"] for row in rows} == {"pruned_wanda"}
    read = {float(row["sparsity"]): float(row["bytes_per_token"]) for row in rows}
    assert set(read) >= {0.4, 0.5, 0.6}
    assert read[0.4] > read[0.5] > read[0.6]
    assert all(float(row["search_seconds"]) > 0 for row in rows)  # pruning takes a pass over the text


def test_the_page_says_what_is_counted_of_pruned_weights():
    page = REAL_FRONTIER.markdown(read_real_frontier(PRUNED, keep=by_wanda))
    assert "`pruned_wanda`: weights pruned instead, by Wanda, with a bitmap" in page
    assert "1 bit for each place" in page
    without = read_real_frontier(PUBLISHED, RECORDS, keep=of_half)
    assert "1 bit for each place" not in REAL_FRONTIER.markdown(without)


def test_lines_of_pruned_weights_are_dotted(rows):
    pruned = [row | {"method": "pruned_wanda"} for row in rows if row["method"] == "teal"]
    axis = frontier_figure([*rows, *pruned]).axes[0]
    assert {line.get_label(): line.get_linestyle() for line in axis.get_lines()}["pruned_wanda"] == ":"


def of_int8(record):
    return (record.get("quantisation") or {"name": "none"})["name"] == "int8"


def test_weights_in_few_bits_are_another_question():
    with pytest.raises(UserError, match="not quantisation=int8"):
        read_real_frontier(QUANTISED, keep=of_int8)

"""The frontier from the records that Table 1 is made of."""

from __future__ import annotations

import copy
import csv
import io
import json
import math

import numpy as np
import pytest
from wisparse.method.errors import UserError
from wisparse.repro.archive import unpacked
from wisparse.repro.configuration import digest
from wisparse.repro.figures.frontier_plot import main as plot
from wisparse.repro.measured.cells import MeasuredCell
from wisparse.repro.measured.comparison import Between
from wisparse.repro.measured.frontier import read_frontier
from wisparse.repro.measured.rise import rise_between
from wisparse.repro.records import save_record
from wisparse.repro.tables.against_bytes.frontier_table import FRONTIER, columns

from ...conftest import ROOT

RECORDS = unpacked(ROOT / "results" / "records" / "table1")


@pytest.fixture(scope="module")
def data():
    return read_frontier(RECORDS)


def test_rows_are_the_records(data):
    rows = list(csv.DictReader(io.StringIO(FRONTIER.csv(data))))
    assert list(rows[0]) == [column.name for column in columns(())]
    assert len(rows) == len(list(RECORDS.glob("*/record.json")))
    records = [json.loads(path.read_text()) for path in RECORDS.glob("llama-mini-teal-0.5-*/record.json")]
    (row,) = [
        row for row in rows if (row["model"], row["method"], row["sparsity"]) == ("llama-mini", "teal", "0.5")
    ]
    assert float(row["perplexity"]) == pytest.approx(records[0]["perplexity"], abs=1e-4)
    assert float(row["dense_perplexity"]) < float(row["perplexity"])
    assert int(row["search_evaluations"]) == records[0]["plan"]["provenance"]["evaluations"] > 0


@pytest.mark.slow
def test_wisparse_is_its_own_measure(data):
    for model, sparsity in (("llama-mini", 0.5), ("qwen-mini", 0.6)):
        found = data.comparison(model, "wisparse", sparsity)
        assert (found.rise_share.value, found.rise_share.low, found.rise_share.high) == pytest.approx((1, 1, 1))
        assert found.average_difference.value == found.average_difference.high == 0.0
        assert found.time_share == 1.0


@pytest.mark.slow
def test_a_method_is_compared_at_the_bytes_that_wisparse_reads(data):
    teal, wisparse = (data.cells["llama-mini", method, 0.6, 0].record for method in ("teal", "wisparse"))
    less = data.cells["llama-mini", "teal", 0.7, 0].record
    dense = data.dense("llama-mini").record["perplexity"]
    read = [record["realised"]["bytes_per_token"] for record in (less, wisparse, teal)]
    assert read[0] < read[1] < read[2]
    share = (read[1] - read[0]) / (read[2] - read[0])
    rises = [math.log(record["perplexity"] - dense) for record in (less, teal)]
    expected = math.exp((1 - share) * rises[0] + share * rises[1]) / (wisparse["perplexity"] - dense)
    found = data.comparison("llama-mini", "teal", 0.6)
    assert found.rise_share.value == pytest.approx(expected)
    assert found.rise_share.low < expected < found.rise_share.high
    assert found.bytes_per_token == read[1]
    average = (1 - share) * less["average"] + share * teal["average"] - wisparse["average"]
    assert found.average_difference.value == pytest.approx(average)


@pytest.mark.slow
def test_a_missing_cell_is_bridged_by_its_neighbours():
    data = read_frontier(RECORDS)
    full = data.comparison("llama-mini", "teal", 0.5)
    assert full.bridged == ()
    del data.cells["llama-mini", "teal", 0.5, 0]
    bridged = data.comparison("llama-mini", "teal", 0.5)
    assert (bridged.bridged, bridged.seeds_text, bridged.time_share) == ((0,), "1 (1 bridged)", None)
    assert 0 < abs(bridged.rise_share.value / full.rise_share.value - 1) < 0.25
    del data.cells["llama-mini", "teal", 0.6, 0]
    assert data.comparison("llama-mini", "teal", 0.5) is None


@pytest.mark.slow
def test_nothing_is_extrapolated(data):
    # At 70 % TEAL reads more than WiSparse, and it was measured at no higher sparsity.
    assert data.comparison("llama-mini", "teal", 0.7) is None
    assert "| llama-mini | 70 % | wina |" in FRONTIER.markdown(data)


def test_towards_the_dense_model_the_rise_itself_is_linear():
    cell = MeasuredCell({}, {}, RECORDS)
    assert rise_between(Between(cell, cell, 0.25), 4.0, 0.0) == pytest.approx(3.0)
    found = rise_between(Between(cell, cell, 0.5), np.array([4.0, 2.0]), np.array([1.0, 0.0]))
    assert found == pytest.approx([2, 1])


@pytest.mark.slow
def test_seeds_are_averaged_and_their_spread_is_shown(tmp_path, data):
    for seed in (0, 1):
        for method, sparsity in (("dense", 0.0), ("wisparse", 0.5), ("wina", 0.5), ("wina", 0.6)):
            cell = data.cells["qwen-mini", method, sparsity, 0]
            record = cell.record | {"seed": seed}
            items = copy.deepcopy(cell.items)
            if method == "wina":
                for document in items["documents"]:
                    document["nats"] *= 1 + seed / 50
                nats = sum(document["nats"] for document in items["documents"])
                size = sum(document["bytes"] for document in items["documents"])
                record["perplexity"] = math.exp(nats / record["n_tokens"])
                record["bits_per_byte"] = nats / math.log(2) / size
            record["items_sha256"] = digest(items)
            save_record(tmp_path / f"{method}-{sparsity}-{seed}", record, items)
    found = read_frontier(tmp_path).comparison("qwen-mini", "wina", 0.5)
    assert found.seeds == (0, 1)
    assert found.rise_share_by_seed[0] < found.rise_share_by_seed[1]
    assert found.rise_share.value == pytest.approx(sum(found.rise_share_by_seed) / 2)


@pytest.mark.slow
def test_the_plot_is_drawn_from_the_table(tmp_path, data, capsys):
    with pytest.raises(SystemExit):
        plot([str(tmp_path)])
    assert "frontier.csv is missing" in capsys.readouterr().err
    (tmp_path / "frontier.csv").write_text(FRONTIER.csv(data))
    plot([str(tmp_path)])
    drawn = (tmp_path / "frontier.svg").read_text()
    assert all(f">{name}<" in drawn for name in ("llama-mini", "qwen-mini", "wisparse", "teal"))
    assert (tmp_path / "frontier.png").stat().st_size > 10_000


def test_no_records_say_so(tmp_path):
    with pytest.raises(
        UserError, match=r"holds no records of this table; run `python repro/run.py experiment=frontier`"
    ):
        read_frontier(tmp_path)


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        ("tokens", "not the same text, or how documents begin or the tokenizer has changed"),
        ("protocol", "records of different protocol do not belong in one table"),
    ],
)
def test_cells_of_one_model_read_one_text_under_one_protocol(tmp_path, differs, says):
    for change, name in enumerate(("llama-mini-teal-0.5", "llama-mini-wina-0.5")):
        (source,) = RECORDS.glob(f"{name}-*")
        record, items = (json.loads((source / file).read_text()) for file in ("record.json", "items.json"))
        if differs == "tokens":
            items["documents"][0]["tokens"] += change
            record["n_tokens"] += change
            nats = sum(document["nats"] for document in items["documents"])
            record["perplexity"] = math.exp(nats / record["n_tokens"])
            record["items_sha256"] = digest(items)
        else:
            record["config"]["protocol"]["dense_share"] += change / 4
        save_record(tmp_path / name, record, items)
    with pytest.raises(UserError, match=says):
        read_frontier(tmp_path)

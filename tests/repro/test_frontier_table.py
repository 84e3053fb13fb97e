"""The frontier from the records that Table 1 is made of."""

from __future__ import annotations

import csv
import io
import json

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.frontier_table import CSV_COLUMNS, frontier_csv, frontier_markdown, read_frontier

from ..conftest import ROOT

RECORDS = ROOT / "results" / "records" / "table1"


@pytest.fixture(scope="module")
def data():
    return read_frontier(RECORDS)


def test_rows_are_the_records(data):
    rows = list(csv.DictReader(io.StringIO(frontier_csv(data))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(rows) == len(list(RECORDS.glob("*/record.json")))
    records = [json.loads(path.read_text()) for path in RECORDS.glob("llama-mini-teal-0.5-*/record.json")]
    (row,) = [
        row for row in rows if (row["model"], row["method"], row["sparsity"]) == ("llama-mini", "teal", "0.5")
    ]
    assert float(row["perplexity"]) == pytest.approx(records[0]["perplexity"], abs=1e-4)
    assert float(row["dense_perplexity"]) < float(row["perplexity"])
    assert int(row["search_evaluations"]) == records[0]["plan"]["provenance"]["evaluations"] > 0


def test_wisparse_is_its_own_measure(data):
    lines = [line.split(" | ") for line in frontier_markdown(data).splitlines() if "| wisparse |" in line]
    assert {line[7] for line in lines} == {"1.00"}


def test_no_records_or_different_texts_say_so(tmp_path):
    with pytest.raises(UserError, match="no record with a perplexity"):
        read_frontier(tmp_path)
    for place, name in enumerate(("llama-mini-teal-0.5", "llama-mini-wina-0.5")):
        (source,) = RECORDS.glob(f"{name}-*")
        target = tmp_path / name
        target.mkdir()
        record = json.loads((source / "record.json").read_text())
        record["n_tokens"] += place
        (target / "record.json").write_text(json.dumps(record))
        (target / "items.json").write_bytes((source / "items.json").read_bytes())
    with pytest.raises(UserError, match="another text"):
        read_frontier(tmp_path)

"""Pruned weights beside TEAL: rows of the records, TEAL's bytes at half the width."""

from wisparse.repro.report.summaries.pruned import pruned_table
from wisparse.repro.tables.csv_rows import csv_text

from ...tables.made_up_cells import write_cell


def test_rows_are_those_of_the_records(tmp_path):
    pruned = {
        "name": "wanda-0.5-bitmap",
        "config": {"index": "bitmap"},
        "description": "50% zeros by Wanda, with a bitmap, lm_head as it was",
        "bits_per_weight": 9.0,
    }
    realised = {"realised_sparsity": 0.0, "bytes_per_token": 1.76e8, "dense_bytes_per_token": 1.76e8}
    write_cell(tmp_path / "records", "dense", 0.0, 0, quantisation=pruned, realised=realised)
    teal = {
        "suite": "wikitext",
        "protocol": "all",
        "search_budget": "medium",
        "method": "teal",
        "sparsity": "0.5",
        "bytes_per_token": "337000000",
        "perplexity": "29.03",
        "status": "measured",
        "reference": "teal",
    }
    (tmp_path / "table").write_text(csv_text(list(teal), [teal]))
    lines = pruned_table(tmp_path / "records", tmp_path / "table").splitlines()[2:]
    assert lines[0].startswith("| `wanda-0.5-bitmap`: 50% zeros by Wanda | dense | 176 | ")
    assert lines[1:4] == [
        "| its own | `teal` 40%, `all` | not measured | not measured |",
        "| its own | `teal` 50%, `all` | 168 | 29.03 |",
        "| its own | `teal` 60%, `all` | not measured | not measured |",
    ]
    assert lines[4:] == [
        f"| its own | `teal` {share}%, `half` | not measured | not measured |" for share in (40, 50, 60)
    ]

"""Pruned weights beside TEAL: rows of the records, TEAL's bytes at half the width."""

import math

from wisparse.repro.report.summaries.pruned import pruned_small_table, pruned_table
from wisparse.repro.tables.csv_rows import csv_text

from ...tables.made_up_cells import write_cell


def pruned(share: int) -> dict[str, object]:
    """How a record describes weights of which a share in percent is zero."""
    name = f"wanda-{share / 100:g}-bitmap"
    return {
        "name": name,
        "config": {"name": name, "sparsity": share / 100, "index": "bitmap"},
        "description": f"{share}% zeros by Wanda, with a bitmap, lm_head as it was",
        "bits_per_weight": 9.0,
    }


def test_rows_are_those_of_the_records(tmp_path):
    realised = {"realised_sparsity": 0.0, "bytes_per_token": 1.76e8, "dense_bytes_per_token": 1.76e8}
    write_cell(tmp_path / "records", "dense", 0.0, 0, quantisation=pruned(50), realised=realised)
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


def test_small_models_are_compared_at_the_bytes_that_wisparse_reads(tmp_path):
    """A rise of 4 % beside one of 1 % at the same bytes; at 40 % nothing was pruned."""
    write_cell(tmp_path, "dense", 0.0, 0)
    for sparsity in (0.4, 0.5):
        write_cell(tmp_path, "wisparse", sparsity, 1)
    realised = {"realised_sparsity": 0.0, "bytes_per_token": 5e6, "dense_bytes_per_token": 5e6}
    broken = math.log(1.04) / math.log(1.01)
    write_cell(tmp_path, "dense", 0.0, broken, quantisation=pruned(50), realised=realised)
    assert pruned_small_table((tmp_path,)).splitlines() == [
        "| model | MB/token | `pruned_wanda` | `teal` | `equal_loss` |",
        "|---|---:|---:|---:|---:|",
        "| llama-mini | 5.0 | 4.00 [4.00, 4.00] | not measured | not measured |",
    ]

"""Formats, and plans beside quantised weights, as the page shows them."""

import csv

from wisparse.repro.report.summaries.quantised_plans import formats_table, plans_table
from wisparse.repro.studies.quantised_plans import COLUMNS

OF = {"model": "llama-mini", "seed": "0", "ratio": "1.0404", "ratio_low": "1.02", "ratio_high": "1.06"}


def written(tmp_path, *rows):
    path = tmp_path / "plans.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dict.fromkeys(COLUMNS, "") | OF | row for row in rows)
    return path


def test_a_format_has_a_line_and_plans_stand_apart(tmp_path):
    path = written(
        tmp_path,
        {"part": "format", "method": "dense", "setting": "int4", "bits_a_weight": "4.25"},
        {"part": "format", "method": "teal", "setting": "int4", "bits_a_weight": "4.25", "ratio": "1.1"},
        {"part": "format", "method": "dense", "setting": "e4m3"},
        {
            "part": "norms",
            "method": "ours",
            "quantisation": "int8",
            "setting": "own",
            "compared_with": "stored",
        },
    )
    assert formats_table(path).splitlines() == [
        "| model | seed | format | bits a weight | dense | teal |",
        "|---|---:|---|---:|---|---|",
        "| llama-mini | 0 | int4 | 4.25 | 1.040 [1.020, 1.060] | 1.100 [1.020, 1.060] |",
        "| llama-mini | 0 | e4m3 | 8, and scales | 1.040 [1.020, 1.060] | not measured |",
    ]
    assert plans_table(path).splitlines()[2:] == [
        "| llama-mini | 0 | int8 | ours | own | stored | 1.040 [1.020, 1.060] |"
    ]

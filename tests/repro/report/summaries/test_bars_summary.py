"""Aims beside what was reached."""

import csv

from wisparse.repro.report.summaries.bars import bars_in_short, bars_table, mini_bars_table, reached
from wisparse.repro.tables.against_bytes.bars_table import BARS

NAMES = [name for column in BARS.columns(()) for name in column.names]


def row(**changes: str) -> dict[str, str]:
    known = {"rise_share": "0.4949", "seeds": "3", "published": "teal", "verdict": "met", "aim": "0.7"}
    return dict.fromkeys(NAMES, "") | known | changes


def test_what_was_reached_names_the_published_method_and_the_seeds():
    assert reached(row()) == "met: 0.49 of `teal`, 3 seeds"
    points = {"average_minus_published": "2.79", "average_minus_published_low": "1.449"}
    assert reached(row(seeds="1", **points, average_minus_published_high="4.11")) == (
        "met: 0.49 of `teal`, +2.8 [+1.4, +4.1] points, 1 seed"
    )
    assert reached(row(rise_share="", verdict="not measured")) == "not measured"


def test_beside_spon_stands_what_is_held_against_another():
    beside = "met: 0.49 of `teal`, 3 seeds, 0.95 of trained SPON's"
    assert reached(row(rise_share_of_trained="0.9484")) == beside
    apart = row(rise_share_of_trained="not comparable at equal bytes")
    assert reached(apart) == "met: 0.49 of `teal`, 3 seeds, SPON not comparable"
    assert reached(apart | {"verdict": "open"}).startswith("open: 0.49 of `teal`")
    same = row(published="spon_long", rise_share_of_trained="0.4949")
    assert reached(same) == "met: 0.49 of `spon_long`, 3 seeds"


def test_a_share_that_rounds_to_the_aim_has_a_digit_more():
    assert reached(row(rise_share="0.6523", aim="0.65", verdict="missed")) == "missed: 0.652 of `teal`, 3 seeds"


def test_a_line_holds_both_suites_of_the_real_model_and_small_models_stand_apart(tmp_path):
    real = {"model": "smollm2-135m", "protocol": "half", "method": "ours", "sparsity": "0.5", "aim": "0.7"}
    text = {"calibration": "english", "trained": "no"}
    rows = [
        row(suite="wikitext", calibration_tokens="32768", **real, **text),
        row(suite="english", rise_share="", verdict="not measured", **real, **text),
        row(model="qwen-mini", suite="embedded", protocol="all", sparsity="0.6", aim="0.5", trained="yes",
            calibration="unseen", published="wina", verdict="missed", calibration_tokens="131072"),
    ]  # fmt: skip
    path = tmp_path / "bars.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, NAMES)
        writer.writeheader()
        writer.writerows(rows)
    assert bars_table(path).splitlines()[2:] == [
        "| training-free | `ours` | prose, 32,768 tokens | half | 50% | 0.70 | met: 0.49 of `teal`, 3 seeds "
        "| not measured |"
    ]
    assert mini_bars_table(path).splitlines()[2:] == [
        "| lightly trained | code that the models were not trained on, 131,072 tokens | qwen-mini | all | 60% "
        "| 0.50 | missed: 0.49 of `wina`, 3 seeds |"
    ]


def test_methods_in_short_count_what_was_met_and_name_what_was_missed(tmp_path):
    place = {"model": "smollm2-135m", "protocol": "all", "method": "ours", "sparsity": "0.6", "aim": "0.65"}
    text = {"calibration": "english", "trained": "no", "calibration_tokens": "32768"}
    rows = [
        row(suite="wikitext", **place, **text),
        row(suite="english", **place | {"rise_share": "0.6523", "verdict": "missed"}, **text),
        row(
            suite="english", **place | {"rise_share": "", "verdict": "not measured", "sparsity": "0.5"}, **text
        ),
    ]
    path, times = tmp_path / "bars.csv", tmp_path / "plan_times.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, NAMES)
        writer.writeheader()
        writer.writerows(rows)
    times.write_text("method,share\nours,0.1038\nwisparse,\n")
    assert bars_in_short(path, times).splitlines()[2:] == [
        "| `ours` | prose, 32,768 tokens | 1 | 2 of 3 | English, all, 60%: 0.652 of `teal` for 0.65 | 0.104 |"
    ]

"""The real model's table: sections, means over seeds, and shares at the bytes that a cell itself reads."""

from __future__ import annotations

import copy
import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.measured.cells import every_cell
from wisparse.repro.measured.real_cells import Section, read_readings, read_real
from wisparse.repro.report.summaries.real import readings_table, real_table
from wisparse.repro.tables.against_bytes.real_rows import INCOMPARABLE, rows
from wisparse.repro.tables.against_bytes.real_table import REAL
from wisparse.repro.tables.kept_records import keep_records
from wisparse.repro.tables.make import main
from wisparse.repro.tables.text import settings_lines

from .made_up_cells import CONFIG, TASKS, write_cell

SECTION = Section("llama-mini", "embedded", "half", "quick")
BYTES = 1e7


def write(root: Path, method: str, sparsity: float, broken: int, **changes: object) -> None:
    """A made-up cell of a seed, suite, protocol or budget other than the usual, each named in its settings."""
    seed, bytes_read = changes.pop("seed", 0), changes.pop("bytes_read", BYTES * (1 - sparsity))
    config = copy.deepcopy(CONFIG)
    config["calibration"]["seed"] = seed
    for part in ("protocol", "suite", "search"):
        config[part]["name"] = changes.get(part, config[part].get("name", "embedded"))
    realised = {"realised_sparsity": sparsity, "bytes_per_token": bytes_read, "dense_bytes_per_token": BYTES}
    write_cell(
        root, method, sparsity, broken, seed=seed, config=config, realised=realised,
        protocol=config["protocol"] | {"description": "some tokens"},
        suite={"name": config["suite"]["name"], "config": {}},
        method={"name": method, "config": {"name": method, "seed": seed}},
    )  # fmt: skip


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """TEAL at 40 to 60 % and CHESS between two of its cells, two seeds; CHESS beyond them, and under `all`."""
    root = tmp_path / "records"
    write(root, "dense", 0.0, 0)
    for seed in (0, 1):
        for sparsity, broken in ((0.4, 5), (0.5, 10 + 4 * seed), (0.6, 30)):
            write(root, "teal", sparsity, broken, seed=seed)
        write(root, "chess", 0.5, 20, seed=seed, bytes_read=BYTES * 0.45)
    write(root, "chess", 0.6, 40, bytes_read=BYTES * 0.3)
    write(root, "chess", 0.5, 60, protocol="all")
    return root


def test_shares_at_the_bytes_that_the_cell_itself_reads_by_hand(records):
    data = read_real(records)
    chess = next(row for row in rows(data, SECTION) if (row.method, row.sparsity) == ("chess", 0.5))
    # CHESS reads what lies halfway between TEAL's cells at 50 and 60 %: so does the logarithm of the rise.
    rise = {broken: 1.01**broken - 1 for broken in (10, 14, 20, 30)}
    shares = [rise[20] / (rise[of] * rise[30]) ** 0.5 for of in (10, 14)]
    assert chess.rise_share.value == pytest.approx(sum(shares) / 2)
    assert chess.rise_share.low <= chess.rise_share.value <= chess.rise_share.high
    # In points: 20 of 200 items are broken, TEAL's halfway 20 and 22.
    assert chess.minus_reference.value == pytest.approx((0 + 1) / 2)
    assert chess.of_record("average") == data.cells[SECTION, "chess", 0.5, 1].record["average"]
    assert chess.seeds_text == "0, 1"


def test_tasks_that_were_left_out_are_named(tmp_path):
    suite = {"name": "embedded", "config": {"tasks": [*TASKS, "lambada", "sciq"]}}
    write_cell(tmp_path, "dense", 0.0, 0, suite=suite)
    lines = settings_lines(every_cell([tmp_path]))
    assert next(line for line in lines if line.startswith("Suite")).endswith("; not measured: lambada, sciq.")


def test_beyond_the_reference_nothing_is_compared(records):
    data = read_real(records)
    beyond = next(row for row in rows(data, SECTION) if (row.method, row.sparsity) == ("chess", 0.6))
    assert (beyond.rise_share, beyond.minus_reference, beyond.comparison_text) == (None, None, INCOMPARABLE)
    assert REAL.markdown(data).count(f" {INCOMPARABLE} |") == 2 * 2  # in both sections, rise and average


def test_a_row_of_the_csv_is_a_cell(records):
    found = list(csv.DictReader(io.StringIO(REAL.csv(read_real(records)))))
    measured = [row for row in found if row["status"] == "measured"]
    assert len(measured) == 1 + 6 + 3 + 2  # the dense cell stands in both sections
    absent = [row for row in found if row["status"] == "not measured"]
    assert [(row["method"], row["sparsity"], row["seed"]) for row in absent] == [("chess", "0.6", "1")]
    # Of the sparsity at which TEAL alone was measured, for others to be compared with, no others are listed.
    assert [row["method"] for row in found if row["sparsity"] == "0.4"] == ["teal", "teal"]
    assert {row["compared"] for row in found if row["method"] == "teal"} == {""}
    assert all(float(row[task]) > 0 for row in measured for task in TASKS)


def test_what_does_not_belong_together_is_refused(records):
    write(records, "wina", 0.5, 10)
    write_cell(records, "rsparse", 0.5, 10, suite={"name": "embedded", "config": {}})
    with pytest.raises(UserError, match="records of different suite"):
        read_real(records)


def test_suites_stand_side_by_side_in_one_csv(records):
    write(records, "dense", 0.0, 0, suite="english")
    write(records, "teal", 0.5, 10, suite="english", search="paper")
    data = read_real(records)
    assert [section.suite for section in data.sections] == ["embedded", "embedded", "english"]
    assert "## english, protocol half, search paper" in REAL.markdown(data)
    assert data.dense(data.sections[-1]).record["suite"]["name"] == "english"  # of another budget


def test_the_readmes_block_is_the_mean_over_the_seeds(records, tmp_path):
    none = tmp_path / "none.csv"
    assert real_table(none, none) == "*Not measured.*"
    for method, broken, seed in (("dense", 0, 0), ("teal", 10, 0), ("teal", 20, 1)):
        sparsity = 0.5 * (method != "dense")
        write(tmp_path / "english", method, sparsity, broken, seed=seed, suite="english", search="medium")
    (tmp_path / "table1.csv").write_text(REAL.csv(read_real(tmp_path / "english")))
    lines = [line.split(" | ") for line in real_table(tmp_path / "table1.csv", none).splitlines()]
    averages = {line[0].lstrip("| "): line[1:3] for line in lines[2:]}
    assert averages["dense"] == ["75.2", "75.2"]
    assert averages["teal"] == ["67.8", "not measured"]  # less by 10 and by 20 of 200 items: 70.25 and 65.25


def test_readings_stand_beside_what_they_are_compared_with_and_only_where_they_were_measured(records, tmp_path):
    for method in ("dense", "teal", "wina", "wisparse", "wisparse_error_late"):
        sparsity = 0.5 * (method != "dense")
        write(tmp_path / "wikitext", method, sparsity, 10, suite="wikitext", search="medium")
    for method in ("dense", "teal", "wisparse"):
        write(tmp_path / "english", method, 0.5 * (method != "dense"), 20, suite="english", search="medium")
    data = read_readings(tmp_path / "wikitext", tmp_path / "english")
    assert {section.suite for section, *_ in data.cells} == {"wikitext"}
    assert [method for _, method, *_ in data.cells] == ["dense", "teal", "wisparse", "wisparse_error_late"]


def test_the_page_on_readings_takes_no_mean_over_suites(tmp_path):
    path = tmp_path / "readings.csv"
    head = "suite,protocol,search_budget,method,sparsity,seed,status,perplexity,rise_share,reference,compared"
    row = "{},half,medium,wisparse,0.5,0,measured,{},{},teal,"
    path.write_text("\n".join([head, row.format("wikitext", 25, 1.2), row.format("english", 99, 9.9)]) + "\n")
    assert "| 25.00 | not measured | 1.20 | not measured |" in readings_table(path)


def test_the_same_cell_under_two_budgets_is_kept_twice(records, tmp_path):
    data = read_real(records)
    again = {(place[0]._replace(budget="paper"), *place[1:]): cell for place, cell in data.cells.items()}
    keep_records(replace(data, cells=data.cells | again), [records], tmp_path / "kept")
    assert len(list((tmp_path / "kept").rglob("record.json"))) == 2 * len(data.cells)


def test_a_frontier_of_one_suite_and_protocol_among_several(records, tmp_path, monkeypatch, capsys):
    command = ["tables", "frontier", "--records", str(records), "--output", str(tmp_path / "frontier")]
    for wrong, message in (
        (["protocol"], "is none of suite=NAME"),
        ([], "records of different protocol do not belong in one table"),
    ):
        monkeypatch.setattr("sys.argv", [*command, *(["--where", *wrong] if wrong else [])])
        with pytest.raises(SystemExit):
            main()
        assert message in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*command, "--where", "protocol=half", "suite=embedded"])
    main()
    assert len(list(csv.DictReader((tmp_path / "frontier.csv").open()))) == 1 + 6 + 3


def test_a_share_of_some_of_the_rows_seeds_says_of_how_many(records):
    """Its perplexity is the mean over two seeds, and what it is compared with has one that reaches there."""
    write(records, "chess", 0.45, 20, bytes_read=BYTES * 0.45)
    write(records, "chess", 0.45, 90, seed=1, bytes_read=BYTES * 0.2)
    lines = [line.split(" | ") for line in REAL.markdown(read_real(records)).splitlines()]
    shown = {(line[0], line[1]): line for line in lines if line[0] == "| chess" and line[2] == "0, 1"}
    assert [text.endswith(", 1 of 2") for text in shown["| chess", "45 %"][-2:]] == [True, False]
    assert shown["| chess", "45 %"][-1].endswith("], 1 of 2 |")
    assert all(" of 2" not in text for text in shown["| chess", "50 %"])


def test_the_readmes_block_says_of_how_many_seeds_where_they_are_fewer(tmp_path):
    path, none = tmp_path / "table1.csv", tmp_path / "none.csv"
    head = "suite,protocol,search_budget,method,sparsity,seed,status,perplexity,rise_share,average,reference"
    shares = {"teal": ("", ""), "was": (1.5,), "wina": (1.2, "")}  # was has fewer seeds than any that is shown
    rows = [
        f"wikitext,half,medium,{method},0.5,{seed},measured,{20 + seed},{share},,teal"
        for method, of_method in shares.items()
        for seed, share in enumerate(of_method)
    ]
    rows.append("wikitext,half,medium,dense,0.0,0,measured,19,,,teal")
    for method, half, more in (("teal", 0, 2), ("wina", 0, 2), ("prox", 2, 1)):  # of prox one at 60 %
        share = "" if method == "teal" else 1.3
        for sparsity, seeds in ((0.5, half), (0.6, more)):
            line = f"wikitext,half,medium,{method},{sparsity},{{}},measured,30,{share},,teal"
            rows += map(line.format, range(seeds))
    path.write_text("\n".join([head, *rows]) + "\n")
    lines = [line.split(" | ") for line in real_table(path, none).splitlines()]
    shown = {line[0].lstrip("| "): [line[3], line[5]] for line in lines[2:]}
    assert shown == {
        "dense": ["19.00", ""],
        "teal": ["20.50", ""],
        "wina": ["20.50", "1.20 (1 seed)"],
    }

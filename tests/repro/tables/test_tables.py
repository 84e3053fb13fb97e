"""Table 1 from records: its numbers by hand, its layout, and what it refuses."""

from __future__ import annotations

import csv
import io
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from wisparse.method.errors import UserError
from wisparse.repro.figures import make as figures
from wisparse.repro.figures import massive_plot
from wisparse.repro.measured.paired_bootstrap import PairedResamples, interval
from wisparse.repro.records import write_json
from wisparse.repro.tables.make import main
from wisparse.repro.tables.table import Column
from wisparse.repro.tables.table1 import TABLE1, columns
from wisparse.repro.tables.table_data import read_table
from wisparse.repro.tables.text import table_row

from .made_up_cells import DENSE_OUTCOMES, DOCUMENTS, TASKS, write_cell


@pytest.fixture
def records(tmp_path: Path) -> Path:
    root = tmp_path / "records"
    for method, sparsity, broken in [
        ("dense", 0.0, 0),
        ("teal", 0.5, 20),
        ("wina", 0.5, 14),
        ("wisparse", 0.5, 10),
        ("teal", 0.7, 40),
        ("wisparse", 0.7, 30),
    ]:
        write_cell(root, method, sparsity, broken)
    note = {"model": {"name": "llama-mini"}, "method": {"name": "chess"}, "sparsity": 0.7, "maximum": 0.69}
    write_json(root / "llama-mini-chess-0.7-00000000" / "unreachable.json", note)
    return root


def csv_rows(root: Path) -> dict[tuple[str, str], dict[str, str]]:
    rows = csv.DictReader(io.StringIO(TABLE1.csv(read_table(root))))
    return {(row["method"], row["sparsity"]): row for row in rows}


def test_the_csv_has_one_row_a_cell_in_the_columns_asked_for(records):
    header = TABLE1.csv(read_table(records)).splitlines()[0].split(",")
    assert header == [name for column in columns(TASKS) if not column.optional for name in column.names]
    assert header[:8] == [
        "model", "method", "sparsity", "realised_sparsity", "bytes_per_token", "perplexity", "average", "kept"
    ]  # fmt: skip
    assert tuple(header[8 : 8 + len(TASKS)]) == TASKS
    assert len(csv_rows(records)) == 1 + 2 * 4


def test_quantised_weights_have_a_column_and_a_sentence_where_there_are_any(tmp_path):
    found = {"name": "int4", "config": {"name": "int4"}, "description": "int4 in groups of 64", "bytes": 1}
    for method, sparsity, broken in [("dense", 0.0, 0), ("teal", 0.5, 20)]:
        write_cell(tmp_path, method, sparsity, broken, quantisation=found | {"bits_per_weight": 4.25})
    assert {row["quantisation"] for row in csv_rows(tmp_path).values() if row["perplexity"]} == {"int4"}
    page = TABLE1.markdown(read_table(tmp_path))
    assert "quantised here to int4 in groups of 64, 4.25 bits a weight" in page
    assert "| Weights |" in page


def test_the_csv_by_hand(records):
    rows = csv_rows(records)
    dense = 50 * sum(found.mean() for found in DENSE_OUTCOMES.values())
    row = rows["wisparse", "0.5"]
    assert float(row["average"]) == pytest.approx(dense - 5.0, abs=1e-3)  # 10 of 200 items in each task
    assert float(row["kept"]) == pytest.approx(100 * (dense - 5.0) / dense, abs=1e-3)
    assert float(row["average_minus_dense"]) == pytest.approx(-5.0, abs=1e-4)
    assert float(row["average_minus_dense_low"]) < -5.0 < float(row["average_minus_dense_high"]) < 0.0
    assert float(row["perplexity_ratio"]) == pytest.approx(1.01**10, abs=1e-4)
    assert float(row["realised_sparsity"]) == pytest.approx(0.501)
    assert float(rows["dense", "0.0"]["kept"]) == 100.0
    assert rows["chess", "0.7"]["status"] == "out of reach (max 0.690)"
    assert rows["wina", "0.7"]["status"] == "not measured"
    assert rows["wina", "0.7"]["average"] == ""


def test_the_same_stretch_of_every_document_leaves_no_doubt(records):
    # Each document's perplexity is the dense one times 1.01¹⁰: paired, the ratio is the same in every resample.
    row = csv_rows(records)["wisparse", "0.5"]
    assert row["perplexity_ratio_low"] == row["perplexity_ratio_high"] == row["perplexity_ratio"]


def test_the_markdown_marks_the_best_and_names_what_is_missing(records):
    text = TABLE1.markdown(read_table(records))
    lines = {tuple(line.replace(" ", "").split("|")[2:4]): line for line in text.splitlines() if "|" in line}
    average = read_table(records).cells["llama-mini", "wisparse", 0.5].record["average"]
    assert f"**{average:.2f}**" in lines["wisparse", "50%"]
    assert "**" not in lines["teal", "50%"]
    assert "out of reach (max 0.690)" in lines["chess", "70%"]
    assert "not measured" in lines["wina", "70%"]
    assert "not 7-8B results" in text
    for said in (
        "half of the tokens",
        "Seed 0",
        "16 × 512",
        "next_line 200",
        "`aaaaaaaaaa`",
        "float32 on CPU (2 threads)",
    ):
        assert said in text
    assert "float32 on CPU (2 threads)" in text
    assert "| llama-mini | 50 % |" in text.split("## WiSparse against the best baseline")[1]
    assert "| wina |" in text.split("## WiSparse against the best baseline")[1]


def test_the_same_records_give_the_same_table(records):
    assert TABLE1.markdown(read_table(records)) == TABLE1.markdown(read_table(records))


def test_of_two_records_of_a_cell_the_newer_counts(records):
    write_cell(records, "teal", 0.5, 1, utc="2026-02-01T00:00:00+00:00")
    write_cell(records, "wina", 0.5, 1, utc="2025-02-01T00:00:00+00:00")
    rows = csv_rows(records)
    assert float(rows["teal", "0.5"]["average_minus_dense"]) == pytest.approx(-0.5, abs=1e-4)
    assert float(rows["wina", "0.5"]["average_minus_dense"]) == pytest.approx(-7.0, abs=1e-4)


def test_batch_sizes_may_differ_between_machines(records):
    other = read_table(records).cells["llama-mini", "wisparse", 0.5].record
    suite = {"limit": None, "batch_tokens": 32768}
    write_cell(records, "wisparse", 0.6, 15, config=other["config"] | {"suite": suite})
    assert ("llama-mini", "wisparse", 0.6) in read_table(records).cells


def test_the_place_of_the_data_may_differ_but_not_the_data(records):
    other = read_table(records).cells["llama-mini", "wisparse", 0.5].record
    suite = other["config"]["suite"] | {"data_root": "/elsewhere"}
    write_cell(records, "wisparse", 0.6, 15, config=other["config"] | {"suite": suite})
    assert ("llama-mini", "wisparse", 0.6) in read_table(records).cells
    alike = read_table(records).cells["llama-mini", "wisparse", 0.6].record["tasks"]
    tasks = {name: task | {"settings": {"data_sha256": "0"}} for name, task in alike.items()}
    write_cell(records, "teal", 0.65, 15, tasks=tasks)
    with pytest.raises(UserError, match="different task data"):
        read_table(records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"protocol": {"name": "all"}}}, "different protocol"),
        ({"config": {"suite": {"limit": 100}}}, "different suite"),
        ({"config": {"calibration": {"name": "file"}}}, "different calibration"),
        ({"config": {"search": {"name": "paper", "sparse_tokens": "all"}}}, "different search"),
        ({"config": {"search": {"name": "quick", "sparse_tokens": "protocol"}}}, "different search"),
        ({"seed": 1}, "different seed"),
        (
            {"dense_documents": [entry | {"tokens": entry["tokens"] + 1} for entry in DOCUMENTS]},
            r"3465 of \d+: not the same text, or how documents begin",
        ),
        ({"method": {"name": "wisparse", "config": {"coarse": False}}}, "with different settings"),
    ],
)
def test_records_that_do_not_belong_together_are_refused(records, changes, message):
    other = read_table(records).cells["llama-mini", "wisparse", 0.5].record
    if "config" in changes:
        changes = {"config": other["config"] | changes["config"]}
    write_cell(records, "wisparse", 0.6, 15, **changes)
    with pytest.raises(UserError, match=message):
        read_table(records)


def test_a_damaged_record_and_an_empty_folder_are_one_line(records, tmp_path, monkeypatch, capsys):
    next(records.glob("*teal-0.5*/record.json")).write_text("{")
    for folder, message in ((records, "cannot be read"), (tmp_path / "empty", "holds no records")):
        arguments = ["tables", "table1", "--records", str(folder), "--output", str(tmp_path / "out" / "table1")]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_table_can_be_made_again_from_the_records_it_kept(records, tmp_path, monkeypatch, capsys):
    output, kept = tmp_path / "results" / "table1", tmp_path / "results" / "records"
    arguments = [
        "tables",
        "table1",
        "--records",
        str(records),
        "--output",
        str(output),
        "--keep-records",
        str(kept),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert f"written: {output}.md" in capsys.readouterr().out
    shutil.rmtree(records)
    assert TABLE1.markdown(read_table(kept)) == output.with_suffix(".md").read_text()
    assert TABLE1.csv(read_table(kept)) == output.with_suffix(".csv").read_text()


@pytest.mark.parametrize("command", ["tables", "figures", "massive"])
def test_nothing_is_written_where_its_records_cannot_be_kept(records, tmp_path, monkeypatch, capsys, command):
    kept, written = tmp_path / "thesis", tmp_path / "results" / "made"
    kept.mkdir()
    (kept / "thesis.tex").write_text("years of work")
    given = ["--records", str(records), "--output", str(written), "--keep-records", str(kept)]
    monkeypatch.setattr(sys, "argv", [command, *(["table1"] if command == "tables" else []), *given])
    with pytest.raises(SystemExit) as stopped:
        {"tables": main, "figures": figures.main, "massive": massive_plot.main}[command]()
    assert stopped.value.code == 2
    assert "thesis.tex was not kept there" in capsys.readouterr().err
    assert not written.parent.exists()


def test_intervals_agree_with_the_normal_approximation():
    generator = np.random.default_rng(3)
    mine, theirs = ((generator.random(400) < share).astype(float) for share in (0.7, 0.6))
    resamples = PairedResamples({"task": 400}, 0)
    found = interval(
        100 * (mine.mean() - theirs.mean()),
        resamples.averages({"task": mine}) - resamples.averages({"task": theirs}),
    )
    half_width = 1.96 * 100 * (mine - theirs).std() / math.sqrt(400)
    assert found.low == pytest.approx(found.value - half_width, abs=0.4)
    assert found.high == pytest.approx(found.value + half_width, abs=0.4)


def test_pairing_takes_away_what_both_sides_share():
    generator = np.random.default_rng(4)
    nats = generator.uniform(100, 900, 50)
    resamples = PairedResamples({}, 50)
    difference = resamples.log_perplexities(nats, [100] * 50) - resamples.log_perplexities(nats + 1, [100] * 50)
    assert np.allclose(difference, -0.01)
    assert resamples.log_perplexities(nats, [100] * 50).std() > 0.1


def test_a_bar_or_a_line_end_in_a_cell_moves_no_other():
    assert table_row(["a|b", "c\nd", "e"]) == r"| a\|b | c d | e |"


def test_a_measured_row_without_a_value_shows_none():
    average = Column("average", "Average", lambda entry: None, absent="status")
    shown = [average.shown({"average": "", "status": status}) for status in ("measured", "not measured")]
    assert shown == ["", "not measured"]

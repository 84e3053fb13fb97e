"""Tables, plot and summary of a question, from records of Table 1 that are given one."""

import copy
import json
import math
import sys

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.archive import unpacked
from wisparse.repro.configuration import digest
from wisparse.repro.records import load_items, save_record
from wisparse.repro.report.summaries.question import question_summary
from wisparse.repro.tables.csv_rows import read_rows
from wisparse.repro.tables.make import TABLES, main, write_tables
from wisparse.repro.tables.questions.question_data import METHOD, read_question
from wisparse.repro.tables.questions.question_table import question_figure

from ...conftest import ROOT

RECORDS = unpacked(ROOT / "results" / "records" / "table1")
QUESTION = {"title": "Which method?", "name": "method", "factor": METHOD, "reference": "wisparse"}


def give(folder, name, seed=0, question=QUESTION, **changes):
    """A record of Table 1, as if it had been measured for a question."""
    (source,) = RECORDS.glob(f"{name}-*")
    record = copy.deepcopy(json.loads((source / "record.json").read_text()))
    items = load_items(source)
    record["config"] |= {"question": question, **changes}
    record["seed"], record["items_sha256"] = seed, digest(items)
    save_record(folder / f"{name}-{seed}", record, items)
    return record


@pytest.mark.slow
def test_a_method_is_compared_at_the_references_bytes(tmp_path):
    teal = {s: give(tmp_path, f"llama-mini-teal-{s:g}") for s in (0.5, 0.6)}
    reference = give(tmp_path, "llama-mini-wisparse-0.5")
    data = read_question(tmp_path)
    place = next(p for p in data.places if p.method == "teal" and p.sparsity == 0.5)
    wanted = reference["realised"]["bytes_per_token"]
    ends = [teal[s]["realised"]["bytes_per_token"] for s in (0.5, 0.6)]
    share = (wanted - ends[0]) / (ends[1] - ends[0])
    logs = [math.log(teal[s]["perplexity"]) for s in (0.5, 0.6)]
    expected = math.exp((1 - share) * logs[0] + share * logs[1]) / reference["perplexity"]
    found = data.perplexity_ratio(place)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high


@pytest.mark.slow
def test_few_cells_make_a_table_a_plot_and_a_summary(tmp_path):
    """What is lacking leaves gaps, not errors: one model has no reference, one no dense cell."""
    records, output = tmp_path / "records", tmp_path / "answers" / "alpha"
    for name in ("dense-0", "teal-0.5", "teal-0.6", "wisparse-0.5", "rsparse-0.5"):
        give(records, f"llama-mini-{name}")
    give(records, "qwen-mini-teal-0.5")
    give(records, "llama-mini-teal-0.5", seed=1)  # of a seed without a reference
    write_tables(TABLES["question"], read_question(records), output)
    rows = {
        (row["model"], row["method"]): row
        for row in read_rows(output.with_suffix(".csv"))
        if row["sparsity"] in ("0.0", "0.5")
    }
    assert rows["llama-mini", "teal"]["seeds"] == "2"
    assert rows["qwen-mini", "teal"]["perplexity_ratio"] == ""
    alone = rows["llama-mini", "rsparse"]  # one sparsity is no curve
    assert (alone["perplexity_ratio"], alone["equal_bytes"]) == ("", "not comparable at equal bytes")
    assert float(alone["nominal_perplexity_ratio"]) > 1.0
    assert "not comparable at equal bytes" in output.with_suffix(".md").read_text(encoding="utf-8")
    assert output.with_suffix(".png").stat().st_size > 10_000
    ratio = float(rows["llama-mini", "teal"]["perplexity_ratio"])
    lines = question_summary(output.parent).splitlines()
    (answered,) = [line for line in lines if "(alpha.md)" in line]
    assert f"`teal` {ratio:.3f} ({ratio:.3f} to {ratio:.3f})" in answered
    assert "`rsparse` not comparable at equal bytes" in answered
    asked = len(list((ROOT / "conf" / "experiment").glob("question_*.yaml")))
    assert sum("not measured" in line for line in lines) == asked - 1


@pytest.mark.parametrize(("path", "ending"), [(None, " (embedded models)"), ("/models/of-others", "")])
def test_a_plot_says_embedded_of_embedded_models_alone(tmp_path, path, ending):
    for name in ("llama-mini-teal-0.5", "llama-mini-wisparse-0.5"):
        give(tmp_path, name, **({"model": {"path": path, "name": "llama-mini"}} if path else {}))
    figure = question_figure(read_question(tmp_path))
    assert figure.get_suptitle() == QUESTION["title"] + ending


def test_a_line_looks_alike_for_every_model(tmp_path):
    for name in ("llama-mini-teal-0.5", "llama-mini-wisparse-0.5", "qwen-mini-wisparse-0.5"):
        give(tmp_path, name)
    figure = question_figure(read_question(tmp_path))
    lines = [bars for axis in figure.axes[:2] for bars in axis.containers if bars.get_label() == "50 %"]
    (first, second) = [bars.lines[0] for bars in lines]
    assert (first.get_color(), first.get_marker()) == (second.get_color(), second.get_marker())

    for name in (
        "llama-mini-rsparse-0.6",
        "llama-mini-teal-0.6",
        "qwen-mini-rsparse-0.6",
        "qwen-mini-rsparse-0.7",
    ):
        give(tmp_path, name)
    figure = question_figure(read_question(tmp_path))  # three sparsities: a line a method
    of_model = [{bars.get_label(): bars.lines[0] for bars in axis.containers} for axis in figure.axes[:2]]
    assert of_model[0].keys() > of_model[1].keys() == {"rsparse", "wisparse"}
    for name, line in of_model[1].items():
        assert line.get_color() == of_model[0][name].get_color()
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == of_model[0].keys()


@pytest.mark.slow
def test_a_table_is_made_again_from_the_archive_of_its_records(tmp_path, monkeypatch, capsys):
    for name in ("llama-mini-teal-0.5", "llama-mini-wisparse-0.5"):
        give(tmp_path / "records", name)
    kept, command = tmp_path / "kept.tar.xz", ["tables", "question", "--output"]
    first = [*command, str(tmp_path / "a"), "--records", str(tmp_path / "records"), "--keep-records", str(kept)]
    monkeypatch.setattr(sys, "argv", first)
    main()
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "b"), "--records", str(kept)])
    main()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(SystemExit):
        main()
    assert "cannot be unpacked" in capsys.readouterr().err


@pytest.mark.slow
def test_of_numbers_the_summary_has_both_ends(tmp_path):
    question = {"title": "?", "name": "step", "factor": "allocation.step", "reference": 0.01}
    for step, name in ((0.005, "wisparse-0.5"), (0.01, "teal-0.5"), (0.02, "wina-0.5"), (0.04, "rsparse-0.5")):
        record = give(tmp_path / "records", f"llama-mini-{name}", question=question, allocation={"step": step})
        path = tmp_path / "records" / f"llama-mini-{name}-0" / "record.json"
        record["method"]["name"] = record["plan"]["provenance"]["method"] = "wisparse"
        path.write_text(json.dumps(record))
    output = tmp_path / "answers" / "evolution_step"
    write_tables(TABLES["question"], read_question(tmp_path / "records"), output)
    (line,) = [line for line in question_summary(output.parent).splitlines() if "evolution_step.md" in line]
    assert "`wisparse` 0.005 " in line
    assert "`wisparse` 0.04 " in line
    assert "0.02" not in line


def test_cells_of_two_questions_are_refused(tmp_path):
    give(tmp_path, "llama-mini-teal-0.5")
    give(tmp_path, "llama-mini-wisparse-0.5", question=QUESTION | {"title": "Another?"})
    with pytest.raises(UserError, match="another question"):
        read_question(tmp_path)

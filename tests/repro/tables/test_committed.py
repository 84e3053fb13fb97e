"""Committed tables against the records that make them: what is declared, and that a changed number is found."""

from __future__ import annotations

import shutil

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.tables.committed import DECLARED, declared, main, wanted

RESULTS = REPOSITORY / "results"
MEASURED = {
    "README", "questions/README", "card-memory", "claims", "heads_speed", "process-scaling", "search-cost",
    "relu/predictor",
}  # fmt: skip
"""Pages, and tables to which the program that measures adds rows of its own."""
ELSEWHERE = {"records/process_scaling", "real/records/pruned_bfloat16"}
"""Records of such a table, and of a page's."""


def test_every_committed_table_and_every_archive_is_declared():
    names = {path.relative_to(RESULTS).with_suffix("").as_posix() for path in RESULTS.rglob("*.md")}
    assert names - MEASURED - {"report"} <= set(declared(RESULTS))
    used = " ".join(argument for command in declared(RESULTS).values() for argument in command).split()
    for archive in RESULTS.rglob("records/**/*.tar.xz"):
        name = archive.relative_to(RESULTS).as_posix().removesuffix(".tar.xz")
        assert name in ELSEWHERE or f"results/{name}" in used, f"no table of {DECLARED} is made from {name}"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A repository with one small table and its records."""
    results = tmp_path / "results"
    (results / "records").mkdir(parents=True)
    for name in ("heads.md", "heads.csv", "records/heads.tar.xz"):
        shutil.copyfile(RESULTS / name, results / name)
    (results / DECLARED).write_text(
        "heads: wisparse.repro.tables heads --records results/records/heads\n"
        "gone: wisparse.repro.tables heads --records results/records/gone\n",
        encoding="utf-8",
    )
    monkeypatch.setattr("sys.argv", ["committed", "heads", "--results", str(results)])
    return results


def test_a_table_that_its_records_make_passes_and_a_changed_number_is_named(copy, capsys):
    main()
    assert "heads: as its records make it" in capsys.readouterr().out
    text = (copy / "heads.md").read_text(encoding="utf-8")
    number = next(word for word in text.split() if word.count(".") == 1 and word.replace(".", "").isdigit())
    (copy / "heads.md").write_text(text.replace(number, "12345.6", 1), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code
    assert "heads.md, line" in said.out
    assert "12345.6" in said.out
    assert "not as committed: heads" in said.err


def test_write_makes_a_table_again(copy, monkeypatch, capsys):
    before = (copy / "heads.csv").read_bytes()
    (copy / "heads.csv").unlink()
    monkeypatch.setattr("sys.argv", ["committed", "heads", "--write", "--results", str(copy)])
    main()
    assert "heads: made again" in capsys.readouterr().out
    assert (copy / "heads.csv").read_bytes() == before


def test_a_table_that_cannot_be_made_is_said(copy, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["committed", "gone", "--results", str(copy)])
    with pytest.raises(SystemExit):
        main()
    assert "gone is not made: " in capsys.readouterr().out


def test_a_name_that_no_table_has_is_refused():
    with pytest.raises(UserError, match="called 'tabel'; there are table1"):
        wanted({"table1": []}, ["tabel"])


def test_a_declaration_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / DECLARED).write_text("- a list\n", encoding="utf-8")
    with pytest.raises(UserError, match="NAME: MODULE ARGUMENTS"):
        declared(tmp_path)

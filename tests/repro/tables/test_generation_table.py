"""The table of what sparse models write, on cells that are made up."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from wisparse.repro.measured.cells import MeasuredCell
from wisparse.repro.measured.real_cells import RealData, Section
from wisparse.repro.tables.against_bytes.generation_table import GENERATION

LENGTH = 40
SECTION = Section("m", "generation", "half", "medium")


def cell(method: str, sparsity: float, first: int, divergence: float) -> MeasuredCell:
    """Two continuations: one like the dense model's, one that differs from `first` on."""
    record = {
        "seed": 0,
        "tasks": {"sum": {"value": 0.5}, "sum_vote": {"value": 0.75}},
        "realised": {"realised_sparsity": sparsity, "bytes_per_token": 2e6},
        "plan": {"seconds_by_stage": {"training": 1.0} if method == "equal_loss_trained" else {}},
    }
    alike = {"first_difference": LENGTH, "divergence": [0.0] * LENGTH, "agreement": [True] * LENGTH}
    other = {
        "first_difference": first,
        "divergence": [0.0] * 8 + [divergence] * (LENGTH - 8),
        "agreement": [place < first for place in range(LENGTH)],
    }
    details = {"continuations": [alike, other], "agreement": {"sum": 0.6, "story": 0.4}}
    return MeasuredCell(record, {"details": details}, Path(method))


@pytest.fixture
def rows():
    cells = {
        (SECTION, "dense", 0.0, 0): cell("dense", 0.0, LENGTH, 0.0),
        (SECTION, "teal", 0.5, 0): cell("teal", 0.5, 10, 0.5),
        (SECTION, "equal_loss_trained", 0.5, 0): cell("equal_loss_trained", 0.5, 20, 0.25),
    }
    text = GENERATION.csv(RealData(cells))
    return {row["method"]: row for row in csv.DictReader(io.StringIO(text))}


def test_what_is_the_same_and_where_it_diverges(rows):
    teal = rows["teal"]
    assert float(teal["same_tokens"]) == (LENGTH + 10) / 2
    assert float(teal["unchanged"]) == 0.5
    assert float(teal["agreement"]) == (LENGTH + 10) / (2 * LENGTH)
    assert (float(teal["divergence_1_8"]), float(teal["divergence_9_32"])) == (0.0, 0.25)
    assert float(teal["divergence_33_64"]) == 0.25  # as far as there are tokens
    assert teal["divergence_129"] == ""


def test_dense_is_itself(rows):
    assert (float(rows["dense"]["unchanged"]), float(rows["dense"]["divergence_9_32"])) == (1.0, 0.0)


def test_arithmetic_and_votes_are_in_percent_and_what_is_trained_is_said(rows):
    teal = rows["teal"]
    assert (float(teal["sum"]), float(teal["sum_vote"]), float(teal["sum_consistency"])) == (50.0, 75.0, 0.6)
    assert [rows[name]["trained"] for name in ("teal", "equal_loss_trained")] == ["False", "True"]


def test_how_far_answers_agree_is_shown_once(rows):
    titles = [column.title for column in GENERATION.shown_columns(list(rows.values()))]
    assert titles.count("sum, answers alike") == 1
    assert "sum_consistency" not in titles


def test_the_best_of_what_is_trained_is_marked_apart():
    cells = {
        (SECTION, name, 0.5, 0): cell(name, 0.5, first, 0.5)
        for name, first in (("teal", 10), ("equal_loss_trained", 30), ("wisparse", 20))
    }
    rows = list(csv.DictReader(io.StringIO(GENERATION.csv(RealData(cells)))))
    assert [row["method"] for row in rows] == ["teal", "wisparse", "equal_loss_trained"]
    assert GENERATION.block(rows[0]) == GENERATION.block(rows[1]) != GENERATION.block(rows[2])

"""One comparison for frontier, questions and tables: at equal bytes, bounded, the same for all who ask."""

import csv
import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wisparse.method.errors import UserError
from wisparse.repro.archive import unpacked
from wisparse.repro.measured.cells import MeasuredCell, every_cell, stored_cells
from wisparse.repro.measured.comparison import Between, Comparison, Outside, at_equal_bytes, bytes_of
from wisparse.repro.measured.frontier import read_frontier
from wisparse.repro.tables.questions.question_data import read_question

from ...conftest import ROOT

RECORDS = ROOT / "results" / "records"
QUESTIONS = sorted((ROOT / "results" / "questions").glob("*.csv"))


def cell(bytes_per_token: float, perplexity: float = 10.0) -> MeasuredCell:
    record = {"realised": {"bytes_per_token": bytes_per_token}, "perplexity": perplexity, "average": None}
    documents = [
        {"nats": 7 * math.log(perplexity), "tokens": 7},
        {"nats": 3 * math.log(perplexity), "tokens": 3},
    ]
    return MeasuredCell(record, {"items": {}, "documents": documents}, Path("cell"))


positions = st.lists(st.integers(1, 1000), min_size=2, max_size=5, unique=True)


def beyond(curve: list[int], wanted: int) -> float:
    """How far outside of a curve, as a share of the distance between its last two cells there."""
    ordered = sorted(curve)
    if wanted < ordered[0]:
        return (ordered[0] - wanted) / (ordered[1] - ordered[0])
    return max(0, wanted - ordered[-1]) / (ordered[-1] - ordered[-2])


@given(positions, st.integers(1, 1000))
def test_inside_it_is_plain_interpolation_and_outside_it_is_refused(curve, wanted):
    cells = [cell(position) for position in curve]
    found = at_equal_bytes(cells, wanted)
    if min(curve) <= wanted <= max(curve):
        assert isinstance(found, Between)
        low, high = bytes_of(found.below), bytes_of(found.above)
        assert low <= wanted <= high
        assert not any(low < position < high for position in curve)
        assert (1 - found.share) * low + found.share * high == pytest.approx(wanted)
        assert 0.0 <= found.share <= 1.0
        assert found.beyond == 0.0
    else:
        assert isinstance(found, Outside)
        assert found.by == pytest.approx(beyond(curve, wanted))


@pytest.mark.slow
@given(positions, st.integers(1, 1000), st.floats(0.0, 0.5))
def test_within_reach_the_nearest_two_cells_go_on(curve, wanted, reach):
    found = at_equal_bytes([cell(position) for position in curve], wanted, reach)
    assert isinstance(found, Between) == (beyond(curve, wanted) <= reach)
    if isinstance(found, Between):
        assert found.beyond == pytest.approx(beyond(curve, wanted))


def test_one_cell_is_compared_at_its_own_bytes_alone():
    assert isinstance(at_equal_bytes([cell(5)], 5), Between)
    assert at_equal_bytes([cell(5)], 6, reach=10.0) == Outside(None)
    with pytest.raises(ValueError, match="at least one cell"):
        at_equal_bytes([], 5)


def test_the_ratio_by_hand():
    below, above, reference = cell(10, 12.0), cell(20, 10.0), cell(15, 11.0)
    comparison = Comparison([below, above, reference])
    between = at_equal_bytes([below, above], 15)
    found = comparison.perplexity_ratio_at_equal_bytes([(between, reference)])
    assert found.value == pytest.approx(math.sqrt(120.0) / 11.0)
    assert found.low == pytest.approx(found.value)  # every document has the same perplexity
    assert comparison.perplexity_ratio([(below, reference)]).value == pytest.approx(12 / 11)
    assert comparison.average_difference([(below, reference)]) is None


def test_frontier_and_question_agree_on_the_same_two_cells():
    archive = RECORDS / "questions" / "alpha.tar.xz"
    question, frontier, checked = read_question(archive), read_frontier(archive), 0
    for place in question.places:
        found = question.at_equal_bytes(place)
        for between, other in found if isinstance(found, list) else []:
            if between.beyond:
                continue
            again = frontier._at_bytes(place.model, place.method, other.record["seed"], bytes_of(other))
            pair = [bytes_of(one) for one in (between.below, between.above)]
            assert [bytes_of(one) for one in (again.below, again.above)] == pair
            assert again.share == pytest.approx(between.share)
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_no_printed_ratio_lies_far_from_what_was_measured(path):
    """The bug was a ratio of 424,745,706 where the two cells' own ratio is 70."""
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    perplexities: dict[str, list[float]] = {}
    for row in rows:
        ends = [float(row[name]) for name in ("perplexity_lowest", "perplexity_highest")]
        perplexities.setdefault(row["model"], []).extend(ends)
    for row in rows:
        if row["perplexity_ratio"]:
            assert row["equal_bytes"] in ("inside", "up to 10% beyond")
            found = perplexities[row["model"]]
            assert float(row["perplexity_ratio"]) < max(found) / min(found)
        elif row["equal_bytes"]:
            assert row["equal_bytes"] == "not comparable at equal bytes"
            assert row["nominal_perplexity_ratio"]


def test_the_newest_of_a_place_counts_and_none_at_all_says_what_would_make_them(tmp_path):
    (source,) = unpacked(RECORDS / "table1").glob("llama-mini-teal-0.5-*")
    found = stored_cells([source], lambda record: record["method"]["name"], command="`make x`")
    assert list(found) == ["teal"]
    assert len(list(every_cell([source, source]))) == 2
    with pytest.raises(UserError, match="holds no records of this table; run `make x` first"):
        stored_cells([tmp_path], lambda record: 0, command="`make x`")
    with pytest.raises(UserError, match="holds no records"):
        stored_cells([source], lambda record: 0, keep=lambda record: False, command="`make x`")
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot be read .*; delete that folder, or compute"):
        list(every_cell([tmp_path]))

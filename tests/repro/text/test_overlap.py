"""Disjoint calibration and evaluation text: what counts as an overlap, and what follows from it."""

from __future__ import annotations

import pytest
from hydra import compose
from hydra.utils import instantiate
from wisparse.method.errors import UserError
from wisparse.repro.configuration import composing
from wisparse.repro.embedded.calibration import expected_package_texts
from wisparse.repro.text.overlap import (
    RUN,
    SHORTEST,
    apart_from,
    checked_overlap,
    measure_overlap,
    require_disjoint,
)

WORDS = [f"word{number}" for number in range(40)]


def overlapping(calibration: str, item: str) -> bool:
    return bool(measure_overlap([calibration], [("task", item)]).overlapping)


def test_a_run_of_words_in_common_is_an_overlap_and_one_less_is_not():
    text = " ".join(WORDS)
    other = [f"other{number}" for number in range(20)]
    assert overlapping(text, " ".join([*other, *WORDS[5 : 5 + RUN], *other]))
    assert not overlapping(text, " ".join([*other, *WORDS[5 : 5 + RUN - 1], *other]))


def test_texts_apart_from_items_are_those_without_an_overlap():
    text, other = " ".join(WORDS), " ".join(f"other{number}" for number in range(20))
    items = [("task", " ".join(WORDS[5 : 5 + RUN])), ("task", " ".join(WORDS[30 : 30 + SHORTEST - 1]))]
    short = [("task", " ".join(WORDS[3 : 3 + SHORTEST]))]
    assert apart_from([text, other, " ".join(WORDS[6:])], items) == [other, " ".join(WORDS[6:])]
    assert apart_from([text, other], short) == [other]
    assert apart_from([text], [("task", "too short")]) == [text]


def test_case_spacing_and_punctuation_do_not_hide_an_overlap():
    item = "".join(f"{word.upper()},\n\t" for word in WORDS[:RUN])
    assert overlapping(" ".join(WORDS), item)
    assert overlapping("_".join(WORDS), item), "names of several words are several words"


def test_a_short_item_overlaps_when_all_of_it_occurs_and_a_very_short_one_never():
    text = " ".join(WORDS)
    assert overlapping(text, " ".join(WORDS[3 : 3 + SHORTEST]))
    assert not overlapping(text, " ".join([*WORDS[3 : 2 + SHORTEST], "other"]))
    assert not overlapping(text, " ".join(WORDS[: SHORTEST - 1]))


def test_order_matters_and_runs_do_not_join_texts():
    assert not overlapping(" ".join(reversed(WORDS)), " ".join(WORDS))
    halves = [" ".join(WORDS[:8]), " ".join(WORDS[8:16])]
    assert not measure_overlap(halves, [("task", " ".join(WORDS[:16]))]).overlapping


def test_the_share_that_is_allowed_is_of_each_task():
    items = [("one", " ".join(WORDS))] + [("one", "nothing in common here")] * 9 + [("two", "nor here")]
    overlap = measure_overlap([" ".join(WORDS)], items)
    assert overlap.items == {"one": 10, "two": 1}
    assert overlap.overlapping == {"one": 1}
    require_disjoint(overlap, 0.1)
    with pytest.raises(UserError, match=r"1 of 10 of one, first 'word0 word1 .*largest_overlap=0\.01"):
        require_disjoint(overlap, 0.09)


def test_what_is_compared_is_the_text_of_the_tokens(tokenizer):
    text = "for index in range(10): total = total + index * weight - offset; print(total, index, weight)"
    ids = tokenizer(text, return_tensors="pt").input_ids
    with pytest.raises(UserError, match="1 of 1 of task"):
        checked_overlap(ids, tokenizer, [("task", text)], 0.0)
    assert checked_overlap(ids, tokenizer, [("task", text)], 1.0).overlapping == {"task": 1}


@pytest.mark.slow
def test_embedded_tasks_and_embedded_calibration_text_are_disjoint():
    """All of the package's text, of which a run takes a part."""
    with composing():
        suite = instantiate(compose("config", overrides=["suite=embedded"]).suite)
    overlap = measure_overlap(expected_package_texts(), suite.texts())
    assert set(overlap.items) == {*suite.tasks, "heldout_text"}
    assert min(overlap.items.values()) >= 500
    assert overlap.overlapping == {}

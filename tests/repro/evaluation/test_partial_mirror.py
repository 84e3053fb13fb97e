"""The paper's tasks in a mirror that lacks some: named, left out on request, never replaced."""

from __future__ import annotations

import pytest
from hydra.errors import InstantiationException
from wisparse.method.errors import UserError

from ..benchmark_data import write_split
from .test_paper_suites import ZEROSHOT, configured, likelihood, suite


@pytest.fixture(scope="module")
def partial_mirror(tmp_path_factory):
    """Only two of the ten tasks' data: one without its test split, one as its first release has it."""
    root = tmp_path_factory.mktemp("partial")
    arc = {"choices": {"text": ["ice", "steam"], "label": ["A", "B"]}, "answerKey": "B"}
    rows = [arc | {"id": str(n), "question": f"What do {n} kettles of hot water give off?"} for n in range(4)]
    write_split(root, "arc_challenge", "validation", rows)
    boolq = {"passage": "Beans grow on poles.", "question": "do beans grow on poles", "answer": True}
    write_split(root, "boolq", "validation", [boolq, boolq | {"answer": False}])
    return str(root)


def test_missing_tasks_are_all_named_in_one_line(partial_mirror):
    with pytest.raises(InstantiationException) as caught:
        configured("zeroshot", f"data.root={partial_mirror}")
    (message,) = caught.value.__cause__.args
    assert "\n" not in message
    assert "suite.skip_missing=true" in message
    for file in (
        "piqa/validation",
        "arc_easy/test",
        "sciq/test",
        "lambada_openai/test",
        "hellaswag/validation",
    ):
        assert f"({file}.parquet)" in message
    assert "arc_challenge" not in message
    assert "boolq" not in message


def test_missing_tasks_are_left_out_on_request_and_splits_are_said(model, tokenizer, partial_mirror, caplog):
    asked = configured("zeroshot", f"data.root={partial_mirror}", "suite.skip_missing=true")
    found = asked.run(model, tokenizer, None)
    assert {name: result.settings["split"] for name, result in found.tasks.items()} == {
        "arc_challenge": "validation",
        "boolq": "validation",
    }
    assert found.details == {"left_out": sorted(set(ZEROSHOT) - {"arc_challenge", "boolq"})}
    assert "arc_challenge is evaluated on its validation split" in caplog.text
    assert "boolq is evaluated" not in caplog.text  # lm-eval evaluates it there
    assert "lacks their data: piqa, arc_easy, hellaswag" in caplog.text
    assert {path.name for path in asked.files()} >= {"validation.parquet", "boolq.yaml"}
    assert {task for task, _ in asked.texts()} == {"arc_challenge", "boolq"}


def test_answers_under_another_name_are_judged_as_by_hand(model, tokenizer, partial_mirror):
    found = suite(partial_mirror, ["boolq"]).run(model, tokenizer, None)
    prompt = "Beans grow on poles.\nQuestion: do beans grow on poles?\nAnswer:"
    yes = likelihood(model, tokenizer, prompt, " yes") > likelihood(model, tokenizer, prompt, " no")
    assert found.items["boolq"] == [float(yes), float(not yes)]


def test_another_split_is_never_taken_unasked(partial_mirror):
    with pytest.raises(UserError, match=r"lacks arc_challenge \(arc_challenge/test\.parquet\)"):
        suite(partial_mirror, ["arc_challenge"])


def test_a_mirror_without_any_task_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="which must leave one"):
        suite(str(tmp_path), ["piqa", "boolq"], skip_missing=True)

"""The embedded items: fair, and from the held-out packages."""

import re
from collections import Counter

import pytest
from wisparse.repro.embedded.choice_tasks import CHOICE_TASKS
from wisparse.repro.embedded.items import EMBEDDED
from wisparse.repro.embedded.sources import held_out_modules

TWO_WAY = {"variable_misuse"}


@pytest.fixture(scope="module")
def texts():
    """Files without what the items leave out: whole-line comments, and every kind of blank."""
    return {module.path: squeezed(module.text) for module in held_out_modules()}


def squeezed(text):
    lines = (line for line in text.split("\n") if not line.lstrip().startswith("#"))
    return "".join("".join(lines).split())


@pytest.mark.slow
@pytest.mark.parametrize("task", EMBEDDED.builders)
def test_the_first_items_are_a_sample_of_both_packages(task):
    first = EMBEDDED.load(task)[:100]
    packages = {item["source"].split("/")[0] for item in first}
    assert packages == {"networkx", "sympy"}
    assert len({item["source"] for item in first}) > 60


@pytest.mark.slow
@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_choices_are_distinct_and_the_answer_is_anywhere(task):
    number = 2 if task in TWO_WAY else 4
    loaded = EMBEDDED.load(task)
    for item in loaded:
        assert len({" ".join(choice.split()) for choice in item["choices"]}) == number
    positions = Counter(item["answer"] for item in loaded)
    assert set(positions) == set(range(number))
    assert min(positions.values()) > 0.75 * len(loaded) / number


@pytest.mark.slow
@pytest.mark.parametrize("task", [*CHOICE_TASKS, "last_identifier", "complete_line"])
def test_the_answer_continues_the_context_in_the_file(task, texts):
    for item in EMBEDDED.load(task):
        answer = item["choices"][item["answer"]] if "choices" in item else item["target"]
        # Between signature and code the items leave the docstring out, so only the last line must join.
        last_line = "" if task == "function_body" else item["context"].rstrip("\n").split("\n")[-1]
        whole = last_line + "\n" * ("choices" in item) + answer
        assert squeezed(whole) in texts[item["source"]], (task, item)


@pytest.mark.slow
def test_misused_variable_is_one_that_the_context_mentions():
    for item in EMBEDDED.load("variable_misuse"):
        words = [re.findall(r"\w+|\W", choice) for choice in item["choices"]]
        differing = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
        assert len(differing) == 1
        assert all(re.search(rf"\b{name}\b", item["context"]) for name in differing[0])


def test_last_identifier_and_rest_of_line_are_in_the_context():
    for item in EMBEDDED.load("last_identifier"):
        assert re.search(rf"\b{item['target'][1:]}\b", item["context"])
    for item in EMBEDDED.load("complete_line"):
        assert "\n" not in item["target"]
        for name in re.findall(r"\b[A-Za-z_]\w+", item["target"]):
            assert re.search(rf"\b{name}\b", item["context"])

"""The English tasks: prose alone, fair choices, calibration text apart from every item."""

from collections import Counter

import pytest
from wisparse.repro.english.calibration import EnglishText, calibration_texts
from wisparse.repro.english.choice_tasks import CHOICE_TASKS, PREPOSITIONS
from wisparse.repro.english.documents import CALIBRATED, EVALUATED, evaluated_documents
from wisparse.repro.english.items import ENGLISH
from wisparse.repro.english.prose import WORD, docstring_texts, paragraphs, sentences
from wisparse.repro.text.overlap import measure_overlap

PROSE = "The graph is a tree when it has no cycle, and each of its nodes can be\n{}reached from any other node."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (PROSE.format(""), True),
        ("\n    " + PROSE.format("    "), True),
        (PROSE.format("    "), True),  # the first line of a docstring
        (
            "The parts are the following, and each of them is in one of\n    the list of all the nodes.\n  No.",
            False,
        ),
        (PROSE.format("").replace("graph", "`graph`"), False),
        (PROSE.format("").replace("tree", "tree_like"), False),
        (PROSE.format("").replace("cycle", "cycle (of edges"), False),
        (PROSE.format("").rstrip("."), False),
        ("- " + PROSE.format(""), False),
        ("Returns: " + PROSE.format(""), False),
        ("Graph tree cycle node edge path walk degree cut flow clique match cover minor plane color.", False),
        ("It is a tree.", False),
    ],
)
def test_prose_is_told_from_everything_else(text, kept):
    assert list(paragraphs(text)) == [" ".join(text.split()) if kept else None]


def test_sentences_do_not_end_at_abbreviations():
    text = (
        "This is due to Erdos et al. The method, cf. Knuth, is old. It is fast, i.e. It takes no time at all."
    )
    assert sentences(text) == [
        "This is due to Erdos et al. The method, cf. Knuth, is old.",
        "It is fast, i.e. It takes no time at all.",
    ]


def test_docstrings_are_found_without_parsing():
    source = 'def f():\n    """One."""\n    x = """not this"""\n\nclass A:\n    r\'\'\'Two\n    lines.\'\'\'\n'
    assert list(docstring_texts(source)) == ["One.", "Two\n    lines."]


@pytest.mark.slow
@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_choices_are_distinct_and_the_answer_is_anywhere(task):
    loaded = ENGLISH.load(task)
    number = len(loaded[0]["choices"])
    assert all(len(set(item["choices"])) == len(item["choices"]) == number for item in loaded)
    positions = Counter(item["answer"] for item in loaded)
    assert set(positions) == set(range(number))
    assert min(positions.values()) > 0.7 * len(loaded) / number


@pytest.mark.slow
@pytest.mark.parametrize("task", ENGLISH.tasks)
def test_the_answer_continues_the_context_in_its_file(task):
    known = {document.path: document.paragraphs for document in evaluated_documents()}
    for item in ENGLISH.load(task):
        answer = item["choices"][item["answer"]] if "choices" in item else item["target"]
        assert any(item["context"] + answer in paragraph for paragraph in known[item["source"]])


@pytest.mark.slow
def test_gaps_are_of_the_kind_that_the_task_names():
    for item in ENGLISH.load("preposition"):
        assert {choice.split()[0] for choice in item["choices"]} <= set(PREPOSITIONS)
    for item in ENGLISH.load("content_word"):
        assert len({choice.split(maxsplit=1)[1:][0] for choice in item["choices"] if " " in choice[1:]}) <= 1
    for item in ENGLISH.load("last_word"):
        assert item["target"][1:] in WORD.findall(item["context"])


@pytest.mark.slow
def test_calibration_and_evaluation_share_neither_packages_nor_runs_of_words(tokenizer):
    assert not set(EVALUATED) & set(CALIBRATED)
    overlap = measure_overlap(calibration_texts(), ENGLISH.texts())
    assert sum(overlap.items.values()) > 1000
    assert overlap.overlapping == {}
    first, again, other = (EnglishText("english", 8, 128, 4, seed).input_ids(tokenizer) for seed in (0, 0, 1))
    assert first.shape == (8, 128)
    assert first.equal(again)
    assert not first.equal(other)

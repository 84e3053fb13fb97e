"""The embedded items: deterministic, fair, from the held-out packages, checked against the manifest."""

import copy
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from wisparse.method.errors import UserError
from wisparse.repro.embedded import items
from wisparse.repro.embedded.choice_tasks import CHOICE_TASKS
from wisparse.repro.embedded.sources import held_out_modules, installed_versions

TWO_WAY = {"variable_misuse"}


@pytest.fixture(scope="module")
def texts():
    """Files without what the items leave out: whole-line comments, and every kind of blank."""
    return {module.path: squeezed(module.text) for module in held_out_modules()}


def squeezed(text):
    lines = (line for line in text.split("\n") if not line.lstrip().startswith("#"))
    return "".join("".join(lines).split())


@pytest.mark.parametrize("task", items.BUILDERS)
def test_items_are_those_of_the_manifest_and_enough(task):
    loaded = items.load_items(task)
    entry = items.read_manifest()["tasks"][task]
    assert entry == {"items": len(loaded), "sha256": items.items_digest(list(loaded))}
    assert len(loaded) >= 500


def test_items_depend_on_neither_process_nor_hash_seed():
    code = (
        "from wisparse.repro.embedded.items import build_items, items_digest;"
        "print(items_digest(build_items('variable_misuse')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == items.read_manifest()["tasks"]["variable_misuse"]["sha256"]


@pytest.mark.parametrize("task", items.BUILDERS)
def test_no_item_twice_and_no_file_dominates(task):
    loaded = items.load_items(task)
    contexts = [item.get("context") or item["text"] for item in loaded]
    assert len(set(contexts)) == len(contexts)
    assert max(Counter(item["source"] for item in loaded).values()) <= items.LARGEST_SHARE_OF_A_FILE


@pytest.mark.parametrize("task", items.BUILDERS)
def test_the_first_items_are_a_sample_of_both_packages(task):
    first = items.load_items(task)[:100]
    packages = {item["source"].split("/")[0] for item in first}
    assert packages == {"networkx", "sympy"}
    assert len({item["source"] for item in first}) > 60


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_choices_are_distinct_and_the_answer_is_anywhere(task):
    number = 2 if task in TWO_WAY else 4
    loaded = items.load_items(task)
    for item in loaded:
        assert len({" ".join(choice.split()) for choice in item["choices"]}) == number
    positions = Counter(item["answer"] for item in loaded)
    assert set(positions) == set(range(number))
    assert min(positions.values()) > 0.75 * len(loaded) / number


@pytest.mark.parametrize("task", [*CHOICE_TASKS, "last_identifier", "complete_line"])
def test_the_answer_continues_the_context_in_the_file(task, texts):
    for item in items.load_items(task):
        answer = item["choices"][item["answer"]] if "choices" in item else item["target"]
        # Between signature and code the items leave the docstring out, so only the last line must join.
        last_line = "" if task == "function_body" else item["context"].rstrip("\n").split("\n")[-1]
        whole = last_line + "\n" * ("choices" in item) + answer
        assert squeezed(whole) in texts[item["source"]], (task, item)


def test_misused_variable_is_one_that_the_context_mentions():
    for item in items.load_items("variable_misuse"):
        words = [re.findall(r"\w+|\W", choice) for choice in item["choices"]]
        differing = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
        assert len(differing) == 1
        assert all(re.search(rf"\b{name}\b", item["context"]) for name in differing[0])


def test_last_identifier_and_rest_of_line_are_in_the_context():
    for item in items.load_items("last_identifier"):
        assert re.search(rf"\b{item['target'][1:]}\b", item["context"])
    for item in items.load_items("complete_line"):
        assert "\n" not in item["target"]
        for name in re.findall(r"\b[A-Za-z_]\w+", item["target"]):
            assert re.search(rf"\b{name}\b", item["context"])


@pytest.mark.parametrize("task", items.TASKS)
def test_task_configuration_states_chance_and_one_metric(task):
    text = (items.TASK_FOLDER / f"{task}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text.replace("!function ", ""))
    number = len(items.load_items(task)[0].get("choices", []))
    assert config["metadata"]["chance"] == (1 / number if number else 0.0)
    assert len(config["metric_list"]) == 1
    assert config["dataset_kwargs"]["task"] == config["task"] == task


def test_every_configuration_belongs_to_a_task():
    assert {path.stem for path in items.TASK_FOLDER.glob("*.yaml")} == set(items.TASKS)


@pytest.mark.parametrize("found", ["1.13.3", None])
def test_another_version_is_named_with_the_command_that_helps(found):
    expected = items.read_manifest()["versions"]
    with pytest.raises(UserError) as caught:
        items.require_versions(expected, {**expected, "sympy": found})
    message = str(caught.value)
    assert f"sympy {expected['sympy']} is expected and {found or 'none'} is installed" in message
    assert message.endswith(f"pip install sympy=={expected['sympy']}")


def test_installed_versions_are_accepted():
    items.require_versions(items.read_manifest()["versions"], installed_versions())


def test_changed_sources_under_the_same_version_are_refused(monkeypatch):
    manifest = copy.deepcopy(items.read_manifest())
    manifest["tasks"]["next_line"]["sha256"] = "0" * 64
    monkeypatch.setattr(items, "read_manifest", lambda: manifest)
    items.load_items.cache_clear()
    with pytest.raises(UserError, match=r"next_line.*pip install --force-reinstall"):
        items.load_items("next_line")

"""Items from installed text: deterministic, checked against their manifests, of many files."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import yaml
from wisparse.method.errors import UserError
from wisparse.repro.embedded.items import EMBEDDED
from wisparse.repro.english.calibration import CALIBRATION
from wisparse.repro.english.items import ENGLISH
from wisparse.repro.text.installed import installed_versions, require_versions
from wisparse.repro.text.item_set import ItemSet, items_digest

ALL = {"embedded": EMBEDDED, "english": ENGLISH, "english calibration": CALIBRATION}
EVERY_TASK = [(name, task) for name, found in ALL.items() for task in found.builders]
WITH_ACCURACY = [(name, task) for name, found in ALL.items() for task in found.tasks]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), EVERY_TASK)
def test_items_are_those_of_the_manifest(name, task):
    loaded = ALL[name].load(task)
    entry = ALL[name].read_manifest()["tasks"][task]
    assert entry == {"items": len(loaded), "sha256": items_digest(list(loaded))}
    assert len(loaded) >= (500 if name == "embedded" else 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "variable", "task"),
    [("embedded", "EMBEDDED", "variable_misuse"), ("english", "ENGLISH", "content_word")],
)
def test_items_depend_on_neither_process_nor_hash_seed(module, variable, task):
    code = (
        f"from wisparse.repro.{module}.items import {variable};"
        "from wisparse.repro.text.item_set import items_digest;"
        f"print(items_digest({variable}.build('{task}')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == ALL[module].read_manifest()["tasks"][task]["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), EVERY_TASK)
def test_no_item_twice_and_no_file_dominates(name, task):
    loaded = ALL[name].load(task)
    contexts = [item.get("context") or item["text"] for item in loaded]
    assert len(set(contexts)) == len(contexts)
    assert max(Counter(item["source"] for item in loaded).values()) <= ALL[name].largest_share_of_a_file


@pytest.mark.parametrize(("name", "task"), WITH_ACCURACY)
def test_task_configuration_states_chance_and_one_metric(name, task):
    text = (ALL[name].task_folder / f"{task}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text.replace("!function ", ""))
    number = len(ALL[name].load(task)[0].get("choices", []))
    assert config["metadata"]["chance"] == (1 / number if number else 0.0)
    assert len(config["metric_list"]) == 1
    assert config["dataset_kwargs"]["task"] == config["task"] == task


@pytest.mark.parametrize("found", [EMBEDDED, ENGLISH])
def test_every_configuration_belongs_to_a_task(found):
    assert {path.stem for path in found.task_folder.glob("*.yaml")} == set(found.tasks)


@pytest.mark.parametrize("found", ["1.13.3", None])
def test_another_version_is_named_with_the_command_that_helps(found):
    expected = EMBEDDED.read_manifest()["versions"]
    with pytest.raises(UserError) as caught:
        require_versions("the embedded tasks", expected, {**expected, "sympy": found})
    message = str(caught.value)
    assert f"the embedded tasks need other versions: sympy {expected['sympy']} is expected" in message
    assert f"and {found or 'none'} is installed" in message
    assert message.endswith(f"pip install sympy=={expected['sympy']}")


@pytest.mark.parametrize("found", ALL.values(), ids=ALL)
def test_installed_versions_are_accepted(found):
    require_versions(found.name, found.read_manifest()["versions"], installed_versions(found.packages))


def test_changed_sources_under_the_same_version_are_refused(tmp_path):
    manifest = ENGLISH.read_manifest()
    manifest["tasks"]["last_word"]["sha256"] = "0" * 64
    changed: ItemSet = replace(ENGLISH, manifest=tmp_path / "manifest.json")
    changed.manifest.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"last_word.*pip install --force-reinstall .*sympy=="):
        changed.load("last_word")
    assert changed.load("preposition") == ENGLISH.load("preposition")

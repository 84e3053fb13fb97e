"""The catalogue builds what Hydra builds from the same files."""

import subprocess
import sys
from pathlib import Path

import pytest
import wisparse
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from wisparse import catalogue
from wisparse.catalogue import CONFIGURATION, make_method, token_policy
from wisparse.method.errors import UserError
from wisparse.method.rules import SharedTopK
from wisparse.repro.configuration import composing

from ..conftest import METHODS, ROOT

SEARCHES = ("quick", "paper")
PARENT_MASK = {"kind": "sum", "rows": [1, 2]}
POLICIES = sorted(path.stem for path in (ROOT / "conf" / "protocol").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    with composing():
        return compose("config", overrides=list(overrides))


def described(value: object) -> object:
    """An object by its class and its parts, so that those without an equality of their own compare too."""
    if isinstance(value, list | tuple) or type(value).__name__ == "ListConfig":
        return [described(entry) for entry in value]
    if hasattr(value, "__dict__"):
        return type(value), {name: described(entry) for name, entry in vars(value).items()}
    return value


def test_the_configuration_is_that_of_the_checkout():
    assert CONFIGURATION == ROOT / "conf"


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("search", SEARCHES)
def test_a_method_is_the_one_that_hydra_builds(name, search):
    config = composed(f"method={name}", f"search={search}", "seed=3")
    assert described(make_method(name, search, seed=3)) == described(instantiate(config.method))


@pytest.mark.slow
@pytest.mark.parametrize("group", ["method", "protocol", "allocation"])
def test_every_file_of_a_group_is_read_as_hydra_reads_it(group):
    names = sorted(path.stem for path in (CONFIGURATION / group).glob("*.yaml"))
    assert names
    with composing():
        expected = {name: OmegaConf.to_container(compose(f"{group}/{name}")[group]) for name in names}
    assert {name: catalogue._read(group, name) for name in names} == expected


def test_a_mask_keeps_what_its_parent_says_of_it():
    assert make_method("teal_uniform_shared_maximum").mask == SharedTopK(combine="maximum")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Defaults list is missing:UserWarning")
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"defaults": ["_self_", "parent"], "a": 1}, {"a": 0, "mask": {"kind": "sum", "rows": [1, 2]}}),
        ({"defaults": ["parent"], "a": 1}, {"a": 1, "mask": {"kind": "sum", "rows": [1, 2]}}),
        (
            {"defaults": ["parent", "_self_"], "mask": {"rows": [3]}},
            {"a": 0, "mask": {"kind": "sum", "rows": [3]}},
        ),
        ({"defaults": ["parent"], "mask": None}, {"a": 0, "mask": None}),
    ],
)
def test_defaults_are_merged_in_their_order_and_entry_by_entry(own, expected, tmp_path, monkeypatch):
    group = tmp_path / "group"
    group.mkdir()
    for name, content in (("parent", {"a": 0, "mask": PARENT_MASK}), ("own", own)):
        (group / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert OmegaConf.to_container(compose("group/own").group) == expected
    monkeypatch.setattr(catalogue, "CONFIGURATION", tmp_path)
    assert catalogue._read("group", "own") == expected


@pytest.mark.parametrize("name", POLICIES)
def test_a_token_policy_is_the_one_that_hydra_builds(name):
    assert token_policy(name) == instantiate(composed(f"protocol={name}").protocol)


def test_every_method_is_described_with_its_paper():
    found = wisparse.methods()
    assert sorted(found) == METHODS
    assert all(one.summary for one in found.values())
    assert found["teal"].paper == "2408.14690"
    assert found["equal_loss"].paper is None


@pytest.mark.parametrize("name", ["tael", "../model/hub", "", "teal.yaml"])
def test_an_unknown_method_is_refused_with_the_choices(name):
    with pytest.raises(UserError, match=r"no method is called '.*'; choose from cats, chess"):
        make_method(name)


def test_an_unknown_search_and_policy_are_refused():
    with pytest.raises(UserError, match="no search is called 'huge'; choose from medium, minimal"):
        make_method("teal", "huge")
    with pytest.raises(UserError, match="no protocol is called 'most'; choose from all"):
        token_policy("most")


def test_methods_are_listed_without_torch():
    program = "import sys, wisparse; wisparse.methods(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path("/")
    )
    assert done.stdout.strip() == "False"

"""The catalogue builds what Hydra builds from the same files."""

import subprocess
import sys
from pathlib import Path

import pytest
import wisparse
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from wisparse.catalogue import CONFIGURATION, make_method, token_policy
from wisparse.method.errors import UserError

from ..conftest import METHODS, ROOT

SEARCHES = ("quick", "paper")
POLICIES = sorted(path.stem for path in (ROOT / "conf" / "protocol").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
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

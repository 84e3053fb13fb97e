"""Every choice of every configuration group composes, and what it names can be built."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace

import pytest
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
from wisparse.method.errors import UserError
from wisparse.method.search.budget import QUICK, SearchBudget
from wisparse.repro.configuration import CONFIGURATION, composing
from wisparse.repro.models.architecture import PAPER_MODELS
from wisparse.repro.tables.table2 import STAGES

ROOT = CONFIGURATION.parent

GLOBAL = {"experiment", "reading"}
"""Groups whose choices change others and have no part of the configuration of their own."""
# conf/claims holds what the papers print: facts for verify_claims, no choices.
GROUPS = sorted(path.name for path in CONFIGURATION.iterdir() if path.is_dir() and path.name != "claims")


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGURATION / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def configuration() -> Iterator[None]:
    with composing():
        yield


def composed(*overrides: str, **keywords: bool) -> DictConfig:
    return compose("config", overrides=list(overrides), **keywords)


def test_the_groups_the_suite_is_made_of_are_there():
    assert {"model", "method", "protocol", "suite", "calibration", "search", "logger", "experiment"} <= set(
        GROUPS
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)]
)
def test_every_choice_composes_and_resolves(group, choice):
    needed = {"suite": ["suite.text=x"] if choice == "perplexity" else [], "reading": ["method=wisparse"]}
    config = composed(f"{group}={choice}", *needed.get(group, []))
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert group in GLOBAL or resolved[group]


@pytest.mark.slow
@pytest.mark.parametrize("group", ["method", "protocol"])
def test_every_choice_is_built_under_its_own_name(group):
    names = {choice: instantiate(composed(f"{group}={choice}")[group]).name for choice in choices(group)}
    assert names == {choice: choice for choice in names}


@pytest.mark.slow
@pytest.mark.parametrize("choice", choices("reading"))
def test_every_reading_is_built_under_its_own_name(choice):
    method = instantiate(composed("method=wisparse", f"reading={choice}").method)
    assert method.name == ("wisparse" if choice == "none" else f"wisparse_{choice}")


@pytest.mark.parametrize("logger", choices("logger"))
def test_every_logger_is_built(logger):
    assert callable(instantiate(composed(f"logger={logger}").logger).log)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", choices("experiment"))
def test_experiments_sweep_over_choices_that_exist(experiment):
    config = composed(f"experiment={experiment}", return_hydra_config=True)
    assert config.experiment_name == experiment
    assert config.hydra.mode.name == "MULTIRUN"
    for group, values in config.hydra.sweeper.params.items():
        if group in GROUPS:
            assert set(values.split(",")) <= set(choices(group))


@pytest.mark.parametrize("experiment", ["table1", "table1_full", "table1_paper"])
def test_table1_has_the_methods_of_the_table(experiment):
    params = composed(f"experiment={experiment}", return_hydra_config=True).hydra.sweeper.params
    uniform = [] if experiment == "table1_paper" else ["teal_uniform"]
    assert params.method.split(",") == ["dense", *uniform, "teal", "wina", "rsparse", "chess", "wisparse"]
    if experiment == "table1_full":
        assert params.model.split(",") == ["llama-mini", "mistral-mini", "qwen-mini"]
        assert [float(value) for value in params.sparsity.split(",")] == [0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize("experiment", ["table2", "table2_full", "table2_paper"])
def test_table2_has_the_stages_of_the_ablation(experiment):
    params = composed(f"experiment={experiment}", return_hydra_config=True).hydra.sweeper.params
    assert params.method.split(",") == list(STAGES)
    assert float(params.sparsity) == 0.5


@pytest.mark.parametrize("part", ["table1", "table2", "figure2", "figure3", "figure5"])
def test_a_paper_profile_is_the_papers_models_text_and_budget(part):
    config = composed(f"experiment={part}_paper", return_hydra_config=True)
    assert config.hydra.sweeper.params.model.split(",") == list(PAPER_MODELS)
    assert config.calibration.name == "paper"
    if part in ("table1", "table2"):
        assert (config.suite.name, config.suite.limit, config.suite.execute_code) == ("paper", None, False)
    if part not in ("figure2", "figure3"):  # which search nothing
        assert config.search.name == "paper"


def test_each_stage_of_the_ablation_adds_one_thing():
    methods = [composed(f"method={method}").method for method in STAGES if method != "dense"]
    assert [(one.allocator.name, one.fine, one.alpha_search, one.alpha) for one in methods] == [
        ("uniform", False, False, 0.0),
        ("uniform", False, True, 1.0),
        ("evolutionary", False, True, 1.0),
        ("evolutionary", True, True, 1.0),
    ]


@pytest.mark.slow
def test_the_defaults_of_a_method_are_its_configuration():
    """Each configuration builds its class with what has no default, or with the values its file changes."""
    for choice in choices("method"):
        made = instantiate(composed(f"method={choice}").method)
        named = {one.name for one in fields(made) if one.default is MISSING} | changed_by_variants(choice)
        assert made == type(made)(**{name: getattr(made, name) for name in named}), choice


def changed_by_variants(choice: str) -> set[str]:
    """Settings that a configuration changes in those that it builds upon; none where it names its own class."""
    own = OmegaConf.load(CONFIGURATION / "method" / f"{choice}.yaml")
    if "_target_" in own:
        return set()
    (base,) = [name for name in own.defaults if name != "_self_"]
    return (own.keys() - {"defaults"}) | changed_by_variants(base)


@pytest.mark.slow
def test_the_defaults_of_an_allocation_are_its_configuration():
    made = {
        choice: instantiate(composed(f"allocation={choice}").allocation) for choice in choices("allocation")
    }
    changed = {"elitist": {"elitism": True, "name": "elitist"}}
    assert made == {choice: type(one)(**changed.get(choice, {})) for choice, one in made.items()}


@pytest.mark.parametrize("choice", choices("search"))
def test_a_search_budget_is_its_configuration(choice):
    assert SearchBudget(**composed(f"search={choice}").search) == SearchBudget.named(choice)


def test_the_budget_that_methods_have_without_another_is_the_default_one():
    assert composed().search.name == QUICK.name


def test_a_budget_that_there_is_not_is_refused_in_one_line():
    with pytest.raises(UserError, match="choose from medium, minimal, paper, quick"):
        SearchBudget.named("endless")
    with pytest.raises(UserError, match="is not one of all, protocol"):
        replace(QUICK, sparse_tokens="some")


def test_the_models_of_the_paper_are_named_alike_everywhere():
    """Names of benchmarks join with those of records, and sizes are those of the model's configuration."""
    assert list(MODEL_SHAPES) == list(PAPER_MODELS) == ["llama3.1-8b", "mistral-7b", "qwen2.5-7b"]
    assert set(PAPER_MODELS) <= set(choices("model"))
    for name, shape in MODEL_SHAPES.items():
        sizes = composed(f"model={name}").model.architecture
        assert shape.ffn == sizes["intermediate_size"]
        assert shape.blocks * shape.head_dim * shape.heads == sizes["num_hidden_layers"] * sizes["hidden_size"]
    with (ROOT / "results" / "kernels.csv").open(newline="") as file:
        measured = {row["shape"].split(" ")[0] for row in csv.DictReader(file) if " " in row["shape"]}
    assert measured == set(PAPER_MODELS)


@pytest.mark.parametrize("target", ["overrides", "reproduce-table1"])
@pytest.mark.parametrize("overrides", ["suite.text=it's", "suite.limit=choice(1,2)", '"suite.limit=3'])
def test_make_says_what_the_shell_cannot_read(target, overrides):
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", target, f"OVERRIDES={overrides}"]
    found = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.startswith("error: the shell cannot read OVERRIDES: a quote or bracket has no partner")
    assert not found.stdout


@pytest.mark.parametrize("overrides", ["", "suite.limit=3 'suite.tasks=[a,b]'", "suite.text='it'\\''s'"])
def test_make_takes_overrides_that_the_shell_can_read(overrides):
    command = ["make", "--no-print-directory", "overrides", f"OVERRIDES={overrides}"]
    found = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_make_takes_the_papers_models_from_their_list():
    printed = subprocess.run(
        ["make", "--no-print-directory", "-f", "Makefile", "-f", "-", "names"],
        input="names:\n\t@echo $(PAPER_MODELS)\n", cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert printed.stdout.split() == list(PAPER_MODELS)

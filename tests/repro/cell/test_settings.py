"""A configuration is checked whole before anything is built: types, bounds, and what nothing reads."""

from __future__ import annotations

import re

import pytest
from hydra import compose
from omegaconf import DictConfig
from wisparse.method.errors import UserError
from wisparse.method.settings import BOUNDS
from wisparse.repro.cell.overrides import as_meant
from wisparse.repro.cell.settings import NAMED, check_names, check_settings
from wisparse.repro.configuration import CONFIGURATION, composing


@pytest.fixture(scope="module", autouse=True)
def configuration():
    with composing():
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=as_meant(overrides))


GROUPS = ("method", "suite", "calibration", "model", "latency", "logger", "protocol", "allocation",
          "quantisation", "heads", "search")  # fmt: skip
NEEDED = {"perplexity": ["suite.text=x"]}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_is_of_the_types_and_within_the_bounds_declared(group):
    for path in sorted((CONFIGURATION / group).glob("*.yaml")):
        check_settings(composed(f"{group}={path.stem}", *NEEDED.get(path.stem, [])))


@pytest.mark.slow
def test_every_experiment_is_too():
    for path in sorted((CONFIGURATION / "experiment").glob("*.yaml")):
        check_settings(composed(f"experiment={path.stem}"))


REFUSED = [
    ("sparsity=0.99999999", "sparsity=0.99999999 is not a number in [0, 1)"),
    ("sparsity=null", "sparsity=null is not a number"),
    ("seed=true", "seed=true is not a whole number"),
    ("seed=4294967296", "is not a whole number from 0 to 4294967295"),
    ("suite.limit=1.5", "suite.limit=1.5 is not a whole number from 1 up or null"),
    ("suite.limit=abc", "suite.limit=abc is not"),
    ("suite.limit=0", "suite.limit=0 is not"),
    ("suite.documents=-1", "suite.documents=-1 is not a whole number from 0 up or null"),
    ("suite.batch_tokens=0", "suite.batch_tokens=0 is not a whole number from 1 up"),
    ("suite.batch_tokens=x", "suite.batch_tokens=x is not"),
    ("suite.tasks=[1]", "suite.tasks[0]=1 is not text"),
    ("suite.tasks=next_line", "suite.tasks=next_line is not a list"),
    ("calibration.batch_size=0", "calibration.batch_size=0 is not"),
    ("calibration.sequences=x", "calibration.sequences=x is not"),
    ("calibration.sequences=2.0", "calibration.sequences=2.0 is not"),
    ("calibration.length=1", "calibration.length=1 is not a whole number from 2 up"),
    ("largest_overlap=nan", "largest_overlap=nan is not a number from 0 to 1"),
    ("largest_overlap=-1", "largest_overlap=-1 is not"),
    ("largest_overlap=x", "largest_overlap=x is not"),
    ("search.generations=-1", "search.generations=-1 is not"),
    ("search.greedy_step=0", "search.greedy_step=0 is not a number above 0"),
    ("search.greedy_step=-1", "search.greedy_step=-1 is not"),
    ("search.greedy_step=nan", "search.greedy_step=nan is not"),
    ("search.alpha_step=0", "search.alpha_step=0 is not"),
    ("search.offspring=0", "search.offspring=0 is not"),
    ("search.divergence_tokens=0", "search.divergence_tokens=0 is not"),
    ("search.sparse_tokens=some", "search.sparse_tokens=some is not one of all, protocol"),
    ("protocol.dense_share=2", "protocol.dense_share=2 is not a number from 0 to 1"),
    ("method.order=coarse", "method.order=coarse is not a list"),
    ("method.mask=7", "method.mask=7 is not a MaskRule (in conf/ a mapping that names a _target_)"),
    ("allocation.mutated_share=-0.1", "allocation.mutated_share=-0.1 is not"),
    ("model.norm_spread=x", "model.norm_spread=x is not a number"),
    ("debug=7", "debug=7 is not true or false"),
    ("force=yes please", "force=yes please is not true or false"),
    ("experiment_name=../../esc", "experiment_name=../../esc is no name of a folder below output_dir"),
    ("experiment_name=/tmp/esc", "experiment_name=/tmp/esc is no name"),
    ("output_dir=null", "output_dir=null names no folder to write into; give output_dir=FOLDER"),
    ("cache_dir=''", "cache_dir= names no folder to write into; give cache_dir=FOLDER"),
    ("experiment_name=''", "experiment_name='' is no name"),
    ("method.name='a\tb'", "is not text of one line"),
    ("+magic=1", "there is no setting 'magic'"),
    ("+method.magic=1", "there is no setting 'method.magic'"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED)
def test_what_is_of_another_type_or_out_of_bounds_is_refused_in_one_line(override, message):
    with pytest.raises(UserError) as caught:
        check_settings(composed(override))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "bound"),
    [
        ("own_sequences=0", "a whole number from 1 up"),
        ("inner.basis_sequences=0", "a whole number from 1 up"),
        ("inner.basis.tokens=0", "a whole number from 1 up"),
        ("inner.basis.tokens_a_step=0", "a whole number from 1 up"),
        ("inner.basis.dropped=2", "a number above 0 and below 1"),
        ("inner.inner.sensitivity_sequences=0", "a whole number from 1 up"),
    ],
)
def test_settings_of_inner_methods_are_bounded(setting, bound):
    with pytest.raises(UserError, match=rf"^method\.{setting} is not {bound}$"):
        check_settings(composed("method=equal_loss_folded", f"method.{setting}"))


@pytest.mark.parametrize(
    "override", ["output_dir=", "cache_dir=", "output_dir=''", "output_dir=null", "cache_dir=a,"]
)
def test_a_folder_without_a_name_is_refused_before_hydra_makes_one(override):
    with pytest.raises(
        UserError, match=r"^(output|cache)_dir=(null)? names no folder to write into; give \w+=FOLDER$"
    ):
        as_meant([override])


@pytest.mark.parametrize("name", ["../../esc", "/tmp/esc", "''", "", "a,../b", "'../esc'"])
def test_an_experiment_outside_of_output_dir_is_refused_before_hydra_makes_its_folder(name):
    with pytest.raises(UserError, match=r"^experiment_name=.* is no name of a folder below output_dir$"):
        as_meant([f"experiment_name={name}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "reading=null",
            "reading=null names no reading; write reading=none, or give a choice that --help lists",
        ),
        ("+heads=", "heads= names no heads; write heads=none"),
        ("method=teal,null", "method=teal,null names no method; leave it out"),
        ("experiment=null", "experiment=null names no experiment; leave it out"),
        ("~suite", "suite= names no suite; write suite=none"),
    ],
)
def test_nothing_as_a_choice_of_a_group_is_refused(override, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        as_meant([override])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["suite=english", "suite=zeroshot"],
            "suite is given twice, .*: -m suite=english,zeroshot",
        ),
        (["sparsity=0.5", "method=teal", "sparsity=0.6"], "sparsity is given twice, as 0.5 and as 0.6"),
        (["suite.limit=5", "+suite.limit=6"], "suite.limit is given twice"),
    ],
)
def test_a_setting_that_is_given_twice_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        as_meant(arguments)


def test_a_name_that_no_record_could_hold_is_refused_before_anything_is_made(monkeypatch, tmp_path):
    """Bytes that are no UTF-8 come as surrogates; the cell ended behind its evaluation, where it is written."""
    message = r"bad\\udcff.* is no UTF-8, and no record could name it"
    with pytest.raises(UserError, match=message):
        as_meant(["output_dir=bad\udcff"])
    folder = tmp_path / "bad\udcff"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        as_meant([])


def test_the_same_value_twice_and_settings_of_hydra_are_taken():
    arguments = ["-m", "sparsity=0.5", "sparsity=0.5", "hydra.job.name=a", "hydra.job.name=b"]
    assert as_meant(arguments) == arguments
    assert as_meant([*arguments[1:], "-m"]) == arguments  # where Hydra would not read what follows


@pytest.mark.parametrize(
    ("group", "choice", "name"),
    [
        ("method", "teal", "wina"),
        ("method", "teal", "dense"),
        ("method", "wisparse_weight", "wisparse"),
        ("quantisation", "int4", "int8"),
        ("quantisation", "none", "int8"),
        ("heads", "polar", "none"),
        ("protocol", "half", "all"),
    ],
)
def test_no_choice_goes_by_the_name_of_another(group, choice, name):
    config = composed(f"{group}={choice}", f"{group}.name={name}")
    with pytest.raises(
        UserError, match=f"^{group}.name={name} would put the numbers of {group}={choice} under"
    ):
        check_names(config, {group: choice})


@pytest.mark.parametrize("method", ["teal_uniform", "wisparse_l1"])
def test_a_reading_of_one_method_names_no_other(method):
    config = composed(f"method={method}", "reading=fine_steps")
    assert config.method.name == "wisparse_fine_steps"
    with pytest.raises(UserError, match=r"^reading=fine_steps is of wisparse's paper .* take method=wisparse"):
        check_names(config, {"method": method, "reading": "fine_steps"})
    config = composed("method=wisparse", "reading=fine_steps")
    check_names(config, {"method": "wisparse", "reading": "fine_steps"})


def test_every_choice_and_reading_may_bear_its_own_name():
    for group in NAMED:
        for path in (CONFIGURATION / group).glob("*.yaml"):
            check_names(composed(f"{group}={path.stem}"), {group: path.stem})
    for name in ("wisparse_error_late", "mine"):
        check_names(composed("method=wisparse", f"method.name={name}"), {"method": "wisparse"})
    readings = {f"wisparse_{path.stem}" for path in (CONFIGURATION / "reading").glob("*.yaml")}
    assert not readings & {path.stem for path in (CONFIGURATION / "method").glob("*.yaml")}


def test_nested_objects_lists_and_mappings_are_looked_into():
    paper = ("suite=paper", "suite.tasks=[wic]")
    for override, place in (
        ("suite.code.seconds=-1", "suite.code.seconds=-1"),
        ("suite.shots.wic=x", "suite.shots.wic=x"),
    ):
        with pytest.raises(UserError, match=f"^{place} is not a whole number"):
            check_settings(composed(*paper, override))
    with pytest.raises(UserError, match=r"^method.choices\[0\]=2 is not a number from 0 to 1"):
        check_settings(composed("method=rsparse", "method.choices=[2]"))
    with pytest.raises(UserError, match=r"^latency\.new_tokens=-1 is not a whole number from 2 up"):
        check_settings(composed("latency=decode", "latency.new_tokens=-1"))


def test_every_bound_refuses_what_is_below_it():
    for name, bound in BOUNDS.items():
        assert not bound.holds(-1), name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("experiment_name=2024", "2024"),
        ("model.name=8", "8"),
        ("model.name=1e3", "1e3"),
        ("+model.revision=1.10", "1.10"),
        ("model.path=7", "7"),
        ("model.path=/a/lr=0.1", "/a/lr=0.1"),
        ("model.path='/a/lr=0.1'", "/a/lr=0.1"),
        ('model.path="/a b/c"', "/a b/c"),
        ("model.path=/a b/it's – “x”", "/a b/it's – “x”"),
        (r"model.path='it\'s'", "it's"),
        ("model.path=a\\", "a\\"),
        ("model.path=~/x", "{home}/x"),
        ("model.path='~/x'", "{home}/x"),
        ("data.root=~/m", "{home}/m"),
        ("model.name=~x", "~x"),
        ("model.path=null", None),
        ("output_dir=${cache_dir}/x y", "/plans/x y"),
    ],
)
def test_names_and_paths_are_taken_as_text(typed, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = composed(typed, "cache_dir=/plans")
    found = config
    for part in typed.partition("=")[0].lstrip("+").split("."):
        found = found[part]
    assert found == (meant and meant.format(home="/home/someone"))


@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        ("model.name=a,b", "model.name='a','b'"),
        ("model.path='a,b',c", "model.path='a,b','c'"),
        ("method=teal,wina", "method=teal,wina"),
        ("sparsity=0.5", "sparsity=0.5"),
        ("suite@suite.text=wikitext", "suite@suite.text=wikitext"),
        ("hydra.job.name=7", "hydra.job.name=7"),
        ("calibration.path=[a]", "calibration.path=[a]"),
        ("-m", "-m"),
    ],
)
def test_sweeps_and_all_other_arguments_are_left_as_they_are(typed, passed):
    assert as_meant([typed]) == [passed]

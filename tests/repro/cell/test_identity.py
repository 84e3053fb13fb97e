"""Identity of cells and plans: what they import, and nothing else, makes them another cell."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import yaml
from hydra import compose
from hydra.utils import instantiate
from wisparse.repro.cell import cell, identity, planning
from wisparse.repro.cell.identity import import_closure, sources_digest, targets
from wisparse.repro.configuration import composing, portable
from wisparse.repro.evaluation.harness_tasks import harness_tasks

from ...conftest import CONFIGURATION, ROOT

FOLDERS = ("baselines", "kernels", "method", "repro", "library")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The package's Python sources, to be changed and put back."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            copy = root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return root


def located_in(root: Path, module: str) -> Path | None:
    inside = root.joinpath(*module.split(".")[1:])
    found = (inside / "__init__.py", inside.with_suffix(".py"))
    return next((path for path in found if path.is_file()), None)


@cache
def settings(*overrides: str) -> dict:
    with composing():
        composed = compose("config", overrides=list(overrides))
    return {name: portable(composed[name]) for name in cell.PARTS}


def cell_digest(root: Path, *overrides: str) -> str:
    return sources_digest({cell.MEASURE, *targets(settings(*overrides))}, partial(located_in, root))


def plan_digest(root: Path, *overrides: str) -> str:
    method = targets(settings(*overrides)["method"])
    return sources_digest({planning.LOADING, *method}, partial(located_in, root))


CELLS = {
    "teal": ("method=teal",),
    "chess": ("method=chess",),
    "wisparse": ("method=wisparse",),
    "unseen": ("method=teal", "calibration=unseen"),
    "paper": ("method=wina", "suite=paper", "calibration=paper"),
    "speed": ("method=teal", "latency=decode"),
}


def digests(root: Path) -> dict[str, str]:
    cells = {name: cell_digest(root, *overrides) for name, overrides in CELLS.items()}
    return cells | {f"plan of {name}": plan_digest(root, *overrides) for name, overrides in CELLS.items()}


def changed(root: Path, file: str, change: Callable[[str], str]) -> set[str]:
    """Names of the cells and plans that a change of a file makes others."""
    before, path = digests(root), root / file
    text = path.read_text()
    assert change(text) != text
    try:
        path.write_text(change(text))
        return {name for name, digest in digests(root).items() if digest != before[name]}
    finally:
        path.write_text(text)


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


def with_a_constant(text: str) -> str:
    return f"{text}\nCONSTANT = 1\n"


ALL = {*CELLS, *(f"plan of {name}" for name in CELLS)}


@pytest.mark.slow
def test_a_new_baseline_leaves_every_cell_and_plan(checkout):
    before, newer = digests(checkout), checkout / "baselines/newer.py"
    shutil.copyfile(checkout / "baselines/teal.py", newer)
    assert digests(checkout) == before
    newer.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("method/plan.py", "from __future__", "# why not\nfrom __future__"),
        ("method/plan.py", '"""', '"""Changed: '),
        ("method/wisparse/method.py", '    """Exponent while', '    """The exponent while'),
        ("baselines/teal.py", "return 0.0", "return (\n            0.0\n        )"),
        ("repro/embedded/calibration.py", "if TYPE_CHECKING:\n", "if TYPE_CHECKING:\n    import numpy\n"),
    ],
)
def test_comments_docstrings_formatting_and_types_leave_every_cell_and_plan(checkout, file, old, new):
    assert changed(checkout, file, replaced(old, new)) == set()


def test_a_constant_of_a_baseline_changes_its_cells_and_those_of_what_builds_on_it(checkout):
    found = changed(checkout, "baselines/teal.py", replaced("return 0.0", "return 0.5"))
    built_on_teal = {"teal", "unseen", "paper", "speed"}
    assert found == built_on_teal | {f"plan of {name}" for name in built_on_teal}


def test_how_a_plan_is_applied_changes_every_cell(checkout):
    assert set(CELLS) <= changed(checkout, "method/running/apply.py", with_a_constant)


def test_what_keeps_calibration_text_apart_changes_the_cells_with_unseen_text(checkout):
    assert "unseen" in changed(checkout, "repro/text/overlap.py", replaced("RUN = 13", "RUN = 12"))


def test_weights_that_are_made_otherwise_change_every_plan(checkout):
    assert changed(checkout, "repro/models/norm_spread.py", with_a_constant) == ALL


def test_a_kernel_changes_the_cells_that_measure_speed_alone(checkout):
    found = changed(checkout, "kernels/cpu/gemv.py", with_a_constant)
    assert found == {"speed"}


def test_an_allocator_and_a_mask_that_a_configuration_names_count(checkout):
    blocks, rules = "wisparse.method.search.blocks", "wisparse.method.rules"
    assert {blocks, rules} <= targets(settings("method=wisparse"))
    assert rules in targets(settings("method=teal"))
    assert blocks not in targets(settings("method=teal"))


@pytest.mark.slow
def test_the_key_does_not_depend_on_where_the_package_lies(checkout):
    for overrides in CELLS.values():
        here = sources_digest({cell.MEASURE, *targets(settings(*overrides))})
        assert cell_digest(checkout, *overrides) == here


def test_imports_inside_functions_count_and_those_for_type_checkers_do_not(tmp_path):
    (tmp_path / "a.py").write_text(
        "from typing import TYPE_CHECKING\nimport numpy\nif TYPE_CHECKING:\n    from . import hidden\n"
        "else:\n    from . import seen\ndef f():\n    from .inner import deep, thing\n"
    )
    for module in ("__init__", "seen", "hidden"):
        (tmp_path / f"{module}.py").write_text("")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "__init__.py").write_text("thing = 1\n")
    (tmp_path / "inner" / "deep.py").write_text("from ..round import x\n")
    (tmp_path / "round.py").write_text("import wisparse.a\n")
    found = import_closure(["wisparse.a"], partial(located_in, tmp_path))
    names = {"a", "seen", "inner", "inner.deep", "round"}
    assert found.keys() == {f"wisparse.{name}" for name in names}


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"wisparse\.baselines\.absent"):
        sources_digest(["wisparse.baselines.absent"])


def parts_of(group: str) -> list[Path]:
    return sorted((CONFIGURATION / group).glob("*.yaml"))


def test_no_code_escapes_the_closure():
    """The `__init__` of the folders is left out of it, and what is imported by a computed name."""
    for folder in FOLDERS[:-1]:
        for path in (ROOT / folder).rglob("__init__.py"):
            assert all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body), path
    everything = {
        module for path in CONFIGURATION.rglob("*.yaml") for module in targets(yaml.safe_load(path.read_text()))
    }
    for module in import_closure({cell.MEASURE, *everything} - {"wisparse.repro.cell.sweep"}):
        text = identity.located(module).read_text()
        assert "import_module" not in text, module
        assert "__import__" not in text, module


def named_files(*overrides: str) -> set[Path]:
    with composing():
        config = compose("config", overrides=list(overrides))
    parts = [instantiate(config[name]) for name in cell.PARTS]
    return {path for part in parts for path in getattr(part, "files", list)()}


@pytest.mark.slow
def test_a_part_names_the_files_that_are_no_python():
    manifests = {ROOT / "repro/embedded" / name for name in ("manifest.json", "calibration_manifest.json")}
    embedded = {*(ROOT / "repro/embedded/tasks").glob("*.yaml"), *manifests}
    kernels = {path for path in (ROOT / "kernels").rglob("*") if path.suffix in (".cu", ".cpp", ".h")}
    assert named_files("method=teal") == embedded
    assert named_files("method=teal", "latency=decode") == embedded | kernels
    assert len(kernels) >= 8


def test_a_task_of_lm_eval_names_its_prompts():
    for name, task in harness_tasks().items():
        own, *prompts = task.files()
        assert own == ROOT / f"repro/evaluation/paper_tasks/{name}.yaml"
        assert set(task.configurations(False)) <= set(prompts)
        assert all(path.is_file() for path in (own, *prompts))

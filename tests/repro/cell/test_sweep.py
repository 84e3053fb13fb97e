"""Cells in other processes: their ends are reported, cells are computed once, and nothing is written by two."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from unittest import mock

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from wisparse.kernels.shared_files import release, taken
from wisparse.method.passes.progress import Progress
from wisparse.method.plan import ProjectionRule, SparsityPlan
from wisparse.repro import run
from wisparse.repro.cell.job import CellJob, Outcome
from wisparse.repro.cell.plan_cache import PlanCache
from wisparse.repro.cell.sweep import _number_of_cells, _show_life
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.cost.reproduction_cost import composed, jobs
from wisparse.repro.locks import LOCKS, held
from wisparse.repro.records import write_json

from .conftest import CELL

SMALL = [
    "logger=none", "suite=perplexity", f"suite.text={REPOSITORY / 'repro/run.py'}", "suite.length=64",
    "suite.windows=4", "calibration.sequences=2", "calibration.length=64",
]  # fmt: skip


def test_the_number_of_cells_is_that_of_the_outlook():
    swept = composed("config", "experiment=table1_paper").hydra.sweeper.params
    values = [[f"{name}={value}" for value in str(values).split(",")] for name, values in swept.items()]
    counted = _number_of_cells([list(job) for job in product(*values)])
    assert counted.startswith(f"{len(jobs('table1_paper'))} cells in 54 jobs: ")
    assert _number_of_cells([["method=teal", "sparsity=0.4"], ["method=teal", "sparsity=0.5"]]) == "2 cells"


@pytest.mark.slow
def test_what_an_override_stands_for_is_a_matter_of_the_cell(start):
    name = "++quantisation.name=eight-${.lm_head}"
    code, out, errors = start("-m", *CELL, "method=dense", "quantisation=int8", name, "sparsity=0,0.5")
    assert code == 0, errors
    assert "1 cell in 2 jobs: the dense model has one for all sparsities" in errors
    assert json.loads(out[-1])["quantisation"]["name"] == "eight-int8"


@pytest.mark.slow
@pytest.mark.skipif(
    # Without any plug-in their common package is missing, in which find_spec then does not look.
    not (find_spec("hydra_plugins") and find_spec("hydra_plugins.hydra_joblib_launcher")),
    reason="the launcher is not installed: pip install -e '.[joblib]'",
)
def test_cells_of_other_processes_are_reported_and_two_that_are_one_are_computed_once(tmp_path):
    sweep = ["-m", "method=dense", "sparsity=0.3,0.4,1.5", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    places = [f"output_dir={tmp_path / 'outputs'}", f"cache_dir={tmp_path / 'plans'}"]
    command = [sys.executable, str(REPOSITORY / "repro/run.py"), *sweep, *SMALL, *places]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 2, ran.stderr
    assert "error: method=dense sparsity=1.5" in ran.stderr
    assert "2 finished, 0 out of reach, 1 failed" in ran.stderr
    assert ran.stderr.count("llama-mini-dense-0 → ") == 1
    assert ran.stderr.count("llama-mini-dense-0 is finished already") == 1
    assert len(list(tmp_path.rglob("record.json"))) == 1
    record = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("{")))
    assert record["command"].startswith("python repro/run.py -m method=dense sparsity=0.3,0.4,1.5")
    assert not list(tmp_path.rglob(".outcomes"))


@pytest.mark.slow
def test_a_job_that_left_nothing_is_reported_as_killed(tmp_path, monkeypatch, capsys):
    leave = CellJob._leave

    def killed(self: CellJob, outcome: Outcome) -> None:
        if HydraConfig.get().job.num != 1:
            leave(self, outcome)

    monkeypatch.setattr(CellJob, "_leave", killed)
    places = [f"output_dir={tmp_path / 'outputs'}", f"cache_dir={tmp_path / 'plans'}"]
    # None of these cells needs a model, since none can be: what counts is how they are reported.
    monkeypatch.setattr(sys, "argv", ["repro/run.py", "-m", "sparsity=1.1,1.2,1.3", *SMALL, *places])
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as stopped:
        run.main()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 1
    assert ["its job ended without a result" in line for line in errors] == [False, True, False]
    assert errors[1].startswith("error: sparsity=1.2: ")
    assert not list(tmp_path.rglob(".outcomes"))


@pytest.mark.slow
def test_two_jobs_that_want_a_plan_at_once_make_it_once(tmp_path):
    made = []

    def make(_progress: Progress) -> SparsityPlan:
        made.append(time.sleep(0.2))
        return SparsityPlan({"0.q": (4, 4)}, {"0.q": ProjectionRule(thresholds=torch.ones(4))})

    cache = PlanCache(tmp_path / "plans")
    with ThreadPoolExecutor(2) as jobs:
        found = list(jobs.map(lambda _: cache.find_or_make({"sparsity": 0.5}, make), "ab"))
    assert len(made) == 1
    assert sorted(one.from_cache for one in found) == [False, True]
    assert found[0].sha256 == found[1].sha256


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), held(tmp_path / "cell"):
        raise RuntimeError
    with held(tmp_path / "cell"):
        assert [path.name for path in (tmp_path / LOCKS).iterdir()] == ["cell.lock"]
    assert not list((tmp_path / LOCKS).iterdir())


def test_what_killed_processes_left_is_removed_and_what_is_held_is_not(tmp_path):
    (tmp_path / LOCKS).mkdir()
    for name in ("killed", "alive"):
        (tmp_path / LOCKS / f"{name}.lock").touch()
    alive = taken(tmp_path / LOCKS / "alive.lock")
    with held(tmp_path / "cell"):
        assert taken(tmp_path / LOCKS / "cell.lock") is None
    assert [path.name for path in (tmp_path / LOCKS).iterdir()] == ["alive.lock"]
    release(tmp_path / LOCKS / "alive.lock", alive)


def test_a_lock_whose_file_was_removed_locks_nothing(tmp_path):
    path = tmp_path / "cell.lock"
    first = taken(path)
    waiting = os.open(path, os.O_RDWR)  # as by one who looked before it was given up
    release(path, first)
    second = taken(path)
    fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free, but of a file that is gone
    assert taken(path) is None, "one holds it"
    os.close(waiting)
    release(path, second)
    assert not path.exists()


def test_outcomes_of_killed_commands_are_removed_and_those_of_living_ones_are_not(tmp_path):
    for name in ("killed", "alive", "own"):
        (tmp_path / name).mkdir()
    (tmp_path / "killed.lock").touch()
    alive = taken(tmp_path / "alive.lock")
    _show_life(tmp_path / "own")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "alive.lock", "own", "own.lock"]
    release(tmp_path / "alive.lock", alive)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_sweep_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, number, code):
    def stopped(*_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(CellJob, "_attempt", stopped)
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "sparsity=0.1,0.2", f"output_dir={tmp_path}", *SMALL])
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "2 cells; finished ones are kept",
        "interrupted: finished cells are kept, the same command goes on from there",
    ]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list(tmp_path.rglob(".outcomes"))


@pytest.mark.slow
def test_a_full_disk_is_said_where_the_outcome_cannot_be_written(tmp_path, monkeypatch, capsys):
    def full(path: Path, *_: object, **__: object) -> None:
        if path.is_relative_to(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_json(path, *_, **__)

    monkeypatch.setattr("wisparse.repro.records.write_json", full)
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "sparsity=1.1,1.2", f"output_dir={tmp_path}", *SMALL])
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert "ended without a result" not in capsys.readouterr().err

"""The entry point on the real path: one cell, sweeps, resuming, caching, and every kind of bad input."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.record import SECTIONS
from wisparse.repro.records import SEAL

SMALL = ["calibration.sequences=2", "calibration.length=64", "logger=none"]
ON_A_TEXT = [
    "suite=perplexity",
    f"suite.text={REPOSITORY / 'repro/run.py'}",
    "suite.length=64",
    "suite.windows=4",
]


def choices(group: str) -> str:
    return ", ".join(sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml")))


CELL = ["method=teal_uniform", "sparsity=0.4", *ON_A_TEXT, *SMALL]


@pytest.fixture(scope="module")
def first(folders) -> subprocess.CompletedProcess[str]:
    """The cell computed by the script as a user starts it, from another folder."""
    command = [sys.executable, str(REPOSITORY / "repro/run.py"), *CELL, *folders]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as many threads as `start` has: digits depend on it
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)


def cell_folder(folders: list[str], name: str) -> Path:
    (found,) = Path(folders[0].partition("=")[2], "run").glob(f"{name}-*")
    return found


def results(record: dict[str, object]) -> dict[str, object]:
    names = ("sparsity", "realised", "tasks", "average", "perplexity", "bits_per_byte", "items_sha256")
    return {name: record[name] for name in names} | {"plan": record["plan"]["sha256"]}


@pytest.mark.slow
def test_a_run_ends_with_its_record_as_one_line(first, folders):
    assert first.returncode == 0, first.stderr
    *table, last = first.stdout.splitlines()
    record = json.loads(last)
    folder = cell_folder(folders, "llama-mini-teal_uniform-0.4")
    assert record == json.loads((folder / "record.json").read_text())
    assert record.keys() == SECTIONS | {"latency", "conventions", SEAL}
    assert any("perplexity" in line for line in table)
    assert sorted(path.name for path in folder.iterdir()) == ["items.json", "record.json"]


@pytest.mark.slow
def test_a_terminal_shows_the_table_without_the_line(first, folders):
    ours, theirs = pty.openpty()
    command = [sys.executable, str(REPOSITORY / "repro/run.py"), *CELL, *folders]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, cwd="/") as running:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what a terminal says when nobody writes to it any more
            while part := os.read(ours, 1 << 16):
                shown += part
        os.close(ours)
    assert running.returncode == first.returncode == 0
    assert b"perplexity" in shown
    assert b'"schema"' not in shown


@pytest.mark.slow
def test_the_record_says_what_was_run(first):
    record = json.loads(first.stdout.splitlines()[-1])
    assert record["model"]["family"] == "llama"
    assert record["model"]["parameters"] == 11_474_240
    assert record["model"]["attention"] == "sdpa"
    assert len(record["model"]["companions"]) == 64
    assert record["config"]["model"]["path"] == "repro/embedded/models/llama-mini"
    assert record["method"]["config"]["name"] == "teal_uniform"
    assert record["protocol"]["name"] == "half"
    assert record["calibration"]["overlap"]["items"]["text"] > 1
    assert record["calibration"] | {"sha256": "", "overlap": {}} == {
        "name": "embedded", "sequences": 2, "length": 64, "tokens": 128, "sha256": "", "overlap": {},
    }  # fmt: skip
    assert record["suite"]["name"] == "perplexity"
    assert abs(record["realised"]["realised_sparsity"] - 0.4) < 0.1
    assert record["realised"]["bytes_per_token"] < record["realised"]["dense_bytes_per_token"]
    assert set(record["seconds"]) == {"load", "plan", "evaluation", "latency"}
    assert "calibration" in record["plan"]["seconds_by_stage"]
    assert record["memory"]["rss_bytes"] > 50_000_000
    assert record["n_documents"] == 4
    assert not record["plan"]["from_cache"]
    assert record["command"].startswith("python repro/run.py method=teal_uniform")


@pytest.mark.slow
def test_a_finished_cell_is_not_computed_again(first, start):
    code, out, err = start(*CELL)
    assert code == 0
    assert "is finished already" in err
    assert json.loads(out[-1]) == json.loads(first.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_finished_cell_is_read_without_a_lock(first, start, monkeypatch):
    """Another user may have finished it, in a folder that lets nobody else write."""
    monkeypatch.setattr("wisparse.repro.locks.held", None)  # to ask for a lock would fail
    code, out, _ = start(*CELL)
    assert code == 0
    assert json.loads(out[-1]) == json.loads(first.stdout.splitlines()[-1])


@pytest.mark.slow
def test_computed_again_it_has_the_same_digits_and_the_cached_plan(first, start):
    before = json.loads(first.stdout.splitlines()[-1])
    code, out, _ = start(*CELL, "force=true")
    again = json.loads(out[-1])
    assert code == 0
    assert results(again) == results(before)
    assert again["plan"]["from_cache"]
    assert again["utc"] >= before["utc"]


@pytest.mark.slow
def test_a_damaged_record_and_a_damaged_plan_are_made_again_with_a_warning(first, folders, start):
    before = json.loads(first.stdout.splitlines()[-1])
    folder = cell_folder(folders, "llama-mini-teal_uniform-0.4")
    (folder / "record.json").write_text("{")
    plan = Path(folders[1].partition("=")[2]) / before["plan"]["key"][:32] / "plan.safetensors"
    plan.write_bytes(plan.read_bytes()[:100])
    code, out, err = start(*CELL)
    assert code == 0
    assert "record is damaged" in err
    assert "plan is damaged" in err
    assert results(json.loads(out[-1])) == results(before)


@pytest.mark.slow
def test_a_changed_setting_takes_neither_the_record_nor_the_plan(first, start):
    before = json.loads(first.stdout.splitlines()[-1])
    other = json.loads(start(*CELL, "calibration.seed=1")[1][-1])
    assert other["cell"]["key"] != before["cell"]["key"]
    assert other["plan"]["key"] != before["plan"]["key"]
    assert not other["plan"]["from_cache"]
    protocol = json.loads(start(*CELL, "protocol=all")[1][-1])
    assert protocol["cell"]["key"] != before["cell"]["key"]
    assert protocol["plan"]["from_cache"]


@pytest.mark.slow
def test_the_embedded_suite_and_wandb_offline(start, monkeypatch, folders):
    pytest.importorskip("wandb", reason="wandb is optional on GPU machines")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("wisparse.repro.cell.loggers._has_login", lambda: False)
    tiny = ["suite.tasks=[next_line]", "suite.limit=3", "suite.documents=1", *SMALL[:2]]
    code, out, err = start("method=dense", "logger=wandb", *tiny)
    assert code == 0, err
    record = json.loads(out[-1])
    assert record["tasks"]["next_line"]["n"] == 3
    assert record["average"] == 100 * record["tasks"]["next_line"]["value"]
    assert record["sparsity"] == record["realised"]["realised_sparsity"] == 0.0
    (logged,) = Path(folders[0].partition("=")[2], "wandb").glob("offline-run-*/files/media/table/tasks*.json")
    assert json.loads(logged.read_text())["data"][0][0] == "next_line"


@pytest.mark.slow
def test_a_single_run_is_shown_beside_the_dense_model_which_is_kept_as_a_cell(start, folders):
    other = [*ON_A_TEXT[:-1], "suite.windows=3", *SMALL]
    code, out, err = start("method=teal_uniform", "sparsity=0.4", *other)
    assert code == 0, err
    assert json.loads(out[-1])["method"]["name"] == "teal_uniform"
    assert "llama-mini-dense-0 →" in err
    shown = next(line for line in out if "perplexity" in line and "×" in line)
    code, out, err = start("method=dense", *other)
    dense = json.loads(out[-1])
    assert code == 0
    assert "is finished already" in err
    assert f"{dense['perplexity']:.3f}" in shown
    assert dense["sparsity"] == 0.0
    # From its record, now that there is one.
    assert "×" in "".join(start("method=teal_uniform", "sparsity=0.4", *other)[1][:-1])


@pytest.mark.slow
def test_no_dense_model_is_measured_where_it_is_not_wanted_or_in_a_sweep(start, folders):
    other = [*ON_A_TEXT[:-1], "suite.windows=2", *SMALL]
    for overrides in (["sparsity=0.4", "reference=false"], ["-m", "sparsity=0.5,0.6"]):
        code, out, err = start(*overrides, "method=teal_uniform", *other)
        assert code == 0, err
        assert "dense" not in err
        records = [json.loads(line) for line in out if line.startswith("{")]
        assert {record["method"]["name"] for record in records} == {"teal_uniform"}


@pytest.mark.slow
def test_a_dense_model_that_cannot_be_measured_loses_nothing(start, folders, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("wisparse.repro.cell.reference.dense_cell", fail)
    code, out, err = start("method=teal_uniform", "sparsity=0.35", *ON_A_TEXT, *SMALL)
    assert code == 0
    assert json.loads(out[-1])["sparsity"] == 0.35
    assert "could not be measured beside it: RuntimeError: out of luck" in err


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_cell_out_of_reach(start, folders):
    code, out, err = start("-m", "method=dense,chess", "sparsity=0.3,0.9", *ON_A_TEXT, *SMALL)
    records = [json.loads(line) for line in out if line.startswith("{")]
    assert code == 0, err
    assert [(record["method"]["name"], record["sparsity"]) for record in records] == [
        ("dense", 0.0), ("dense", 0.0), ("chess", 0.3),
    ]  # fmt: skip
    assert records[0] == records[1]
    note = json.loads((cell_folder(folders, "llama-mini-chess-0.9") / "unreachable.json").read_text())
    assert 0.6 < note["maximum"] < 0.9
    assert "out of reach: llama-mini-chess-0.9" in err
    assert "3 finished, 1 out of reach, 0 failed" in err


@pytest.mark.slow
def test_a_sweep_with_a_failed_cell_fails_and_names_it(start):
    code, out, err = start("-m", "method=dense", "sparsity=0.3,1.5", *ON_A_TEXT, *SMALL)
    assert code == 2
    assert json.loads(out[-1])["method"]["name"] == "dense"
    assert "error: method=dense sparsity=1.5" in err
    assert "sparsity=1.5 is not a number in [0, 1)" in err
    assert "1 finished, 0 out of reach, 1 failed" in err

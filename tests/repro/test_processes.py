"""One cell on two processes: the numbers of one, and no process waits for one that failed."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import multiprocessing
from wisparse.method.errors import UserError
from wisparse.repro import processes, run
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.cost.process_scaling import main, rows_of, stored, write_rows
from wisparse.repro.processes import OtherProcessError, SharedTrafficCounter

CELL = [
    "method=teal_uniform", "sparsity=0.5", "logger=none",
    "suite.tasks=[variable_misuse,complete_line]", "suite.limit=5", "suite.documents=5",
    "suite.batch_tokens=256", "suite.batch_size=2",
    "calibration.sequences=2", "calibration.length=64",
]  # fmt: skip
RESULTS = (
    "sparsity", "realised", "tasks", "average", "perplexity", "bits_per_byte", "n_tokens", "items_sha256",
)  # fmt: skip


def two_processes(folders: list[str]) -> dict[str, object]:
    """The record that two processes print last, and one alone."""
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    command = [sys.executable, "-m", *launch, str(REPOSITORY / "repro/run.py"), *CELL, *folders]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as many threads as `one_process` has
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count('{"schema"') == 1
    return json.loads(ran.stdout.splitlines()[-1])


def one_process(
    folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> dict[str, object]:
    """The record of the same cell, computed in this process."""
    monkeypatch.setattr(sys, "argv", ["repro/run.py", *CELL, *folders])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as stopped:
        run.main()
    torch.set_num_threads(threads)
    assert stopped.value.code == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(tmp_path, monkeypatch, capsys):
    folders = [[f"output_dir={tmp_path / name}", f"cache_dir={tmp_path / name / 'plans'}"] for name in "12"]
    one = one_process(folders[0], monkeypatch, capsys)
    two = two_processes(folders[1])
    assert (one["model"]["processes"], two["model"]["processes"]) == (1, 2)
    assert {name: one[name] for name in RESULTS} == {name: two[name] for name in RESULTS}
    assert one["plan"]["sha256"] == two["plan"]["sha256"]
    assert one["cell"] == two["cell"]
    table = tmp_path / "scaling"
    for second in (two | {"perplexity": 1.0}, two | {"sparsity": 0.9}, two):
        write_rows(table, rows_of([one | {"sparsity": second["sparsity"]}, second]))
    with table.with_suffix(".csv").open() as file:
        rows = [(row["sparsity"], row["processes"], row["differing"]) for row in csv.DictReader(file)]
    assert rows == [("0.9", "1", ""), ("0.9", "2", ""), ("0.5", "1", ""), ("0.5", "2", "")]
    assert rows_of([one, two | {"perplexity": 1.0}])[1]["differing"] == "perplexity"
    assert table.with_suffix(".md").read_text().count("nothing |") == 4
    assert [one, two] in stored(tmp_path)  # beside the dense model of the same settings


class _Counts(SharedTrafficCounter):
    """A counter without a model, whose report is its counts."""

    def __init__(self) -> None:
        self._dropped, self._unread, self._kept_heads, self._heads, self._rows_together = {}, {}, {}, {}, 1
        self._tokens, self._sparse_tokens, self._sparse_rows, self._unseen = 0, 0, 0, 0


def _work(index: int, port: int, folder: str) -> None:
    """What each of three processes does; its findings go into a file."""
    os.environ |= {"LOCAL_RANK": str(index), "RANK": str(index), "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    processes.join()
    found = {"spread": processes.spread(range(8), lambda number: (number * number, processes.index()))}
    found["few"] = processes.spread([5], str)
    found["of_main"] = processes.of_main(lambda: f"made by {processes.index()}")
    counts = _Counts()
    if index != 1:  # a process without a batch has counted nothing
        counts.add_kept("0.q", torch.zeros(1, 2, 3))
        counts.add_tokens(torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processes.TrafficCounter, "report", lambda self: dict(vars(self)))
        found["counts"] = [counts.report(), counts.report()]
    try:
        if index == 1:
            processes.announce("out of memory")
        else:
            processes.wait()
    except OtherProcessError as error:
        found["error"] = str(error)
    found["afterwards"] = processes.gather(index)
    processes.leave()
    Path(folder, f"{index}.json").write_text(json.dumps(found))


def test_what_processes_exchange(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(_work, (port, str(tmp_path)), nprocs=3, start_method="fork")
    found = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(3)]
    assert [one.pop("error", None) for one in found] == [
        "process 1: out of memory", None, "process 1: out of memory",
    ]  # fmt: skip
    assert found[0] == found[1] == found[2]
    assert found[0]["spread"] == [[number * number, number % 3] for number in range(8)]
    assert found[0]["few"] == ["5"]
    assert found[0]["of_main"] == "made by 0"
    expected = {"_dropped": {"0.q": 12}, "_tokens": 8, "_sparse_tokens": 6, "_sparse_rows": 6}
    assert [{name: counts[name] for name in expected} for counts in found[0]["counts"]] == [expected] * 2
    assert found[0]["afterwards"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("device", "latency", "message"),
    [("cuda:1", "none", "model.device=auto"), ("auto", "decode", "is measured by one process")],
)
def test_what_several_processes_cannot_do_is_said(monkeypatch, device, latency, message):
    processes.check(device, latency)
    monkeypatch.setattr(
        processes, "distributed",
        SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: 2),
    )  # fmt: skip
    processes.check("auto", "none")
    with pytest.raises(UserError, match=message):
        processes.check(device, latency)


@pytest.mark.parametrize("numbers", ["0,1", "-2", "two"])
def test_what_is_no_number_of_processes_is_refused(numbers, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["process_scaling", f"--processes={numbers}"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"error: --processes {numbers} is not like 1,2\n"

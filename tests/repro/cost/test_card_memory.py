"""The table of cards: rows of cells that fit and that do not, and what else ends the command."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from wisparse.method.errors import UserError
from wisparse.repro.cost import card_memory
from wisparse.repro.cost.card_memory import COLUMNS, measured, write_rows
from wisparse.repro.tables.csv_rows import read_rows

FULL = (
    "error: OutOfMemoryError: CUDA out of memory. Tried to allocate {}. GPU 0 has a total capacity of "
    "139.80 GiB of which {} is free. Including non-PyTorch memory, this process has 6.53 GiB memory in use."
)
"""What PyTorch says of an allocation in vain."""
OVERRIDES = ["model=llama3.1-8b", "suite=paper", "search=paper"]
RECORD = {
    "model": {"device": "cuda", "device_name": "NVIDIA H200", "threads": 1},
    "memory": {"cuda_bytes": 20_480_000_000},
}


@pytest.fixture
def ended(monkeypatch):
    """Makes the cell's process end with this code, on these streams."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")

    def end(code: int, out: str = "", err: str = "") -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            return subprocess.CompletedProcess(command, code, out, err)

        monkeypatch.setattr(card_memory.subprocess, "run", run)
        return commands

    return end


def test_a_cell_that_fits_has_its_peak_and_one_that_does_not_says_so(ended, tmp_path):
    commands = ended(0, f"a table\n{json.dumps(RECORD)}\n")
    fits = measured(24, "teal", OVERRIDES)
    assert commands[0][commands[0].index("--gb") + 1] == "24"
    assert "method=teal" in commands[0]
    ended(1, err=FULL.format("31.00 GiB", "117.25 GiB"))
    write_rows(tmp_path / "cards", [fits, measured(24, "wisparse", OVERRIDES)])
    write_rows(tmp_path / "cards", [measured(80, "wisparse", OVERRIDES) | {"fits": "yes", "peak_gb": "31.0"}])
    rows = read_rows(tmp_path / "cards.csv")
    assert [tuple(row[name] for name in COLUMNS[:8]) for row in rows] == [
        ("llama3.1-8b", "24", "teal", "0.5", "paper", "paper", "yes", "20.5"),
        ("llama3.1-8b", "24", "wisparse", "0.5", "paper", "paper", "no", ""),
        ("llama3.1-8b", "80", "wisparse", "0.5", "paper", "paper", "yes", "31.0"),
    ]
    assert "| llama3.1-8b | 24 | wisparse | 0.5 | paper | paper | no |  | NVIDIA H200 |" in (
        tmp_path / "cards.md"
    ).read_text(encoding="utf-8")


def test_a_cell_measured_again_replaces_its_row(ended, tmp_path):
    ended(1, err=FULL.format("512.00 MiB", "1.25 GiB"))
    write_rows(tmp_path / "cards", [measured(24, "teal", OVERRIDES)])
    ended(0, json.dumps(RECORD))
    write_rows(tmp_path / "cards", [measured(24, "teal", OVERRIDES)])
    assert [row["fits"] for row in read_rows(tmp_path / "cards.csv")] == ["yes"]


def test_a_gpu_that_others_filled_says_nothing_of_a_card(ended):
    ended(1, err=FULL.format("112.00 MiB", "90.38 MiB"))
    with pytest.raises(UserError, match=r"full, with 90\.38 MiB left: .* run this when the GPU is free"):
        measured(24, "wisparse", OVERRIDES)


def test_another_failure_is_no_row(ended, capsys):
    ended(2, err="error: no such method\n")
    with pytest.raises(SystemExit) as ending:
        measured(24, "nothing", OVERRIDES)
    assert ending.value.code == 2
    assert "no such method" in capsys.readouterr().err


def test_without_a_gpu_there_is_nothing_to_measure(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["card_memory", "--gb", "24"])
    with pytest.raises(SystemExit) as ending:
        card_memory.main()
    assert ending.value.code == 2
    assert "measured on a CUDA GPU" in capsys.readouterr().err

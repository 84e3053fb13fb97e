"""A step that a CPU has no memory for is refused before anything is read, with what it would take."""

import argparse
import dataclasses

import pytest
from wisparse.repro.embedded import step_memory
from wisparse.repro.embedded.recipes import RECIPES
from wisparse.repro.embedded.step_memory import check_memory, free_bytes, step_bytes

OWN = RECIPES["llama-mini"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with so many GB free."""

    def free(gigabytes: float) -> None:
        lines = (
            f"MemTotal: 99999999 kB\nMemAvailable:   {gigabytes * 1e9 / 1024:.0f} kB\nHugePages_Total:    0\n"
        )
        (tmp_path / "meminfo").write_text(lines)

    monkeypatch.setattr(step_memory, "MEMORY", tmp_path / "meminfo")
    return free


def test_a_step_grows_with_its_tokens_and_a_token_is_as_measured():
    tokens = OWN.batch * OWN.length
    # Peaks of one step with 2, 4 and 8 sequences, on a CPU: 904,268, 1,195,256 and 1,734,888 kB.
    measured = (1_734_888 - 904_268) * 1024 / (6 * OWN.length)
    assert step_bytes(OWN) / tokens == pytest.approx(measured, rel=0.1)
    assert step_bytes(dataclasses.replace(OWN, batch=2)) == pytest.approx(step_bytes(OWN) * 2 / OWN.batch)


def test_too_large_a_step_ends_in_one_line_on_a_cpu_alone(machine, capsys):
    machine(20)
    assert free_bytes() == pytest.approx(20e9, rel=1e-6)
    parser, small = argparse.ArgumentParser(), dataclasses.replace(OWN, batch=8)
    check_memory(parser, "cuda", [OWN])
    check_memory(parser, "cpu", [small])
    with pytest.raises(SystemExit) as ended:
        check_memory(parser, "cpu", [small, OWN])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "error: a step of 131,072 tokens takes about 35 GB on a CPU, and 20 GB are free" in said
    assert said.count("\n") == 1
    machine(40)
    check_memory(parser, "cpu", [OWN])

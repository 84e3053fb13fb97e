"""The table of one cell: the dense model beside it, and nothing that was not measured."""

from __future__ import annotations

import json
import logging
from copy import deepcopy

import pytest
from wisparse.repro.archive import stored_files
from wisparse.repro.cell.console import print_record
from wisparse.repro.cell.job import prepare_process

from ...conftest import ROOT


def records(table: str) -> list[dict]:
    files = stored_files(ROOT / "results" / "records" / table)
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


@pytest.fixture(scope="module")
def pair() -> tuple[dict, dict]:
    """A sparse and the dense record of one model of Table 1."""
    found = [record for record in records("table1") if record["model"]["name"] == "llama-mini"]
    dense = next(record for record in found if record["method"]["name"] == "dense")
    teal = next(record for record in found if record["method"]["name"] == "teal" and record["sparsity"] == 0.5)
    return teal, dense


@pytest.fixture
def shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")

    def show(*found: dict) -> list[list[str]]:
        """Columns of each row of the printed table, and its caption's words."""
        print_record(*found)
        lines = capsys.readouterr().out.splitlines()
        return [[part.strip() for part in line.replace("┃", "│").split("│") if part.strip()] for line in lines]

    return show


def row(lines: list[list[str]], name: str) -> list[str]:
    (found,) = [line for line in lines if line and line[0].startswith(name)]
    return found


def test_dense_stands_beside_sparse_with_the_difference(pair, shown):
    teal, dense = pair
    lines = shown(teal, dense)
    # The error is of the value, and stands beside it.
    assert row(lines, "measure")[:5] == ["measure", "value", "±", "dense", "difference"]
    for name in teal["tasks"]:
        mine, theirs = (100 * record["tasks"][name]["value"] for record in pair)
        error = 100 * teal["tasks"][name]["stderr"]
        assert row(lines, name)[1:5] == [
            f"{mine:.1f} %", f"{error:.1f}", f"{theirs:.1f} %", f"{mine - theirs:+.1f}"
        ]  # fmt: skip
    difference = teal["average"] - dense["average"]
    assert row(lines, "average")[1:] == [
        f"{teal['average']:.2f} %",
        f"{dense['average']:.2f} %",
        f"{difference:+.2f}",
    ]
    ratio = teal["perplexity"] / dense["perplexity"]
    assert row(lines, "perplexity")[3] == f"× {ratio:.4f}"
    assert ratio > 1
    read = teal["realised"]["bytes_per_token"], teal["realised"]["dense_bytes_per_token"]
    assert row(lines, "bytes read")[1:] == [f"{read[0]:,.0f}", f"{read[1]:,.0f}", f"× {read[0] / read[1]:.3f}"]
    assert read[1] == dense["realised"]["bytes_per_token"]


def test_without_a_dense_record_its_bytes_alone_are_known(pair, shown):
    lines = shown(pair[0])
    assert len(row(lines, "perplexity")) == 3
    assert row(lines, "bytes read")[3].startswith("× 0.")


def test_a_run_without_a_suite_shows_the_speed_alone(shown):
    record = next(record for record in records("speed") if record["method"]["name"] == "teal")
    assert record["realised"]["tokens"] == 0
    lines = shown(record)
    assert not [line for line in lines if line and line[0] == "realised sparsity"]
    realised = record["latency"]["traffic"]["realised_sparsity"]
    assert row(lines, "realised sparsity while decoding")[1] == f"{100 * realised:.2f} %"
    assert not any("0.00 %" in part for line in lines for part in line)
    assert not any("protocol" in part for line in lines for part in line)


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_spread_of_a_speed_is_that_of_repeats_and_none_of_one_alone(shown, repeats):
    record = deepcopy(next(record for record in records("speed") if record["method"]["name"] == "teal"))
    for timing in record["latency"]["timings"].values():
        timing |= {"repeats": repeats, "tok_s": 10.0, "tok_s_lowest": 9.0, "tok_s_highest": 13.0}
    lines, name = shown(record), next(iter(record["latency"]["timings"]))
    spread = ["2.0"] if repeats > 1 else []
    assert row(lines, f"{name}, tok/s")[1:] == ["10.0", *spread, str(repeats)]
    assert any("half the distance" in part for line in lines for part in line) == (repeats > 1)


def test_a_task_that_the_model_fails_altogether_is_still_compared(pair, shown):
    teal, dense = deepcopy(pair)
    name = next(iter(teal["tasks"]))
    dense["tasks"][name]["value"] = 0.0
    assert row(shown(teal, dense), name)[3] == "0.0 %"


def test_what_torch_says_of_a_machine_without_a_gpu_is_left_out_and_nothing_else(caplog):
    prepare_process()
    logger = logging.getLogger("torch.utils.cpp_extension")
    with caplog.at_level(logging.WARNING):
        logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
        logger.warning("the compiler is too old")
    assert [entry.getMessage() for entry in caplog.records] == ["the compiler is too old"]


def test_of_pruned_weights_the_share_that_was_pruned_is_said(shown):
    record = next(one for one in records("frontier_pruned") if one["quantisation"]["config"]["sparsity"] == 0.6)
    lines = shown(record)
    assert row(lines, "weights pruned")[1] == "60.00 %"
    assert not [line for line in lines if line and line[0].startswith("realised")]
    assert f"{record['realised']['bytes_per_token']:,.0f}" in row(lines, "bytes read")

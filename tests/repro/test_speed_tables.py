"""The tables of decode speed and of kernels, from what is kept and from made-up measurements."""

from __future__ import annotations

import pytest
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.kernel_table import kernels_csv, renewed
from wisparse.repro.speed_plots import _one_way_each
from wisparse.repro.speed_table import read_speed, speed_markdown


@pytest.fixture(scope="module")
def kept():
    return read_speed(REPOSITORY / "results" / "records" / "speed")


def test_every_row_is_held_against_the_fastest_mode_of_torch_compile(kept):
    """Of its model and setting, whatever process timed it; that another did is marked."""
    wanted = {"model": "llama3.1-8b-random", "batch": 1, "prompt": 5}
    records = [cell.record for cell in kept.sorted_cells()]
    records = [
        record
        for record in records
        if wanted == {"model": record["model"]["name"]} | {n: record["latency"][n] for n in ("batch", "prompt")}
    ]
    modes = [
        (timing["tok_s"], name)
        for record in records
        for name, timing in record["latency"]["timings"].items()
        if name.startswith("torch.compile")
    ]
    fastest, name = max(modes)
    lines = [
        line for line in speed_markdown(kept).splitlines() if line.startswith("| llama3.1-8b-random | 1 | 5 |")
    ]
    assert len(lines) == len(records) > 2
    for line, record in zip(lines, records, strict=True):
        mark = "" if record["latency"]["timings"].get(name, {}).get("tok_s") == fastest else " *"
        ratio = record["latency"]["tok_s"] / fastest
        assert f"| {ratio:.2f}× {name.removeprefix('torch.compile ')}{mark} |" in line


def row(us: str, backend: str = "triton", sparsity: object = 0.5) -> dict[str, object]:
    names = {"device": "GPU", "shape": "m 4x8", "projection": "o", "dtype": "bfloat16"}
    return names | {"sparsity": sparsity, "us": us, "backend": backend}


def test_a_run_renews_what_it_measures_and_keeps_the_rest():
    kept = [row("1", sparsity="0.5"), row("2", "cuda c++", "0.5"), row("3", sparsity="0.25")]
    found = renewed(kept, [row("9")])
    assert [(one["us"], one["backend"]) for one in found] == [
        ("2", "cuda c++"),
        ("3", "triton"),
        ("9", "triton"),
    ]
    assert kernels_csv(found).count("\n") == 4


def test_the_plot_shows_a_product_as_a_step_runs_it_but_alone():
    ways = [
        "triton, lists given, tuned tiles",
        "cuda c++, dependent launch",
        "cuda c++",
        "triton, default tiles",
    ]
    rows = [row(str(place), way) for place, way in enumerate(ways)]
    assert [one["us"] for one in _one_way_each(rows)] == ["2"]
    assert [one["us"] for one in _one_way_each([rows[0]])] == ["0"]
    assert _one_way_each([row("1") | {"projection": "attention"}]) == []

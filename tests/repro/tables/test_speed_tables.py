"""The tables of decode speed and of kernels, from what is kept and from made-up measurements."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.figures.speed_plots import _one_way_each
from wisparse.repro.measured.cells import MeasuredCell
from wisparse.repro.record_facts import hardware
from wisparse.repro.report.summaries.speed import (
    DEVICE,
    _is_front,
    speed_by_bits,
    speed_by_model,
    speed_by_setting,
)
from wisparse.repro.speed.kernel_table import kernels_csv, measurement
from wisparse.repro.tables.csv_rows import renewed
from wisparse.repro.tables.speed.speed_data import SpeedData, read_speed
from wisparse.repro.tables.speed.speed_table import SPEED, speed_markdown


@pytest.fixture(scope="module")
def kept():
    return read_speed(REPOSITORY / "results" / "records" / "speed")


@pytest.mark.parametrize("device", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_every_row_is_held_against_the_fastest_mode_of_torch_compile(kept, device):
    """The fastest mode is of the row's device, model and setting; one of another process is marked."""
    wanted = (device, "llama3.1-8b-random", "bfloat16", 1, 5)
    records = [cell.record for cell in kept.sorted_cells()]
    records = [
        record
        for record in records
        if wanted
        == (
            *(record["model"][name] for name in ("device_name", "name", "dtype")),
            *(record["latency"][name] for name in ("batch", "prompt")),
        )
    ]
    modes = [
        (timing["tok_s"], name)
        for record in records
        for name, timing in record["latency"]["timings"].items()
        if name.startswith("torch.compile")
    ]
    fastest, name = max(modes)
    section = speed_markdown(kept).split(f"## {device}\n")[1].split("\n## ")[0]
    beginning = "| llama3.1-8b-random | bfloat16 | 1 | 5 |"
    lines = [line for line in section.splitlines() if line.startswith(beginning)]
    assert len(lines) == len(records) > 2
    for line, record in zip(lines, records, strict=True):
        mark = "" if record["latency"]["timings"].get(name, {}).get("tok_s") == fastest else " *"
        ratio = record["latency"]["tok_s"] / fastest
        assert f"| {ratio:.2f}× {name.removeprefix('torch.compile ')}{mark} |" in line


def test_the_summary_holds_every_setting_against_the_fastest_mode_of_it():
    """The plan at every sparsity first, then what else was measured at half; other devices are left out."""

    def cell(sparsity, tok_s, compiled=(), method="teal_uniform", batch=1, device=DEVICE):
        model = {"name": "m-random", "dtype": "bfloat16", "device": "cuda", "device_name": device}
        timings = {"engine-dense": 100.0, **{f"torch.compile {mode}": rate for mode, rate in compiled}}
        latency = {"batch": batch, "prompt": 5, "new_tokens": 9, "tok_s": tok_s, "byte_limit_speedup": 1.87}
        latency["timings"] = {name: {"tok_s": rate} for name, rate in timings.items()}
        return {"model": model, "method": {"name": method}, "sparsity": sparsity, "latency": latency}

    records = [
        cell(0.5, 150.0, [("a", 60.0), ("b", 50.0)]),
        cell(0.5, 120.0, batch=2),
        cell(0.4, 140.0, [("a", 40.0), ("b", 75.0)]),
        cell(0.5, 90.0, method="wina"),
        cell(0.4, 1.0, method="wina"),
        cell(0.5, 9.0, device="another"),
    ]
    cells = {number: MeasuredCell(record, {}, Path()) for number, record in enumerate(records)}
    assert speed_by_setting(SpeedData(cells)).splitlines()[2:] == [
        "| m, teal_uniform | 40 % | 100 | 140 | 1.40× | 1.87× | not measured | 1.87× |",
        "| m, teal_uniform | 50 % | 100 | 150 | 1.50× | 2.00× | not measured | 1.87× |",
        "| m, wina | 50 % | 100 | 90 | 0.90× | 1.20× | not measured | 1.87× |",
        "| m, teal_uniform, batch of 2 | 50 % | 100 | 120 | 1.20× | not measured | not measured | 1.87× |",
    ]


@pytest.mark.parametrize(
    ("timed", "faster"),
    [
        (
            {"torch.compile default": 60.0, "torch.compile max-autotune": 75.0, "compiled-decoder": 50.0},
            "2.00×",
        ),
        ({"torch.compile default": 60.0, "compiled-decoder": 100.0}, "1.50×"),
        ({"torch.compile default": 60.0}, None),
        ({"compiled-decoder": 100.0}, None),
        ({}, None),
    ],
)
def test_a_plan_is_held_against_the_faster_of_two_decoders_in_plain_pytorch(kept, timed, faster):
    """Where one of them was not timed it may be the faster one: nothing is claimed."""
    cells = [cell for cell in kept.sorted_cells() if hardware(cell.record["model"]) == DEVICE]
    cell = next(cell for cell in cells if _is_front(cell.record))
    latency = cell.record["latency"] | {
        "tok_s": 150.0,
        "timings": {
            name: {
                "tok_s": rate,
                "tok_s_lowest": rate,
                "tok_s_highest": rate,
                "prefill_seconds": 1.0,
                "repeats": 5,
            }
            for name, rate in {"engine-dense": 120.0, "engine-sparse": 150.0, **timed}.items()
        },
    }
    data = SpeedData({(): MeasuredCell(cell.record | {"latency": latency}, {}, Path())})
    heads, _, row = (line.split(" | ") for line in speed_by_model(data).splitlines()[:3])
    assert row[heads.index("over the faster of the two")] == (f"**{faster}**" if faster else "not measured")
    heads, _, row = (line.split(" | ") for line in speed_markdown(data).splitlines()[-3:])
    mode = max(timed, key=timed.get, default="").removeprefix("torch.compile ")
    assert row[heads.index("over the faster")] == (f"{faster} {mode}" if faster else "not measured")


def row(us: str, backend: str = "triton", sparsity: object = 0.5) -> dict[str, object]:
    names = {"device": "GPU", "shape": "m 4x8", "projection": "o", "dtype": "bfloat16"}
    return names | {"sparsity": sparsity, "us": us, "backend": backend}


def test_a_run_renews_what_it_measures_and_keeps_the_rest():
    kept = [row("1", sparsity="0.5"), row("2", "cuda c++", "0.5"), row("3", sparsity="0.25")]
    found = renewed(kept, [row("9")], measurement)
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


def test_quantised_cells_are_rows_of_their_own_and_stay_out_of_the_summary(kept):
    """The CSV names their weights, and a model's own."""
    own = next(
        cell
        for cell in kept.sorted_cells()
        if _is_front(cell.record) and hardware(cell.record["model"]) == DEVICE
    )
    latency = own.record["latency"]
    few = {"compiled-decoder-int4": latency["timings"]["engine-dense"] | {"tok_s": 329.0}}
    quantised = own.record | {
        "quantisation": {
            "name": "int4",
            "config": {},
            "description": "int4 in groups of 128 outputs",
            "bits_per_weight": 4.125,
        },
        "latency": latency | {"tok_s": 700.0, "timings": latency["timings"] | few},
    }
    data = SpeedData({"own": own, "int4": MeasuredCell(quantised, {}, own.folder)})
    rows = list(csv.DictReader(io.StringIO(SPEED.csv(data))))
    assert {(row["quantisation"], row["tok_s"]) for row in rows} == {
        ("none", f"{latency['tok_s']:.3f}"),
        ("int4", "700.000"),
    }
    (against,) = [row for row in rows if row["baseline"] == "compiled-decoder-int4"]
    assert against["speedup"] == f"{700 / 329:.4f}"
    assert f"| {own.record['model']['name']}, int4 |" in SPEED.markdown(data)
    assert speed_by_model(data) == speed_by_model(SpeedData({"own": own}))


def test_few_bits_stand_beside_compiled_decoder_in_16_bits_and_in_the_same():
    """The baselines of one process are in each of its records; what was not timed there is not measured."""

    def data(**plain):
        cells = {}
        for name, dense, half in ((None, 250.0, 400.0), ("int8", 450.0, 650.0)):
            rates = {"engine-dense": dense, "engine-sparse": half, **plain}
            cells[name] = MeasuredCell(
                {
                    "model": {"name": "m-random", "dtype": "bfloat16", "device": "cuda", "device_name": DEVICE},
                    "method": {"name": "teal_uniform"},
                    "sparsity": 0.5,
                    "quantisation": name and {"name": name, "description": name},
                    "latency": {
                        "batch": 1, "prompt": 5, "new_tokens": 200, "tok_s": half, "byte_limit_speedup": 1.8,
                        "timings": {name: {"tok_s": rate} for name, rate in rates.items()},
                    },
                },
                {},
                Path(),
            )  # fmt: skip
        return SpeedData(cells)

    every = {"torch.compile max-autotune": 200.0, "compiled-decoder": 160.0, "compiled-decoder-int8": 180.0}
    assert speed_by_bits(data(**every)).splitlines()[2:] == [
        "| bfloat16 | 160 | 160 | 250 | 400 | 2.50× | 1.56× | 2.50× | 1.80× |",
        "| int8 | 160 | 180 | 450 | 650 | 4.06× | 2.50× | 3.61× | 1.80× |",
    ]
    del every["torch.compile max-autotune"]
    assert "| int8 | 160 | 180 | 450 | 650 | 4.06× | 2.50× |" in speed_by_bits(data(**every))
    del every["compiled-decoder"]
    assert "| int8 | not measured | 180 | 450 | 650 | not measured | 2.50× |" in speed_by_bits(data(**every))

"""What is refused is refused before a plan is made; what is measured is kept, whatever the speed comes to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from wisparse.repro.cell import measure
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.record import SECTIONS
from wisparse.repro.records import read_record
from wisparse.repro.speed.latency import DecodeLatency
from wisparse.repro.tables.speed.speed_data import read_speed

CELL = [
    "method=teal_uniform", "suite=perplexity", f"suite.text={REPOSITORY / 'repro/run.py'}", "suite.length=64",
    "suite.windows=2", "calibration.sequences=2", "calibration.length=64", "search=minimal", "logger=none",
    "reference=false", "latency=decode", "latency.new_tokens=4", "latency.repeats=1",
    "latency.baselines=[eager]",
]  # fmt: skip


@pytest.fixture
def no_plans(monkeypatch):
    def make(*_: object) -> None:
        raise AssertionError("a plan was asked for")

    monkeypatch.setattr(measure.Planner, "plan", make)


@pytest.fixture(scope="module")
def gelu(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gelu")
    for path in (REPOSITORY / "repro/embedded/models/llama-mini").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=teal_rotated", "quantisation=int8"], "this plan has others, folded or rotated; take a"),
        (["method=teal_folded", "quantisation=int8"], "this plan has others, folded or rotated; take a"),
        (["method=cats", "sparsity=0", "quantisation=int8"], "does not read neurons of quantised weights by"),
        (["latency.batch=9"], "on cpu the decode engine takes 1 to 8 rows, not 9"),
        (["model.dtype=float16"], "on cpu the decode engine reads weights in float32 or bfloat16"),
        (["latency.prompt=2040", "latency.new_tokens=20"], "the model has positions for 2048 tokens"),
        (["latency.baselines=[egaer]"], "there is no egaer"),
        (["model=local", "model.path={gelu}"], "knows the activations silu and relu, not 'gelu'"),
        (["suite.length=4000"], "this model takes from 2 to 2048 tokens"),
        (["suite.length=2000"], "is shorter than one window of 2000 tokens"),
        (["calibration.length=3000"], "calibration.length=3000: this model takes up to 2048 tokens"),
    ],
)  # fmt: skip
def test_what_suite_and_speed_refuse_is_refused_before_a_plan(start, no_plans, gelu, overrides, message):
    code, out, err = start(*CELL, "model.device=cpu", *[one.format(gelu=gelu) for one in overrides])
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (2, [])
    assert message in line


@pytest.mark.slow
def test_accuracy_outlives_a_speed_that_fails_and_is_not_measured_again(start, folders, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("the compiler\nis gone")

    evaluate = measure._evaluated
    with monkeypatch.context() as broken:
        broken.setattr(DecodeLatency, "measure", fail)
        code, out, err = start(*CELL)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (1, [])
    assert "the accuracy is measured and kept, the speed is not (the compiler is gone)" in line
    (folder,) = Path(folders[0].partition("=")[2], "run").glob("llama-mini-teal_uniform-0.5-*")
    kept = json.loads((folder / "evaluated.json").read_text())
    assert not (folder / "record.json").exists()

    monkeypatch.setattr(measure, "_evaluated", fail)
    code, out, err = start(*CELL)
    assert code == 0, err
    record = json.loads(out[-1])
    assert record.keys() >= SECTIONS | {"latency"}
    assert (record["perplexity"], record["plan"]["sha256"]) == (kept["perplexity"], kept["plan"]["sha256"])
    assert record["latency"]["tok_s"] > 0
    assert sorted(path.name for path in folder.iterdir()) == ["items.json", "record.json"]
    monkeypatch.setattr(measure, "_evaluated", evaluate)
    assert "is finished already" in start(*CELL)[2]


@pytest.mark.slow
def test_what_was_timed_before_a_baseline_that_fails_is_in_a_record_and_the_cell_is_not_finished(
    start, folders, monkeypatch
):
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    cell = [*CELL, "sparsity=0.4"]
    with monkeypatch.context() as broken:
        broken.setattr(DecodeLatency, "_baseline", fail)
        assert start(*cell)[0] == 1
    (folder,) = Path(folders[0].partition("=")[2], "run").glob("llama-mini-teal_uniform-0.4-*")
    begun = read_record(folder)["latency"]
    assert begun["unmeasured"] == ["eager"]
    assert begun["timings"].keys() == {"engine-dense", "engine-sparse"}
    assert begun in [each.record["latency"] for each in read_speed(folder.parent).cells.values()]

    code, out, err = start(*cell)
    assert code == 0, err
    finished = json.loads(out[-1])["latency"]
    assert "unmeasured" not in finished
    assert finished["timings"].keys() == {"engine-dense", "engine-sparse", "eager"}


@pytest.mark.slow
def test_accuracy_that_is_damaged_is_measured_again(start, folders, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as broken:
        broken.setattr(DecodeLatency, "measure", fail)
        assert start(*CELL, "sparsity=0.3")[0] == 1
    (folder,) = Path(folders[0].partition("=")[2], "run").glob("llama-mini-teal_uniform-0.3-*")
    (folder / "items.json").write_text("{}")
    code, out, err = start(*CELL, "sparsity=0.3")
    assert code == 0, err
    assert "the accuracy is measured again" in err
    assert json.loads(out[-1])["n_documents"] == 2

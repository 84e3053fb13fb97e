"""Measuring what plans cost, on a shrunk model: every stage has a row, and no row says more than it should."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from omegaconf import OmegaConf
from wisparse.method.projections import PROJECTIONS
from wisparse.repro.cost import cost_stages, search_cost
from wisparse.repro.cost.cost_bench import Bench
from wisparse.repro.cost.search_cost import compose_cost, measure
from wisparse.repro.cost.search_cost_table import (
    COLUMNS,
    MODELS,
    costs_markdown,
    merged,
    read_costs,
    write_costs,
)

from ...conftest import make_calibration, make_method
from ..models.test_random_models import SHRUNK

BLOCKS, SEQUENCES, LENGTH, TOKENS = 3, 8, 16, 32
SMALL = [
    *(f"model.architecture.{name}={value}" for name, value in SHRUNK.items()),
    f"model.architecture.num_hidden_layers={BLOCKS}",
    "model.architecture.vocab_size=8192",
    "model.device=cpu",
    f"search.divergence_tokens={TOKENS}",
    f"search.block_tokens={TOKENS}",
    f"cost.sequences={SEQUENCES}",
    f"cost.length={LENGTH}",
    "cost.evaluations=21",
    "cost.more_tokens=[64]",
    "cost.scoring_passes=1",
    "cost.new_tokens=3",
]


def stages_wanted():
    return [(method, stage) for method, stages in compose_cost().cost.stages.items() for stage in stages]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    output = tmp_path_factory.mktemp("cost") / "search-cost"
    other = dict.fromkeys(COLUMNS, "0") | {"device": "another device", "model": "another", "total": ""}
    write_costs(output, [other])
    assert measure([*SMALL, f"cost.output={output}"]) == 0
    return read_costs(output.with_name("search-cost.csv"))


def of(rows, method, stage):
    return [row for row in rows if (row["method"], row["stage"]) == (method, stage)]


@pytest.mark.slow
def test_every_stage_has_a_row_and_those_of_another_device_are_kept(rows):
    assert rows[0]["device"] == "another device"
    for method, stage in stages_wanted():
        if stage != "plan":  # a whole plan reports its own stages
            assert of(rows, method, stage), (method, stage)
    assert of(rows, "equal_loss", "sensitivity")
    assert of(rows, "chess", "thresholds")


@pytest.mark.slow
def test_the_evolutionary_search_is_extrapolated_to_the_papers_budget(rows):
    coarse = of(rows, "wisparse", "coarse")
    assert [row["tokens"] for row in coarse] == [str(TOKENS), "64"]
    for row in coarse:
        assert (row["total"], row["extrapolated"]) == ("25600", "yes")
        assert 0 < int(row["measured"]) <= 64
        each = float(row["seconds"]) / int(row["measured"])
        assert float(row["minutes"]) * 60 == pytest.approx(float(row["setup_seconds"]) + 25600 * each, rel=0.02)


def test_generation_is_timed_as_evaluation_generates_whatever_the_checkpoint_asks_for(llama):
    """A generation configuration that would search by beams, draw, or end early has no say."""
    llama.generation_config.update(num_beams=3, do_sample=True, eos_token_id=list(range(128)))
    passes = []
    llama.model.register_forward_pre_hook(
        lambda _, __, keywords: passes.append(tuple(keywords["input_ids"].shape)), with_kwargs=True
    )
    bench = Bench(llama, make_calibration(llama), 0.5, OmegaConf.create({"new_tokens": 4}))
    bench.random_ids = lambda rows, length, seed: torch.ones(rows, 8, dtype=torch.long)
    (found,) = cost_stages.generation(bench, make_method("dense"))
    assert (found.unit, found.measured, found.seconds > 0) == ("step", 4, True)
    prompt, step = (cost_stages.ROWS, 8), (cost_stages.ROWS, 1)
    assert passes == [prompt, step, prompt, prompt, step, step, step, step]


@pytest.mark.slow
def test_greedy_measures_a_whole_block_and_counts_it_for_all(rows):
    # q is 13 % of a block here; 0.05 of it is taken by a step, and the projections still open are compared.
    share = 64 * 64 / (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    row = of(rows, "teal", "greedy")[0]
    measured, steps = int(row["measured"]), -(-0.5 // (0.05 * share))
    assert 5 * steps <= measured <= len(PROJECTIONS) * steps
    assert int(row["total"]) == BLOCKS * measured
    assert int(of(rows, "wina", "greedy")[0]["measured"]) == pytest.approx(2 * measured, rel=0.05)


@pytest.mark.slow
def test_what_is_measured_whole_is_not_extrapolated(rows):
    calibration = of(rows, "dense", "calibration")[0]
    assert (calibration["measured"], calibration["total"]) == (str(SEQUENCES), str(SEQUENCES))
    assert calibration["extrapolated"] == "no"
    assert of(rows, "wisparse", "thresholds")[0]["measured"] == str(BLOCKS * len(PROJECTIONS))
    assert of(rows, "wisparse", "scoring")[0]["minutes"] == ""


@pytest.mark.slow
def test_a_cpu_measures_no_gpu(rows):
    text = costs_markdown(rows[1:])
    assert f"On a GPU not measured: {', '.join(MODELS)}" in text
    on_gpu = [row | {"peak_gpu_bytes": "17000000000", "device": "GPU"} for row in rows[1:]]
    text = costs_markdown(on_gpu)
    assert MODELS[0] not in text.rpartition("not measured:")[2]
    assert "17.0 |" in text


@pytest.mark.slow
def test_a_new_measurement_takes_the_place_of_the_old_one(rows):
    again = merged(rows, [rows[1] | {"seconds": "9"}])
    assert len(again) == len(rows)
    assert again[1]["seconds"] == "9"


@pytest.mark.slow
def test_a_stage_that_fails_costs_no_other_its_row(tmp_path, monkeypatch, capsys):
    def fail(_bench, _method):
        raise RuntimeError("no memory")

    monkeypatch.setitem(cost_stages.STAGES, "calibration", fail)
    stages = "cost.stages={dense:[calibration,scoring],wisparse:[]}"
    assert measure([*SMALL, "~cost.stages", f"+{stages}", f"cost.output={tmp_path / 'costs'}"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["stage"], line.get("result")) for line in lines] == [
        ("calibration", "not measured"),
        ("scoring", None),
    ]
    with (tmp_path / "costs.csv").open(encoding="utf-8", newline="") as file:
        assert [row["stage"] for row in csv.DictReader(file)] == ["scoring"]


@pytest.mark.slow
def test_time_that_is_over_is_said_and_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    output = f"cost.output={tmp_path / 'costs'}"
    monkeypatch.setattr("sys.argv", ["search_cost", *SMALL, output, "cost.seconds=0"])
    with pytest.raises(SystemExit) as ended:
        search_cost.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out.count("not measured") == len(stages_wanted())
    monkeypatch.setattr("sys.argv", ["search_cost", *SMALL, output, "cost.stages.dense=[nap]"])
    with pytest.raises(SystemExit) as ended:
        search_cost.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: cost.stages.dense: no stage nap")

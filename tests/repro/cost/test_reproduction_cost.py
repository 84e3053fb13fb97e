"""What a reproduction costs follows from measured rows, and says so where a row is lacking."""

from __future__ import annotations

import pytest
from wisparse.repro.cost import reproduction_cost
from wisparse.repro.cost.reproduction_cost import (
    SUITE_TOKENS,
    Job,
    NotMeasuredError,
    Rates,
    jobs,
    makespan,
    reproduction,
    weight_bytes,
)
from wisparse.repro.cost.search_cost_table import COLUMNS, MODELS, TABLE, read_costs

from ..models.test_random_models import SIZES

MINUTES = {
    ("dense", "calibration"): 2.0,
    ("wisparse", "coarse"): 30.0,
    ("wisparse", "greedy"): 4.0,
    ("wisparse", "alpha"): 1.0,
    ("wisparse", "thresholds"): 0.5,
    ("chess", "thresholds"): 0.25,
}
SECONDS = {("dense", "scoring"): 0.001, ("dense", "generation"): 0.03} | {
    ("wisparse", "scoring"): 0.002,
    ("wisparse", "generation"): 0.06,
}
TOKENS = [{"task": "a", "read": "60000", "steps": "0"}, {"task": "b", "read": "0", "steps": "2000"}]


def made(model: str) -> list[dict[str, str]]:
    empty = dict.fromkeys(COLUMNS, "") | {
        "model": model,
        "device": "GPU",
        "tokens": "2048",
        "peak_gpu_bytes": "1",
    }
    rows = [
        empty | {"method": method, "stage": stage, "minutes": str(minutes), "seconds_an_evaluation": "1"}
        for (method, stage), minutes in MINUTES.items()
    ]
    more = [rows[1] | {"tokens": "16384", "minutes": "9999"}]
    return (
        rows
        + more
        + [
            empty | {"method": method, "stage": stage, "seconds_an_evaluation": str(seconds)}
            for (method, stage), seconds in SECONDS.items()
        ]
    )


RATES = Rates([row for model in MODELS for row in made(model)], TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("dense", 1.0 + 1.0),
        ("wisparse", 2.0 + 30.0 + 4.0 + 1.0 + 0.5 + 2.0 + 2.0),
        ("wisparse_coarse", 2.0 + 30.0 + 1.0 + 0.5 + 2.0 + 2.0),
        ("wisparse_activation_only", 2.0 + 0.5 + 2.0 + 2.0),
        ("chess", 2.0 + 0.25 + 2.0 + 2.0),  # evaluated at WiSparse's rate
    ],
)
def test_a_job_is_its_calibration_its_own_stages_and_its_evaluation(method, expected):
    sparsity = 0.0 if method == "dense" else 0.5
    assert RATES.minutes(Job("mistral-7b", method, sparsity)) == pytest.approx(expected)


@pytest.mark.parametrize(("method", "lacking"), [("teal", "teal, greedy"), ("rsparse", "rsparse, factors")])
def test_what_is_lacking_is_named(method, lacking):
    with pytest.raises(NotMeasuredError, match=lacking):
        RATES.minutes(Job("qwen2.5-7b", method, 0.5))
    with pytest.raises(NotMeasuredError, match="what the suite reads"):
        Rates(RATES.rows, []).minutes(Job("qwen2.5-7b", "dense", 0.0))


def test_the_tables_cells_are_those_that_their_experiments_sweep_over():
    # Three models: dense once, and five methods at three sparsities; four stages of the ablation at one.
    assert len(jobs("table1_paper")) == 3 * (1 + 5 * 3)
    assert len(jobs("table2_paper")) == 3 * (1 + 4)


def test_jobs_wait_for_a_gpu_and_the_longest_bounds_any_number_of_them():
    assert makespan([3, 2, 2, 1], 1) == 8
    assert makespan([3, 2, 2, 1], 2) == 4
    assert makespan([3, 2, 2, 1], 64) == 3


@pytest.mark.parametrize("model", ["llama3.1-8b", "mistral-7b", "qwen2.5-7b"])
def test_the_download_is_the_size_of_the_weights(model):
    assert weight_bytes(model) == pytest.approx(2 * SIZES[model], rel=2e-4)


def test_without_a_gpu_nothing_is_made_up(monkeypatch):
    monkeypatch.setattr(reproduction_cost, "measured_rates", list)
    assert "GPU hours: not measured yet" in reproduction()
    monkeypatch.setattr(reproduction_cost, "measured_rates", lambda: [("GPU", RATES)])
    text = reproduction()
    assert "| Table 1 | 48 | not measured (llama3.1-8b, teal, greedy) | not measured | not measured |" in text
    # Of each model: dense 2, uniform 6.5, with α 7.5, coarse 37.5 and whole 41.5 minutes.
    assert "| Table 2, the ablation | 15 | 4.8 h | 0.7 h | 0.7 h |" in text
    assert "| Table 2, the ablation: mistral-7b alone | 5 | 1.6 h | 0.7 h | 0.7 h |" in text
    assert "45.8 GB of weights" in text
    assert (
        "| a plan, minutes on one GPU | wisparse | teal | wina | equal_loss | chess | rsparse | peak memory |"
        in text
    )
    assert (
        "| mistral-7b | 37.5 | not measured | not measured | not measured | 2.2 | not measured | 0 GB |" in text
    )


def test_the_committed_files_can_be_read():
    assert all(int(row["measured"]) > 0 for row in read_costs(TABLE.with_name(f"{TABLE.name}.csv")))
    assert "gsm8k" in SUITE_TOKENS.read_text(encoding="utf-8")

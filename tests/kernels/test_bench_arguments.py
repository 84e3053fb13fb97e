"""Command lines of the benchmarks: what makes no sense, or is not here, is one line."""

import json
import sys

import pytest
import torch
from wisparse.kernels.bench import (
    cpu_heads,
    gpu_biases,
    gpu_heads,
    gpu_speed,
    gpu_step,
    predicted_neurons,
    proxies,
)


def said(capsys, monkeypatch, main, arguments: list[str]) -> str:
    """The last line on stderr of a command line that ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("bench", [gpu_step, gpu_biases, gpu_heads, gpu_speed, predicted_neurons, proxies])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_benchmark_of_a_gpu_says_that_there_is_none(capsys, monkeypatch, bench):
    assert said(capsys, monkeypatch, bench.main, []).endswith("steps are timed on a CUDA GPU; there is none")


@pytest.mark.parametrize(
    ("bench", "arguments", "line"),
    [
        (cpu_heads, ["--shape", "nope"], "error: no sizes of a model 'nope'; take of"),
        (predicted_neurons, ["--device", "cpu", "--shape", "nope"], "error: no sizes of a model 'nope'"),
        (predicted_neurons, ["--device", "cpu", "--shape", "smollm2-135m", "--blocks", "99"], "has 30"),
        (proxies, ["--device", "cpu", "--shape", "smollm2-135m", "--blocks", "99"], "has 30"),
        (predicted_neurons, ["--computed", "2"], "--computed: 2 is not a number from 0 to 1"),
        (cpu_heads, ["--batches", "9", "--contexts", "8"], "error: on a CPU a step takes 1 to 8 rows, not 9"),
        (cpu_heads, ["--rounds", "0"], "--rounds: 0 is not a whole number from 1 up"),
        (gpu_step, ["--sparsities", "half"], "--sparsities: half is not a number from 0 to 1"),
        (gpu_step, ["--contexts", "-3"], "--contexts: -3 is not a whole number from 1 up"),
    ],
)
def test_what_makes_no_sense_is_one_line(capsys, monkeypatch, bench, arguments, line):
    assert line in said(capsys, monkeypatch, bench.main, arguments)


@pytest.mark.slow
def test_a_share_of_zero_is_a_share(capsys, monkeypatch):
    """It was taken as not given: what is known to be zero was timed at the share that is predicted."""
    small = ["--device", "cpu", "--shape", "smollm2-135m", "--blocks", "1", "--context", "16"]
    monkeypatch.setattr(sys, "argv", ["bench", *small, "--computed", "0", "--trained", "0.3", "0.1", "0"])
    predicted_neurons.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    none, known_of_none, some, known = rows[-4:]
    assert [row["kind"] for row in rows[-4:]] == ["predicted", "known"] * 2
    assert none["active"] == known_of_none["active"] == known["active"] == 0.0
    assert 0.05 < some["active"] < 0.15

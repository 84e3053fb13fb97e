"""Cells with quantised weights: what they come to, what their records say, and what is refused."""

from __future__ import annotations

import json

import pytest

from .conftest import CELL


@pytest.mark.slow
def test_perplexities_records_and_the_model_afterwards(cell):
    own, text = cell("method=dense")
    assert "quantisation" not in own
    assert "quantisation" not in own["seconds"]
    assert "bits a weight" not in text
    eight, text = cell("method=dense", "quantisation=int8")
    assert eight["perplexity"] == pytest.approx(own["perplexity"], rel=0.005)
    assert eight["perplexity"] != own["perplexity"]
    assert "8.1" in text
    assert eight["quantisation"]["description"] == "int8 by row and column, lm_head int8 by row and column"
    assert 8 < eight["quantisation"]["bits_per_weight"] < 8.2
    assert eight["model"]["parameters"] == own["model"]["parameters"]
    assert 0 < eight["quantisation"]["relative_error"] < 0.01
    assert "weights off by, of their norm" in text
    four, _ = cell("method=dense", "quantisation=int4", "quantisation.lm_head=none")
    assert 0.03 < four["quantisation"]["relative_error"] < 0.3
    assert own["perplexity"] < four["perplexity"] < 2 * own["perplexity"]
    assert four["quantisation"]["bits_per_weight"] == 4.25
    head, _ = cell("method=dense", "quantisation=int4", "quantisation.lm_head=same")
    assert head["model"]["parameters"] == own["model"]["parameters"]
    lm_head = 8192 * 320
    assert four["realised"]["bytes_per_token"] - head["realised"]["bytes_per_token"] == lm_head * (4 - 4.25 / 8)
    again, _ = cell("method=dense", "force=true")
    assert again["perplexity"] == own["perplexity"]
    sparse, _ = cell("method=teal_uniform", "quantisation=int8")
    plain, _ = cell("method=teal_uniform")
    assert sparse["plan"]["key"] != plain["plan"]["key"]
    assert eight["realised"]["dense_bytes_per_token"] == sparse["realised"]["dense_bytes_per_token"]
    assert sparse["realised"]["bytes_per_token"] < plain["realised"]["bytes_per_token"]


@pytest.mark.slow
def test_the_engine_is_timed_on_the_stored_weights(start):
    quick = ["latency=decode", "latency.new_tokens=4", "latency.repeats=1", "latency.realised_tolerance=null"]
    own, few = (
        json.loads(start(*CELL, "method=teal_uniform", *quick, "latency.baselines=[]", *bits)[1][-1])
        for bits in ([], ["quantisation=int4"])
    )
    assert few["latency"]["tok_s"] > 0
    assert few["latency"]["kernels"].keys() == own["latency"]["kernels"].keys()
    ratio = (
        few["latency"]["traffic"]["dense_bytes_per_token"] / own["latency"]["traffic"]["dense_bytes_per_token"]
    )
    assert 4.25 / 32 < ratio < 8.5 / 32  # blocks in 4 bits, the head in 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quantisation=int4", "latency=decode", "method=chess"], "read neurons of quantised weights by their"),
        (["quantisation=int4_calibrated", "method=wina_rotated"], "not calibrated in rotated bases"),
        (["quantisation=wanda", "method=relu_zeros", "sparsity=0"], "take method=dense and heads=none"),
        (["quantisation=obs", "method=dense", "heads=polar"], "take method=dense and heads=none"),
        (["quantisation=int4", "quantisation.group=128"], "group=128 does not divide the 320 outputs of 0.q"),
        (["quantisation=int4", "quantisation.group=0"], "quantisation.group=0 is not a whole number from 1 up"),
        (["quantisation=int4_calibrated", "quantisation.damping=0"], "quantisation.damping=0 is not a number"),
        (["quantisation=int8", "quantisation.group=8"], "there is no setting 'quantisation.group'"),
        (["quantisation=int3"], "no quantisation is called 'int3'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(start, overrides, message):
    method = [] if any(one.startswith("method=") for one in overrides) else ["method=teal"]
    code, out, err = start(*CELL, *method, *overrides)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (2, [])
    assert message in line

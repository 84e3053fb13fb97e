"""Cells with chosen key-value groups: what their records say, which plans they share, and what is refused."""

from __future__ import annotations

import pytest

from .conftest import CELL


@pytest.mark.slow
def test_records_and_plans(cell):
    quick = ("heads=polar", "heads.training.epoch_tokens=1")
    own, _ = cell("method=dense")
    assert "heads" not in own
    assert "key_value_share" not in own["realised"]
    half, text = cell("method=dense", *quick)
    assert "chosen for each sparse token by" in text
    assert half["cell"]["name"] == "llama-mini-dense-0-polar-0.5"
    assert (half["heads"]["groups"], half["heads"]["kept"], half["heads"]["dense_blocks"]) == (2, 1, 1)
    assert half["realised"]["key_value_share"] == pytest.approx(1 / 8 + 7 / 8 / 2)
    assert half["perplexity"] > own["perplexity"]
    assert len(half["plan"]["provenance"]["heads"]["recall"]) == 7
    whole, _ = cell("method=dense", "heads=polar", "heads.density=1")
    assert whole["perplexity"] == own["perplexity"]
    assert whole["heads"]["kept"] == 2
    both, _ = cell("method=teal_uniform", *quick)
    plain, _ = cell("method=teal_uniform")
    assert not both["plan"]["from_cache"]
    assert both["realised"]["bytes_per_token"] < plain["realised"]["bytes_per_token"]
    assert both["plan"]["provenance"]["heads"] == half["plan"]["provenance"]["heads"]
    again, _ = cell("method=teal_uniform", *quick, "force=true")
    assert again["plan"]["from_cache"]
    assert again["plan"]["sha256"] == both["plan"]["sha256"] != plain["plan"]["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["heads=polar", "heads.density=0"], "heads.density=0 is not a number above 0 up to 1"),
        (["heads=polar", "heads.density=1.5"], "heads.density=1.5 is not a number above 0 up to 1"),
        (
            ["heads=polar", "heads.density=0.3"],
            "heads.density=0.3 keeps none of the model's 2 key-value groups",
        ),
        (["heads=polar", "heads.dense_blocks=8"], "leaves none of the model's 8 blocks"),
        (["heads=polar", "heads.training.batch=0"], "heads.training.batch=0 is not a whole number from 1 up"),
        (["heads=polar", "heads.training.held_out_share=1"], "leave none to train routers of heads on"),
        (["heads=polar", "method=wina_rotated"], "take a method without rotations, or heads=none"),
        (["heads.density=0.5"], "density"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(start, overrides, message):
    method = [] if any(one.startswith("method=") for one in overrides) else ["method=teal_uniform"]
    code, out, err = start(*CELL, *method, *overrides)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (2, [])
    assert message in line

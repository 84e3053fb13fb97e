"""The card before decode speed is measured: bytes of the weights as they are stored."""

from __future__ import annotations

import re

import pytest
from wisparse.method.quantisation.quantisers import Int4, Int8
from wisparse.method.quantised_model import quantised
from wisparse.repro.speed.speed_card import SPARSITIES, print_card

from ...conftest import make_calibration, make_tiny_model

BANDWIDTH = 1_000_000  # bytes a second: microseconds of a launch are bytes of a weight
IN_8_BITS = {(48, 48): 48 * 48 + 4 * (48 + 48), (48, 128): 4 * 48 * 128}
"""A byte a value, a scale in float32 for each row and column; the head is the model's own, in float32."""
IN_4_BITS = {(48, 48): 48 * 48 // 2 + 2 * 48 * 6, (48, 128): 48 * 128 // 2 + 2 * 48 * 16}
"""Half a byte a value, a scale in float16 for 8 outputs of a row; the head too."""
OWN = {(48, 48): 4 * 48 * 48, (48, 128): 4 * 48 * 128}


@pytest.mark.parametrize(
    ("quantiser", "expected"),
    [
        (None, OWN),
        (Int8("int8", lm_head="none"), IN_8_BITS),
        (Int4("int4", lm_head="same", group=8, symmetric=True), IN_4_BITS),
    ],
)
def test_bytes_are_those_of_the_stored_weights(quantiser, expected, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    model = make_tiny_model("llama")
    found = None if quantiser is None else quantiser.weights(make_calibration(model))
    with quantised(model, found):
        print_card(model, "CPU", BANDWIDTH)
    lines = capsys.readouterr().out.splitlines()

    def launch(projection: str) -> int:
        (line,) = (line for line in lines if re.search(rf"│ {projection} ", line))
        return int(line.rstrip(" │").split()[-1].removesuffix(".0").replace(",", ""))

    assert (launch("q"), launch("lm_head")) == (expected[48, 48], expected[48, 128])


def test_a_sparse_token_reads_the_scales_of_columns_in_full(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    model = make_tiny_model("llama", blocks=1, sizes=(64, 64))  # k and v: 64 × 32
    with quantised(model, Int8("int8", lm_head="int8").weights(make_calibration(model))):
        print_card(model, "CPU", 1e9)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "50% sparse" in line)
    shapes = [(64, 64)] * 5 + [(64, 32)] * 2
    dense, sparse = (
        sum(share * (inner * out + 4 * inner) + 4 * out for inner, out in shapes)
        + (64 * 128 + 4 * 64 + 4 * 128)
        for share in (1.0, 0.5)
    )
    assert 0.5 in SPARSITIES
    assert f"{dense / sparse:.2f} ×" in line
    assert f"{1e9 / sparse:,.0f} tok/s" in line

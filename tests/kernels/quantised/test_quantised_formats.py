"""Weights in 8 and 4 bits against loops in float64, at shapes that fill no byte and no tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.quantised.int4 import int4_rounded, packed, unpacked
from wisparse.kernels.quantised.int8 import int8_rounded

SHAPES = [(1, 1), (3, 5), (7, 12), (5, 33)]


def random_weight(inner: int, out: int) -> torch.Tensor:
    """Rows and columns of very different sizes."""
    generator = torch.Generator().manual_seed(inner * 100 + out)
    rows, columns = (torch.randn(n, generator=generator).mul(1.5).exp() for n in (inner, out))
    return torch.randn(inner, out, generator=generator) * rows[:, None] * columns


@pytest.mark.parametrize("outputs", [1, 2, 5, 16, 31])
def test_packing_is_exact(outputs):
    values = torch.arange(3 * outputs, dtype=torch.uint8).view(3, outputs) * 7 % 16
    found = packed(values)
    assert found.shape == (3, (outputs + 1) // 2)
    assert torch.equal(unpacked(found, outputs), values)
    assert int(found[0, 0]) == int(values[0, 0]) + (16 * int(values[0, 1]) if outputs > 1 else 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_the_nearest_value_under_its_scales(shape):
    weight = random_weight(*shape)
    found = int8_rounded(weight)
    exact = weight.double().numpy()
    rows, columns = found.row_scales.double().numpy(), found.column_scales.double().numpy()
    assert np.allclose(columns, np.abs(exact).max(axis=0), rtol=1e-7)
    assert np.allclose(rows, np.abs(exact / columns).max(axis=1) / 127, rtol=1e-7)
    for i, j in np.ndindex(*shape):
        assert int(found.values[i, j]) == round(exact[i, j] / columns[j] / rows[i])
    error = np.abs(found.dequantised().double().numpy() - exact)
    assert (error <= 0.5001 * rows[:, None] * columns).all()
    assert (error <= 0.5001 * columns / 127).all()  # what scales of the columns alone would leave


def test_scales_fold_into_activations_and_sums():
    weight, x = random_weight(7, 12), random_weight(4, 7).double()
    found = int8_rounded(weight)
    folded = (x * found.row_scales) @ found.values.double() * found.column_scales
    assert torch.allclose(folded, x @ found.dequantised().double(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "group"), [((1, 1), 1), ((3, 5), 5), ((7, 12), 4), ((5, 33), 11)])
def test_int4_is_the_nearest_value_under_its_scales(shape, group, symmetric):
    weight = random_weight(*shape)
    found = int4_rounded(weight, group, symmetric)
    values, dequantised = unpacked(found.values, shape[1]), found.dequantised().double()
    assert found.shape == shape
    assert (found.zeros is None) == symmetric
    for i in range(shape[0]):
        for g in range(shape[1] // group):
            part = weight[i, g * group : (g + 1) * group].double().tolist()
            low, high = min(0.0, *part), max(0.0, *part)
            scale = float(np.float16(max(-low, high) / 7 if symmetric else (high - low) / 15))
            zero = 8 if symmetric else round(-low / scale)
            assert float(found.scales[i, g]) == scale
            for j, exact in enumerate(part):
                value = min(max(round(exact / scale) + zero, 1 if symmetric else 0), 15)
                assert int(values[i, g * group + j]) == value
                assert float(dequantised[i, g * group + j]) == pytest.approx((value - zero) * scale, rel=1e-6)
                assert abs(exact - (value - zero) * scale) <= 1.01 * scale  # a zero point is rounded as well


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_points_spend_all_levels_on_one_sided_groups(symmetric):
    weight = random_weight(4, 16).abs() + 0.1
    error = (int4_rounded(weight, 16, symmetric).dequantised() - weight).abs().amax(dim=1)
    step = weight.amax(dim=1) / (7 if symmetric else 15)
    assert (error <= 0.51 * step).all()


@pytest.mark.parametrize(
    "quantise", [int8_rounded, lambda w: int4_rounded(w, 2, True), lambda w: int4_rounded(w, 2, False)]
)
def test_what_is_zero_stays_zero(quantise):
    weight = torch.zeros(3, 4)
    assert torch.equal(quantise(weight).dequantised(), weight)
    weight[1, 2] = -3.0
    found = quantise(weight).dequantised()
    assert found[1, 2] == pytest.approx(-3.0, rel=1e-3)
    assert found.count_nonzero() == 1


def test_bytes_by_hand():
    """A dropped row takes its values and its scales with it; column scales are read by all."""
    eight = int8_rounded(random_weight(6, 10)).stored_bytes()
    assert (eight.values, eight.with_rows, eight.with_columns) == (60, 24, 40)
    assert (eight.total, eight.read(0.5), eight.read(1.0, 0.5)) == (124, 42 + 40, 50 + 24)
    four = int4_rounded(random_weight(6, 10), 5, symmetric=True).stored_bytes()
    assert (four.values, four.with_rows, four.with_columns) == (6 * 5, 6 * 2 * 2, 0)
    with_zeros = int4_rounded(random_weight(6, 10), 5, symmetric=False).stored_bytes()
    assert with_zeros.total == 6 * 5 + 6 * 2 * (2 + 1)
    assert with_zeros.read(0.5) == with_zeros.total / 2


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantise", [int8_rounded, lambda w: int4_rounded(w, 2, True)])
def test_weights_that_are_no_numbers_are_refused(quantise, wrong):
    weight = torch.ones(2, 4)
    weight[1, 1] = wrong
    with pytest.raises(KernelError, match="1 weights are infinite or not a number and cannot be quantised"):
        quantise(weight)


def test_groups_that_do_not_divide_and_scales_beyond_float16_are_refused():
    with pytest.raises(KernelError, match="groups of 4 do not divide 10 outputs"):
        int4_rounded(torch.ones(2, 10), 4, symmetric=True)
    with pytest.raises(KernelError, match=r"up to 1e\+06 are too large for scales in float16; use 8 bits"):
        int4_rounded(torch.full((2, 4), 1e6), 4, symmetric=True)


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_all_vanish_in_float16_are_refused_and_small_rows_beside_others_are_not(symmetric):
    """They became zeros, or lost half of their value, without a word."""
    small = torch.full((2, 4), 1e-5)
    with pytest.raises(KernelError, match="up to 1e-05 are too small for scales in float16; use 8 bits"):
        int4_rounded(small, 4, symmetric)
    small[1] = 1.0
    found = int4_rounded(small, 4, symmetric).dequantised()
    assert torch.allclose(found[1], small[1], rtol=1e-3)
    assert (found[0] - small[0]).abs().max() < 1e-6
    assert int4_rounded(torch.zeros(2, 4), 4, symmetric).dequantised().eq(0).all()


@pytest.mark.parametrize(("size", "how"), [(1e300, "large"), (1e-300, "small")])
def test_weights_beyond_what_float32_holds_are_refused_in_8_bits(size, how):
    with pytest.raises(KernelError, match=f"are too {how} for scales in float32$"):
        int8_rounded(torch.full((2, 4), size, dtype=torch.float64))


@pytest.mark.parametrize("quantise", [int8_rounded, lambda w: int4_rounded(w, 2, True)])
@pytest.mark.parametrize(
    "weight", [torch.ones(2, 4).int(), torch.ones(2, 4) * 1j, torch.ones(0, 4), torch.ones(4)]
)
def test_what_is_no_weight_is_refused(quantise, weight):
    with pytest.raises(KernelError, match="a weight to be quantised"):
        quantise(weight)

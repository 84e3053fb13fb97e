import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wisparse.kernels.cpu.gemv import (
    choose_backend,
    compact_by_threshold,
    compact_by_top_k,
    gather_gemv,
    keep_all,
    row_dots,
)
from wisparse.kernels.cpu.kept_channels import KeptChannels
from wisparse.kernels.reference import dropped_by_threshold, dropped_by_top_k

DTYPES = [torch.float32, torch.bfloat16]
INF, NAN = math.inf, math.nan


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_selects(kept: KeptChannels, x: torch.Tensor, dropped: torch.Tensor) -> None:
    """`kept` is what the reference keeps: union, values, counts."""
    channels = (~dropped).any(0).nonzero()[:, 0]
    assert kept.count == len(channels)
    assert torch.equal(kept.channels.long(), channels)
    expected = x.float().masked_fill(dropped, 0.0)[:, channels].T
    assert torch.equal(kept.values.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(kept.values.isnan(), expected.isnan())
    assert torch.equal(kept.row_counts, (~dropped).sum(1))


def assert_product(kept: KeptChannels, weight: torch.Tensor, out: torch.Tensor) -> None:
    """`out` is the float64 product, up to what float32 sums in any order may lose."""
    values, rows = kept.values.double(), weight.double()[kept.channels.long()]
    bound = (kept.count + 2) * 2.0**-24 * (values.abs().T @ rows.abs())
    assert ((out.double() - values.T @ rows).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("channels", [1, 33, 1500])
def test_threshold_selects_what_the_reference_keeps(implementation, dtype, batch, channels):
    x = random(batch, channels, dtype=dtype)
    thresholds = random(channels, seed=1).abs()
    thresholds[0] = 0.0
    assert_selects(compact_by_threshold(x, thresholds), x, dropped_by_threshold(x, thresholds))


def test_threshold_at_its_edges(implementation):
    x = torch.tensor([[1.0, -1.0, 0.5, 0.0, -0.0, NAN, INF, -INF, 3e-45]])
    for threshold in (0.0, 1.0, INF, NAN):
        thresholds = torch.full((9,), threshold)
        assert_selects(compact_by_threshold(x, thresholds), x, dropped_by_threshold(x, thresholds))
    assert compact_by_threshold(x, torch.full((9,), 1.0)).channels.tolist() == [0, 1, 5, 6, 7]
    assert compact_by_threshold(x, torch.zeros(9)).count == 9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("k", [0, 1, 100, 699, 700, 900])
def test_top_k_selects_what_the_reference_keeps(implementation, dtype, batch, k):
    x = random(batch, 700, dtype=dtype)
    weights = random(700, seed=1).abs() + 0.1
    assert_selects(compact_by_top_k(x, weights, k), x, dropped_by_top_k(x, weights, k))


TRICKY = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-42, 3e38, INF, -INF, NAN]) | st.floats(width=32)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), batch=st.integers(1, 3), channels=st.integers(1, 40))
def test_top_k_agrees_on_ties_nan_and_infinity(implementation, data, batch, channels):
    row = st.lists(TRICKY, min_size=channels, max_size=channels)
    x = torch.tensor(data.draw(st.lists(row, min_size=batch, max_size=batch)))
    weights = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=channels, max_size=channels))
    )
    k = data.draw(st.integers(0, channels + 1))
    assert_selects(compact_by_top_k(x, weights, k), x, dropped_by_top_k(x, weights, k))


def test_top_k_keeps_all_channels_that_tie(implementation):
    kept = compact_by_top_k(torch.tensor([[3.0, 1.0, -1.0, 1.0, 0.5]]), torch.ones(5), 2)
    assert kept.channels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [2, 4, 5, 6])
def test_top_k_never_keeps_a_zero(implementation, dtype, k):
    x = torch.tensor([[0.0, 2.0, -0.0, NAN, 1e-42], [0.0, -1.0, 3.0, 0.0, 0.0]], dtype=dtype)
    kept = compact_by_top_k(x, torch.ones(5), k)
    assert kept.channels.tolist() == [1, 2, 3]
    assert kept.row_counts.tolist() == [2, 2]


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 17, 64, 1000])
@pytest.mark.parametrize("channels", [1, 33, 200])
def test_product_of_odd_shapes(implementation, weight_dtype, dtype, columns, channels):
    x, weight = random(1, channels, dtype=dtype), random(channels, columns, dtype=weight_dtype, seed=1)
    kept = compact_by_threshold(x, torch.full((channels,), 0.7))
    out = gather_gemv(kept, weight)
    assert out.dtype == torch.float32
    assert out.shape == (1, columns)
    assert_product(kept, weight, out)


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("shape", [(65, 70), (300, 9000)])
def test_product_of_every_batch(implementation, weight_dtype, batch, shape):
    x, weight = random(batch, shape[0]), random(*shape, dtype=weight_dtype, seed=1)
    kept = compact_by_threshold(x, torch.full((shape[0],), 1.0))
    assert_product(kept, weight, gather_gemv(kept, weight))
    everything = keep_all(x)
    assert everything.count == shape[0]
    assert_product(everything, weight, gather_gemv(everything, weight))


@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_product_reads_a_slice_of_a_wider_tensor_and_fills_out(implementation, weight_dtype):
    wide = random(120, 50 + 33 + 41, dtype=weight_dtype)
    x = random(4, 240, seed=1)[:, 60:180]  # rows further apart than they are long
    kept = compact_by_threshold(x, torch.full((120,), 0.8))
    out = torch.full((4, 33), NAN)
    assert gather_gemv(kept, wide[:, 50:83], out) is out
    assert_product(kept, wide[:, 50:83], out)
    assert torch.equal(out, gather_gemv(kept, wide[:, 50:83].contiguous()))


@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_no_kept_channel_gives_zeros(implementation, weight_dtype):
    x, weight = random(2, 40), random(40, 21, dtype=weight_dtype)
    kept = compact_by_threshold(x, torch.full((40,), INF))
    assert kept.count == 0
    assert kept.row_counts.tolist() == [0, 0]
    assert torch.equal(gather_gemv(kept, weight, torch.full((2, 21), NAN)), torch.zeros(2, 21))
    assert row_dots(random(2, 21), weight, kept).shape == (0, 2)


def test_dropped_rows_are_not_read_and_broken_activations_show(implementation):
    weight = random(30, 40)
    weight[7] = NAN
    x = torch.ones(1, 30)
    x[0, 7] = 0.0
    thresholds = torch.full((30,), 0.5)
    assert gather_gemv(compact_by_threshold(x, thresholds), weight).isfinite().all()
    weight[7] = 1.0
    for broken, expected in ((NAN, torch.isnan), (INF, torch.isinf)):
        x[0, 7] = broken
        assert expected(gather_gemv(compact_by_threshold(x, thresholds), weight)).all()


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("columns", [1, 17, 64, 700])
def test_row_dots_of_kept_neurons(implementation, weight_dtype, dtype, batch, columns):
    wide = random(90, columns + 5, dtype=weight_dtype)
    rows, x = wide[:, 2 : columns + 2], random(batch, columns, dtype=dtype, seed=1)
    kept = compact_by_threshold(random(batch, 90, seed=2), torch.full((90,), 1.3))
    dots = row_dots(x, rows, kept)
    assert dots.shape == (kept.count, batch)
    chosen = rows.double()[kept.channels.long()]
    bound = (columns + 2) * 2.0**-24 * (chosen.abs() @ x.double().abs().T)
    assert ((dots.double() - chosen @ x.double().T).abs() <= bound).all()


def test_dropped_neurons_of_a_feed_forward_part(implementation):
    hidden, neurons = 48, 130
    x, up, down = random(3, hidden), random(neurons, hidden, seed=1), random(neurons, hidden, seed=2)
    activation = torch.nn.functional.silu(random(3, neurons, seed=3))
    thresholds = torch.full((neurons,), 0.2)
    kept = compact_by_threshold(activation, thresholds)
    kept.values.mul_(row_dots(x, up, kept))
    masked = activation.masked_fill(dropped_by_threshold(activation, thresholds), 0.0)
    gate = masked.double()
    expected = ((x.double() @ up.double().T) * gate) @ down.double()
    # Each up loses what a sum of `hidden` products may lose, its product with the gate one rounding, and what
    # comes out what a sum of as many products as there are kept neurons may lose.
    lost = (hidden + kept.count + 3) * 2.0**-24
    bound = lost * ((x.double().abs() @ up.double().abs().T) * gate.abs()) @ down.double().abs()
    assert ((gather_gemv(kept, down).double() - expected).abs() <= bound).all()


def test_one_kept_object_serves_all_calls_of_a_shape(implementation):
    kept = KeptChannels(64, 2)
    for seed in range(3):
        x = random(2, 64, seed=seed)
        thresholds = torch.full((64,), 0.3 * seed)
        assert compact_by_threshold(x, thresholds, kept) is kept
        assert_selects(kept, x, dropped_by_threshold(x, thresholds))
        assert compact_by_top_k(x, torch.ones(64), 9, kept) is kept
        assert_selects(kept, x, dropped_by_top_k(x, torch.ones(64), 9))


def kept_of(channels=8, batch=1):
    return keep_all(torch.ones(batch, channels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keep_all(torch.ones(8)), "x must be a"),
        (lambda: keep_all(torch.ones(9, 8)), "batch 1 to 8"),
        (lambda: keep_all(torch.ones(0, 8)), "batch 1 to 8"),
        (lambda: keep_all(torch.ones(1, 0)), "x must be a"),
        (lambda: keep_all(torch.ones(1, 8, dtype=torch.float16)), "float32 or bfloat16"),
        (lambda: keep_all(torch.ones(8, 2).T), "adjacent channels"),
        (lambda: keep_all(torch.ones(1, 8, device="meta")), "CPU tensor"),
        (lambda: keep_all(torch.ones(1, 8), KeptChannels(8, 2)), "one KeptChannels for each shape"),
        (lambda: KeptChannels(0), "at least one channel"),
        (lambda: KeptChannels(8, 9), "batch of 1 to 8"),
        (lambda: compact_by_threshold(torch.ones(1, 8), torch.ones(7)), "thresholds must be"),
        (lambda: compact_by_threshold(torch.ones(1, 8), torch.ones(1, 8)), "thresholds must be"),
        (lambda: compact_by_threshold(torch.ones(1, 8), torch.ones(16)[::2]), "contiguous"),
        (lambda: compact_by_threshold(torch.ones(1, 8), torch.ones(8).double()), "float32"),
        (lambda: compact_by_top_k(torch.ones(1, 8), torch.ones(7), 3), "weights must be"),
        (lambda: compact_by_top_k(torch.ones(1, 8), torch.ones(8), -1), "must not be negative"),
        (lambda: gather_gemv(kept_of(), torch.ones(7, 4)), "8 rows"),
        (lambda: gather_gemv(kept_of(), torch.ones(8)), "8 rows"),
        (lambda: gather_gemv(kept_of(), torch.ones(4, 8).T), "adjacent columns"),
        (lambda: gather_gemv(kept_of(), torch.ones(8, 4, dtype=torch.float16)), "float32 or bfloat16"),
        (lambda: gather_gemv(kept_of(), torch.ones(8, 4), torch.ones(4)), "out must be"),
        (lambda: gather_gemv(kept_of(), torch.ones(8, 4), torch.ones(1, 4).bfloat16()), "out must be"),
        (lambda: gather_gemv(kept_of(batch=2), torch.ones(8, 4), torch.ones(2, 8)[:, :4]), "contiguous"),
        (lambda: row_dots(torch.ones(1, 5), torch.ones(8, 4), kept_of()), r"x must be \(1, 4\)"),
        (lambda: row_dots(torch.ones(2, 4), torch.ones(8, 4), kept_of()), r"x must be \(1, 4\)"),
        (lambda: row_dots(torch.ones(1, 4), torch.ones(7, 4), kept_of()), "8 rows"),
        (lambda: row_dots(torch.ones(1, 4), torch.ones(8, 4), kept_of(), torch.ones(7, 1)), "out must be"),
        (lambda: choose_backend("numba"), "c\\+\\+, torch, automatic"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from wisparse.kernels.reference import (
    dropped_by_shared_top_k,
    dropped_by_threshold,
    dropped_by_top_k,
    kept_by_threshold,
    low_rank_product,
)


def kept_by_top_k(x, weights, k):
    return ~dropped_by_top_k(x, weights, k)


def test_static_mask_by_hand():
    x = torch.tensor([-2.0, 0.5, 1.0, 0.0])
    thresholds = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert dropped_by_threshold(x, thresholds).tolist() == [False, True, False, False]


def test_top_k_mask_by_hand():
    x = torch.tensor([[3.0, -2.0, 1.0, 0.5]])
    assert kept_by_top_k(x, torch.ones(4), 2).tolist() == [[True, True, False, False]]
    # Scores are 3, 2, 4, 4: the weights turn the order round.
    assert kept_by_top_k(x, torch.tensor([1.0, 1.0, 4.0, 8.0]), 2).tolist() == [[False, False, True, True]]


def test_a_shared_top_k_by_hand():
    """Sums are 5, 5, 4, 0, maxima 3, 4, 4, 0; the third row has no say, and a zero is never kept."""
    x = torch.tensor([[3.0, -1.0, 0.0, 0.0], [2.0, 4.0, -4.0, 0.0], [0.0, 0.0, 9.0, 9.0]])
    voting = torch.tensor([True, True, False])

    def kept(combined, k, weights=(1.0, 1.0, 1.0, 1.0)):
        return (~dropped_by_shared_top_k(x, torch.tensor(weights), k, combined, voting)).int().tolist()

    assert kept("sum", 2) == [[1, 1, 0, 0]]
    assert kept("maximum", 2) == [[0, 1, 1, 0]]
    assert kept("sum", 1, (1.0, 1.0, 2.0, 1.0)) == [[0, 0, 1, 0]]
    assert kept("sum", 4) == [[1, 1, 1, 0]]


def test_channels_that_tie_are_all_kept():
    assert kept_by_top_k(torch.ones(1, 4), torch.ones(4), 2).all()


@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_is_never_worth_reading(k, dtype):
    """Activations behind a ReLU: zeros that tie with the k-th score, and zeros that a large k would take in."""
    x = torch.tensor([[0.0, 2.0, -0.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]], dtype=dtype)
    expected = [[False, True, False, True, False], [False] * 5]
    assert kept_by_top_k(x, torch.ones(5), k).tolist() == expected
    assert kept_by_top_k(x, torch.ones(5), torch.tensor([[k], [k]])).tolist() == expected


def test_a_score_below_the_normal_numbers_is_a_zero():
    """A processor that makes zeros of such scores drops the same channels."""
    x = torch.tensor([[1e-42, 1.2e-38, torch.nan]])
    assert kept_by_top_k(x, torch.ones(3), 3).tolist() == [[False, True, True]]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_broken_activations_are_kept_and_show(broken):
    x = torch.tensor([0.1, broken, 0.2, 0.3])
    assert dropped_by_threshold(x, torch.full((4,), 1.0)).tolist() == [True, False, True, True]
    assert kept_by_top_k(x[None], torch.ones(4), 1)[0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_factor_of_a_threshold_is_what_the_mask_says(dtype):
    x = torch.randn(6, 5, 32).to(dtype)
    x[0, 0, :3] = torch.tensor([torch.inf, -torch.inf, 0.0])
    thresholds = torch.rand(6, 1, 32)  # in float32 whatever x is in, each row its own
    thresholds[:, :, 1], thresholds[:, :, 2] = torch.inf, 0.0
    x[1, 0, 4] = thresholds[1, 0, 4].to(dtype)
    mask = kept_by_threshold(x, thresholds)
    assert mask.dtype == dtype
    assert torch.equal(mask.bool(), ~dropped_by_threshold(x, thresholds))


def test_what_is_no_number_shows_behind_a_factor():
    x = torch.tensor([torch.nan, 2.0])
    assert (kept_by_threshold(x, torch.ones(2)) * x).isnan().tolist() == [True, False]


def test_k_by_row_equals_k_by_number():
    x = torch.randn(5, 3, 16)
    weights = torch.rand(16) + 0.1
    ks = torch.tensor([0, 1, 7, 16, 7])
    together = kept_by_top_k(x, weights, ks[:, None, None])
    for row, k in enumerate(ks.tolist()):
        assert torch.equal(together[row], kept_by_top_k(x[row], weights, k))


@settings(max_examples=50, deadline=None)
@given(channels=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 10_000))
def test_top_k_keeps_k_channels_and_the_highest(channels, share, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, channels, generator=generator)
    weights = torch.rand(channels, generator=generator) + 0.01
    k = int(share * channels)
    keep = kept_by_top_k(x, weights, k)
    assert (keep.sum(-1) == k).all()
    scores = x.abs() * weights
    for row in range(3):
        if 0 < k < channels:
            assert scores[row][keep[row]].min() >= scores[row][~keep[row]].max()


def test_low_rank_product_is_the_product():
    left, right = torch.randn(6, 2, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    dropped = torch.randn(3, 5, dtype=torch.float64)
    assert torch.allclose(low_rank_product(dropped, left, right), dropped @ (left @ right).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_selection_is_the_same_in_every_dtype(dtype):
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    for k in (1, 16, 32):
        kth = x.abs().float().sort(descending=True).values[:, k - 1 : k]
        assert torch.equal(kept_by_top_k(x, torch.ones(33, dtype=dtype), k), x.abs().float() >= kth)

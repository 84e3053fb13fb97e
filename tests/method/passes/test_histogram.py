import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from wisparse.method.passes.histogram import ChannelHistogram
from wisparse.method.rules import SMALLEST_WEIGHT, channel_weights


def histogram_of(x):
    histogram = ChannelHistogram(x.shape[-1], "cpu")
    for part in x.split(100):  # streamed
        histogram.update(part)
    return histogram


@settings(max_examples=30, deadline=None)
@given(
    sparsity=st.floats(0.05, 0.95), alpha=st.sampled_from([0.0, 0.5, 1.0, 1.45]), seed=st.integers(0, 10_000)
)
def test_thresholds_are_the_quantile_of_the_scores(sparsity, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.empty(24).log_normal_(0, 1, generator=generator)
    x = torch.randn(500, 24, generator=generator) * scale
    weights = channel_weights(torch.rand(24, generator=generator) + 0.2, alpha)
    thresholds = histogram_of(x).thresholds(weights, torch.tensor([sparsity]))[0]
    assert (x.abs() < thresholds).float().mean().item() == pytest.approx(sparsity, abs=0.005)
    exact = torch.quantile((x.abs() * weights).flatten().double(), sparsity).item()
    assert (thresholds * weights).tolist() == pytest.approx([exact] * 24, rel=0.1)


def test_sparsity_zero_keeps_all_and_one_drops_all():
    thresholds = histogram_of(torch.randn(50, 3)).thresholds(torch.ones(3), torch.tensor([0.0, 1.0]))
    assert thresholds[0].tolist() == [0.0] * 3
    assert thresholds[1].tolist() == [torch.inf] * 3


def test_candidates_with_their_own_weights_equal_single_ones():
    histogram = histogram_of(torch.randn(200, 8))
    norms, alphas = torch.rand(8) + 0.3, torch.tensor([[0.0], [0.7], [1.4]])
    together = histogram.thresholds(channel_weights(norms, alphas), torch.full((3,), 0.4))
    for row, alpha in enumerate(alphas.flatten().tolist()):
        alone = histogram.thresholds(channel_weights(norms, alpha), torch.tensor([0.4]))[0]
        assert torch.allclose(together[row], alone)


def test_values_outside_the_range_count_at_its_ends():
    histogram = histogram_of(torch.tensor([[0.0, 1e-12, 1e9, torch.inf]]))
    assert histogram.counts.sum() == 4
    assert histogram.counts[0, 0] == histogram.counts[1, 0] == 1
    assert histogram.counts[2, -1] == histogram.counts[3, -1] == 1


def test_weights_are_clamped_as_in_the_paper():
    assert channel_weights(torch.tensor([0.0, 2.0]), 1.0).tolist() == pytest.approx([SMALLEST_WEIGHT, 2.0])
    assert channel_weights(torch.tensor([0.0, 2.0]), 0.0).tolist() == [1.0, 1.0]


def test_thresholds_of_an_infinite_weight_are_no_numbers():
    histogram = ChannelHistogram(4, "cpu")
    histogram.update(torch.randn(64, 4))
    weights = torch.tensor([1.0, 2.0, torch.inf, 1.0])
    assert histogram.thresholds(weights, torch.tensor([0.5])).isnan().all()
    assert histogram.thresholds(weights.clamp_max(4.0), torch.tensor([0.5])).isfinite().all()

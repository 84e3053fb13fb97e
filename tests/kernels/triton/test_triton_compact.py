"""RMSNorm and compaction: lists against plain torch."""

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.reference import dropped_by_threshold, dropped_by_top_k, dropped_within_bounds
from wisparse.kernels.triton.channel_lists import ChannelLists
from wisparse.kernels.triton.compact import ListRules, compact, embed, norm_compact
from wisparse.kernels.triton.select import select_smallest

from ..triton_cases import DEVICE, TOLERANCE, random, relative_error


def kept_by_threshold(x, thresholds):
    return torch.stack([x * ~dropped_by_threshold(x, t) for t in thresholds])


@pytest.mark.parametrize(("batch", "channels", "block"), [(1, 33, 16), (3, 48, 32), (8, 17, 16)])
def test_lists_hold_what_the_thresholds_keep(batch, channels, block):
    x, thresholds = random(batch, channels), random(3, channels, seed=1).abs()
    lists = ChannelLists.empty(3, batch, channels, block, DEVICE)
    compact(x, ListRules(thresholds), lists)
    assert torch.equal(lists.dense(), kept_by_threshold(x, thresholds))
    torch_lists = ChannelLists.by_threshold(x, thresholds, block)
    assert torch.equal(torch_lists.dense(), lists.dense())
    assert torch.equal(torch_lists.counts, lists.counts)
    for projection in range(3):
        union = ~dropped_by_threshold(x, thresholds[projection]).all(0)
        assert lists.counts[projection].sum() == union.sum()


@pytest.mark.parametrize("threshold", [0.0, float("inf")])
def test_all_and_none(threshold):
    x = random(2, 20)
    lists = ChannelLists.empty(1, 2, 20, 16, DEVICE)
    compact(x, ListRules(torch.full((1, 20), threshold, device=DEVICE)), lists)
    assert torch.equal(lists.dense()[0], x if threshold == 0.0 else torch.zeros_like(x))


def test_broken_activations_and_ties_are_kept():
    x = torch.tensor([[0.1, float("nan"), -float("inf"), 0.5, -0.5, 0.4999]], device=DEVICE)
    lists = ChannelLists.empty(1, 1, 6, 16, DEVICE)
    compact(x, ListRules(torch.full((1, 6), 0.5, device=DEVICE)), lists)
    assert lists.counts.tolist() == [[4]]
    assert lists.index[0, :4].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_norm_is_the_models(dtype):
    batch, channels, tiles = 3, 33, 2
    embedding, gain = random(9, channels, dtype=dtype), random(channels, seed=1, dtype=dtype)
    residual, squares = torch.empty(batch, channels, device=DEVICE), torch.empty(batch, tiles, device=DEVICE)
    tokens = torch.tensor([8, 0, 3], device=DEVICE)
    embed(tokens, embedding, residual, squares)
    assert torch.equal(residual, embedding[tokens].float())
    x, length = (
        torch.empty(batch, channels, device=DEVICE, dtype=dtype),
        torch.ones(1, dtype=torch.int32, device=DEVICE),
    )
    lists = ChannelLists.empty(1, batch, channels, 16, DEVICE)
    bounds = torch.full((1, channels), 0.3, device=DEVICE)
    norm_compact(residual, squares, gain, 1e-5, ListRules(bounds), lists, x_out=x, length=length)
    exact = embedding[tokens].double()
    exact = exact * (exact.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain.double()
    assert relative_error(x, exact) < TOLERANCE[dtype]
    assert torch.equal(lists.dense(), kept_by_threshold(x.float(), bounds))
    assert length.item() == 2


@pytest.mark.slow
def test_top_k_and_dropped_channels():
    """Three lists of one activation: by threshold, by top-k, and what the top-k drops."""
    batch, channels = 3, 40
    x, weights = random(batch, channels), random(3, channels, seed=1).abs()
    bounds = torch.zeros(3, channels, device=DEVICE)
    bounds[0] = 0.7
    kept = torch.tensor([channels, 11, 11], dtype=torch.int32, device=DEVICE)
    weights[2] = weights[1]
    smallest = torch.empty(3, batch, device=DEVICE)
    select_smallest(x, weights, kept, smallest)
    lists = ChannelLists.empty(3, batch, channels, 16, DEVICE)
    compact(x, ListRules(bounds, weights, smallest, top_k=0b110, inverted=0b100), lists)
    dropped = dropped_by_top_k(x, weights[1], 11)
    expected = torch.stack([x * (x.abs() >= 0.7), x * ~dropped, x * dropped])
    assert torch.equal(lists.dense(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 1, 5, 20, 37])
def test_selection_is_exactly_the_references(k):
    x = random(4, 37)
    x[0, :12] = 0.5  # ties
    x[1, 3], x[1, 4] = float("nan"), float("inf")
    x[2] = 0.0
    weights = torch.stack([torch.ones(37), torch.rand(37, generator=torch.Generator().manual_seed(1))]).to(
        DEVICE
    )
    smallest = torch.empty(2, 4, device=DEVICE)
    select_smallest(x, weights, torch.full((2,), k, dtype=torch.int32, device=DEVICE), smallest)
    for weight, bound in zip(weights, smallest, strict=True):
        assert torch.equal(x.abs() * weight < bound[:, None], dropped_by_top_k(x, weight, k))


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [(0, 37), (9, 11), (0, 0), (37, 37), (3, 8)])
def test_thresholds_within_bounds_are_the_references(bounds):
    """Rows of which few, some and all channels reach their thresholds, and one of zeros."""
    x = random(4, 37) * torch.tensor([[0.1], [1.0], [9.0], [0.0]], device=DEVICE)
    thresholds = torch.stack([torch.ones(37), torch.full((37,), 2.0)]).to(DEVICE)  # whose inverses are exact
    fewest, most = (torch.full((2,), bound, dtype=torch.int32, device=DEVICE) for bound in bounds)
    smallest = torch.empty(2, 4, device=DEVICE)
    select_smallest(x, 1 / thresholds, most, smallest, fewest=fewest)
    for own, bound in zip(thresholds, smallest, strict=True):
        assert torch.equal(x.abs() / own < bound[:, None], dropped_within_bounds(x, own, *bounds))
    with pytest.raises(KernelError, match="the fewest channels are"):
        select_smallest(x, 1 / thresholds, most, smallest, fewest=fewest[:1])


@pytest.mark.parametrize("k", [2, 4, 6])
def test_top_k_never_lists_a_zero(k):
    x = torch.tensor(
        [[0.0, 2.0, -0.0, float("nan"), 1e-42, 0.0], [0.0, -1.0, 3.0, 0.0, 0.0, 0.0]], device=DEVICE
    )
    weights, smallest = torch.ones(1, 6, device=DEVICE), torch.empty(1, 2, device=DEVICE)
    select_smallest(x, weights, torch.tensor([k], dtype=torch.int32, device=DEVICE), smallest)
    lists = ChannelLists.empty(1, 2, 6, 16, DEVICE)
    compact(x, ListRules(torch.zeros(1, 6, device=DEVICE), weights, smallest, top_k=1), lists)
    assert lists.counts.tolist() == [[3]]
    assert lists.index[0, :3].tolist() == [1, 2, 3]


def test_bad_input_ends_in_one_line():
    lists = ChannelLists.empty(1, 1, 20, 16, DEVICE)
    with pytest.raises(KernelError, match="for a batch of 1 with 20 channels"):
        compact(random(2, 20), ListRules(torch.zeros(1, 20, device=DEVICE)), lists)
    with pytest.raises(KernelError, match="bounds are"):
        compact(random(1, 20), ListRules(torch.zeros(2, 20, device=DEVICE)), lists)
    with pytest.raises(KernelError, match="batches of 1 to 64"):
        ChannelLists.empty(1, 65, 20, 16, DEVICE)

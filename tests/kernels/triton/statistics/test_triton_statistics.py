"""What plans are made from, by Triton's kernels and as torch computes it."""

import pytest
import torch
from wisparse.kernels.triton.statistics.magnitudes import count_magnitudes
from wisparse.kernels.triton.statistics.near_thresholds import near_costs
from wisparse.kernels.triton.statistics.thresholded import thresholded
from wisparse.kernels.triton.statistics.turned import column_dots, columns_weighted, relative_slopes

from ...triton_cases import DEVICE, random

POSITIONS = {
    "all": None,
    "of every row": torch.arange(37)[None] >= 11,
    "of each row": torch.arange(37)[None] >= torch.tensor([[3], [30]]),
}


def positions_of(which):
    positions = POSITIONS[which]
    return None if positions is None else positions.to(DEVICE)


def test_magnitudes_are_counted_by_octaves_and_ends():
    x = torch.cat([random(70, 130) * 3, torch.zeros(1, 130, device=DEVICE)])
    x[3, 5], x[4, 5], x[5, 6], x[6, 7], x[7, 7] = torch.nan, -torch.inf, 1e-30, 1e30, 4.0
    counts = torch.zeros(130, 64, dtype=torch.int32, device=DEVICE)
    not_finite = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for part in x.split(40):
        count_magnitudes(part, counts, not_finite, -4, 8)
    places = ((x.abs().log2() + 4) * 8).nan_to_num(nan=63, neginf=0).clamp(0, 63).long()
    expected = torch.zeros(130, 64, device=DEVICE).scatter_add_(1, places.T, torch.ones_like(x.T))
    assert not_finite == 2
    assert (counts.sum(dim=1) == len(x)).all()
    assert (counts - expected).abs().sum() <= 4  # of 9,230: a logarithm at the edge of a bin
    assert counts[7, 48] >= 1  # 4 = 2², six octaves above the lowest


@pytest.mark.parametrize("which", POSITIONS)
def test_costs_near_thresholds_are_summed_by_row_and_channel(which):
    x, gradient = random(2, 37, 130), random(2, 37, 130, seed=1)
    thresholds, curvature = random(130, seed=2).abs() * 0.8, random(130, seed=3).abs()
    thresholds[0], thresholds[1] = torch.inf, 0.0
    gradient[0, 2, 0] = torch.nan  # not near
    positions, magnitudes = positions_of(which), x.abs()
    near = (magnitudes >= thresholds / 1.5) & (magnitudes < thresholds * 1.5)
    if positions is not None:
        near &= positions[..., None]
    signs = torch.where(magnitudes >= thresholds, 0.5, -0.5)
    cost = ((signs * curvature * x - gradient) * x).where(near, 0.0)
    found = near_costs(x, gradient, thresholds, curvature, positions, 1.5)
    assert torch.equal(found[1], near.sum(dim=1).float())
    assert torch.allclose(found[0], cost.sum(dim=1), rtol=1e-5, atol=1e-5)
    assert found[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", POSITIONS)
def test_what_is_below_its_threshold_is_nought_there_and_in_gradients(which, dtype):
    x, thresholds, positions = random(2, 37, 130, dtype=dtype), random(130, seed=1).abs(), positions_of(which)
    kept = x.abs() >= thresholds
    if positions is not None:
        kept |= ~positions[..., None]
    leaf, gradient = x.clone().requires_grad_(), random(2, 37, 130, seed=2, dtype=dtype)
    found = thresholded(leaf, thresholds, positions)
    assert torch.equal(found, x * kept)
    assert torch.equal(*torch.autograd.grad(found, leaf, gradient), gradient * kept)
    assert 0 < kept.float().mean() < 1


def test_slopes_of_relative_losses_are_those_of_autograd():
    readers = torch.tensor([[0, 1, 2], [3, -1, -1], [4, 5, -1]], dtype=torch.int32, device=DEVICE)
    y = random(3, 150, 70).requires_grad_()
    curvatures, outs = random(6, 70, seed=1).abs().requires_grad_(), random(6, seed=2).abs() + 1
    total = torch.zeros((), device=DEVICE)
    for site, projections in enumerate(readers.tolist()):
        for projection in projections:
            if projection >= 0:
                relative = y[site].square() * curvatures[projection]
                total = total + outs[projection] * (relative / (1 + relative)).sum()
    by_turned, by_curvature = torch.autograd.grad(total, (y, curvatures))
    found = relative_slopes(y.detach(), curvatures.detach(), outs, readers)
    assert torch.allclose(2 * found[0], by_turned, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found[1], by_curvature, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [64, 70])
def test_columns_of_matrices_are_multiplied_and_weighted_by_group(size):
    matrices, basis = random(2, 3, size, size), random(2, size, size, seed=1)
    weights = random(2, 3, size, seed=2)
    dots = torch.einsum("gpij,gij->gpj", matrices.double(), basis.double())
    weighted = torch.einsum("gpij,gpj->gij", matrices.double(), weights.double())
    assert torch.allclose(column_dots(matrices, basis).double(), dots, atol=1e-4)
    assert torch.allclose(columns_weighted(matrices, weights).double(), weighted, atol=1e-4)

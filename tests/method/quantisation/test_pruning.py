"""Weights pruned instead: brain surgery and Wanda by hand, mixed sparsities, what is counted and refused."""

import pytest
import torch
from wisparse.kernels.quantised.pruned import PrunedWeight
from wisparse.method.errors import UserError
from wisparse.method.projections import model_projections
from wisparse.method.quantisation.gptq import damped_channels, inverse_factor
from wisparse.method.quantisation.pruning import (
    SensitivityPruner,
    Wanda,
    mixed_sparsities,
    surgically_pruned,
)
from wisparse.method.quantised_model import quantised
from wisparse.method.rotation import rotated
from wisparse.method.running.apply import applied

from ...conftest import make_calibration, make_method, make_protocol

OBS = {"spread": 0.1, "damping": 0.01, "block": 16}


@pytest.fixture
def calibration(llama):
    return make_calibration(llama)


def four_by_four():
    """XᵀX of correlated inputs, (4, 4), and a weight (4, 1) whose first channel is the least salient."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64) @ (torch.eye(4, dtype=torch.float64) + 0.4)
    return x, torch.tensor([[0.1], [2.0], [-1.5], [1.0]], dtype=torch.float64)


def test_one_weight_removed_from_four_is_made_up_for_as_least_squares_do():
    x, weight = four_by_four()
    products = x.T @ x
    factor = inverse_factor(products, 1e-12)
    pruned = surgically_pruned(weight, factor, 0.25, 4)
    rest = torch.linalg.lstsq(x[:, 1:], x @ weight).solution
    assert pruned[0] == 0.0
    assert torch.allclose(pruned[1:], rest, atol=1e-6)
    # The textbook's step: w − w₀/[H⁻¹]₀₀ · H⁻¹[:, 0].
    inverse = products.inverse()
    assert torch.allclose(pruned, weight - weight[0] / inverse[0, 0] * inverse[:, :1], atol=1e-6)
    # The least saliency w²/[H⁻¹] is the rise of the error, and no other weight's removal costs as little.
    saliencies = (weight[:, 0] / factor.diagonal()).square()
    assert saliencies.argmin() == 0
    assert ((x @ (weight - pruned)).square().sum()) == pytest.approx(
        (weight[0] ** 2 / inverse[0, 0]).item(), rel=1e-6
    )


def test_channel_by_channel_is_surgery_on_what_is_left():
    """A 4×4 case with two zeros of each half: each step with the inverse of what is left of H, by hand."""
    x, _ = four_by_four()
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    damped = x.T @ x
    damped = damped + 0.01 * damped.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    factor = inverse_factor(x.T @ x, 0.01)
    found = surgically_pruned(weight, factor, 0.5, 2)
    expected, dropped = weight.clone(), torch.zeros(4, 4, dtype=torch.bool)
    for channel in range(4):
        if channel % 2 == 0:
            saliency = torch.stack(
                [expected[row] ** 2 / damped[row:, row:].inverse()[0, 0] for row in (channel, channel + 1)]
            )
            least = saliency.flatten().argsort()[:4]
            dropped[channel : channel + 2].view(-1)[least] = True
        inverse = damped[channel:, channel:].inverse()
        for out in torch.nonzero(dropped[channel])[:, 0]:
            expected[channel:, out] -= expected[channel, out] / inverse[0, 0] * inverse[:, 0]
            expected[channel, out] = 0.0
    assert torch.allclose(found, expected, atol=1e-9)
    assert int((found == 0).sum()) == 8
    plain = torch.where(dropped, 0.0, weight)
    assert (x @ (weight - found)).square().sum() < 0.9 * (x @ (weight - plain)).square().sum()


def test_the_scale_of_channels_does_not_matter_to_surgery():
    """Inputs of one channel a thousand times as large and its weights as much smaller: the same function.

    Damped by the mean, which is then that channel's, the others are pruned by their magnitude alone.
    """
    x, _ = four_by_four()
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    scales = torch.tensor([1.0, 1000.0, 1.0, 0.01], dtype=torch.float64)
    large = x * scales

    def pruned(x, weight, damped_by):
        return surgically_pruned(weight, inverse_factor(x.T @ x, 0.01, damped_by), 0.5, 4)

    found = pruned(large, weight / scales[:, None], "own") * scales[:, None]
    assert torch.allclose(found, pruned(x, weight, "own"), atol=1e-9)
    by_mean = pruned(large, weight / scales[:, None], "mean") * scales[:, None]
    errors = [(x @ (weight - one)).square().sum() for one in (found, by_mean)]
    assert errors[0] < 0.8 * errors[1]


def test_each_output_by_itself_loses_as_many_weights_as_the_others():
    """An output of small weights would lose all of them beside one of large weights."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(8, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1e-3])
    factor = inverse_factor(torch.eye(8, dtype=torch.float64), 0.01)
    assert (surgically_pruned(weight, factor, 0.5, 4) == 0.0).sum(0).tolist() == [0, 8]
    apart = surgically_pruned(weight, factor, 0.5, 4, "output") == 0.0
    assert apart.view(2, 4, 2).sum(1).tolist() == [[2, 2], [2, 2]]
    for half in (slice(0, 4), slice(4, 8)):  # uncorrelated inputs: the two smallest of each
        smallest = weight[half].abs().argsort(0)[:2]
        assert apart[half].gather(0, smallest).all()
    with pytest.raises(UserError, match="choose all or output"):
        SensitivityPruner("obs", 0.5, "none", **OBS, among="each")


@pytest.mark.parametrize("among", ["all", "output"])
@pytest.mark.parametrize(("block", "sparsity"), [(1, 0.5), (3, 0.3), (4, 0.3), (5, 0.9), (128, 0.3)])
def test_blocks_of_any_size_leave_the_share_that_was_asked_for(among, block, sparsity):
    """Rounded block by block, half of one channel was none: no weight of an output became zero."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(20, 7, generator=generator, dtype=torch.float64)
    x = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    zeros = surgically_pruned(weight, inverse_factor(x.T @ x, 0.01), sparsity, block, among) == 0.0
    assert int(zeros.sum()) == 20 * 7 * sparsity
    if among == "output":
        assert zeros.sum(0).tolist() == [20 * sparsity] * 7


def test_channels_that_nothing_reaches_are_damped_like_the_least_of_the_others():
    diagonal = torch.tensor([4.0, 0.0, 2.0], dtype=torch.float64)
    assert damped_channels(diagonal, 0.5, "own").tolist() == [2.0, 1.0, 1.0]
    assert damped_channels(diagonal, 0.5, "mean").tolist() == [1.0, 1.0, 1.0]
    assert damped_channels(torch.zeros(2), 0.5, "own").tolist() == [1.0, 1.0]
    with pytest.raises(UserError, match="choose mean or own"):
        SensitivityPruner("obs", 0.5, "none", **OBS, damped_by="all")
    with pytest.raises(UserError, match=r"^quantisation\.block=0 must be at least 1"):
        SensitivityPruner("obs", 0.5, "none", **(OBS | {"block": 0}))


def test_a_damping_that_leaves_nothing_to_invert_is_refused():
    products = torch.tensor([[4.0, 4.0], [4.0, 4.0]], dtype=torch.float64)
    with pytest.raises(UserError, match=r"damping=1e-300 is too small .* try 0.01"):
        inverse_factor(products, 1e-300)


def test_wanda_drops_the_lowest_scores_of_each_output():
    weight = torch.tensor([[1.0, -4.0], [-2.0, 1.0], [3.0, 2.0], [0.5, 3.0]])  # (in, out)
    norms = torch.tensor([4.0, 1.0, 1.0, 2.0])
    pruned = Wanda("wanda", 0.5, "none")._pruned(weight, norms.double(), 0.5)
    # Scores of the first output 4, 2, 3, 1; of the second 16, 1, 2, 6.
    assert pruned.tolist() == [[1.0, -4.0], [0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]


def test_the_more_sensitive_a_projection_the_less_is_pruned_at_the_same_mean():
    found = mixed_sparsities({"a": 3.0, "b": 1.0, "c": 2.0}, {"a": 10, "b": 30, "c": 60}, 0.5, 0.1)
    assert found["b"] > found["c"] > found["a"]
    assert found["b"] - found["a"] == pytest.approx(0.2)
    assert 0.1 * found["a"] + 0.3 * found["b"] + 0.6 * found["c"] == pytest.approx(0.5)


@pytest.mark.parametrize("pruner", [Wanda, SensitivityPruner])
@pytest.mark.parametrize(("index", "bits"), [("none", 0), ("bitmap", 1)])
def test_kept_values_and_their_index_are_counted(llama, calibration, pruner, index, bits):
    more = OBS if pruner is SensitivityPruner else {}
    found = pruner("pruned", 0.5, index, **more).weights(calibration)
    weights = model_projections(llama)
    before = {name: linear.weight.clone() for name, linear in weights.items()}
    total = sum(linear.weight.numel() for linear in weights.values())
    with quantised(llama, found):
        zeros = sum(int((linear.weight == 0).sum()) for linear in weights.values())
        dense = make_method("dense").plan(make_calibration(llama), 0.0)
        with applied(llama, dense, make_protocol("all")) as session:
            assert llama(calibration.input_ids).logits.isfinite().all()
        report = session.report()
    assert zeros == pytest.approx(0.5 * total, rel=0.01)
    always = report["dense_bytes_per_token"] - sum(w.stored_bytes().total for w in found.weights.values())
    stored = report["bytes_per_token"] - always
    assert stored == 4 * (total - zeros) + bits * total / 8
    assert all(torch.equal(linear.weight, before[name]) for name, linear in weights.items())


def test_surgery_leaves_less_error_than_wanda_on_the_calibration_text(llama, calibration):
    dense = llama(calibration.input_ids).logits
    errors = []
    for pruner in (Wanda("wanda", 0.5, "none"), SensitivityPruner("obs", 0.5, "none", 0.0, 0.01, 16)):
        with quantised(llama, pruner.weights(calibration)):
            errors.append((llama(calibration.input_ids).logits - dense).square().mean().item())
    assert errors[1] < errors[0]


def test_a_row_of_a_bitmap_is_whole_bytes():
    stored = PrunedWeight(torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]], dtype=torch.bfloat16), "bitmap")
    assert (stored.stored_bytes().values, stored.stored_bytes().with_rows) == (3 * 2, 2 * 1)


def test_what_does_not_go_with_pruned_weights_is_refused(llama, calibration):
    wanda = Wanda("wanda-0.5-bitmap", 0.5, "bitmap")
    wanda.check_activations(dense=True)
    with pytest.raises(UserError, match="take method=dense"):
        wanda.check_activations(dense=False)
    with quantised(llama, wanda.weights(calibration)):
        basis = torch.eye(48)
        with pytest.raises(UserError, match="not pruned in rotated bases"):
            rotated(llama, {"0.mlp_input": basis}).__enter__()
    with pytest.raises(UserError, match="choose none, bitmap"):
        Wanda("wanda", 0.5, "runs")
    with pytest.raises(UserError, match=r"Wanda\.sparsity=1\.0 is not a number in \[0, 1\)"):
        Wanda("wanda", 1.0, "none")
    would_have = r"too wide around sparsity 0\.05: projections would have -0\.\d+ to 0\.\d+; give a smaller"
    with pytest.raises(UserError, match=would_have):
        SensitivityPruner("obs", 0.05, "none", **OBS).weights(calibration)


def test_pruners_of_sparsities_that_are_hardly_apart_are_told_apart():
    """Their plans and tables were those of one: both were rounded to whole percent."""
    pruners = (
        *(Wanda("wanda", sparsity, "none") for sparsity in (0.5, 0.504)),
        *(SensitivityPruner("obs", sparsity, "none", **OBS) for sparsity in (0.5, 0.504)),
        SensitivityPruner("obs", 0.5, "none", **(OBS | {"spread": 0.104})),
    )
    assert len({pruner.description for pruner in pruners}) == len(pruners)
    assert pruners[0].description == "50% zeros by Wanda"

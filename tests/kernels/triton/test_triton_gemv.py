"""Products over lists and over whole activations against float64."""

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.triton.channel_lists import ChannelLists
from wisparse.kernels.triton.compact import ListRules, compact
from wisparse.kernels.triton.gemv import Activation, Columns, gemv, gemv_onto, gemv_partials, tiles_of
from wisparse.kernels.triton.gemv_tiles import Tile, Workspace

from ..triton_cases import DEVICE, TOLERANCE, random, relative_error

TILES = {
    "block a program": Tile(32, 8, share=16, stages=2),
    "blocks a program": Tile(32, 4, group=2, share=40),
    "parts of a block": Tile(16, 4, parts=3, share=64),
    "one split": Tile(32, 8, group=4, share=64),
}


def listed(x, thresholds, block=16):
    lists = ChannelLists.empty(len(thresholds), *x.shape, block, x.device)
    compact(x, ListRules(thresholds), lists)
    kept = [(x.double() * (x.abs() >= t)) for t in thresholds]
    return Activation(lists), kept


@pytest.mark.slow
@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize(
    ("batch", "channels", "widths"), [(1, 48, (80, 17, 1)), (3, 33, (17, 48, 32)), (8, 33, (40,))]
)
def test_each_projection_reads_its_own_list(tile, batch, channels, widths):
    x, weight = random(batch, channels), random(channels, sum(widths), seed=1)
    activation, kept = listed(x, random(len(widths), channels, seed=2).abs())
    columns, out = Columns.side_by_side(*widths), torch.empty(batch, sum(widths), device=DEVICE)
    bias, addend = random(sum(widths), seed=3), random(batch, sum(widths), seed=4)
    gemv(activation, weight, columns, out, tile, Workspace(DEVICE), bias=bias, addend=addend)
    parts = zip(kept, weight.double().split(widths, dim=1), strict=True)
    exact = torch.cat([k @ w for k, w in parts], 1) + bias.double() + addend.double()
    assert relative_error(out, exact) < 1e-5


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize("batch", [1, 3])
def test_whole_activations(tile, batch):
    x, weight, out = random(batch, 33), random(33, 80, seed=1), torch.empty(batch, 80, device=DEVICE)
    gemv(Activation(x=x), weight, Columns.side_by_side(80), out, tile, Workspace(DEVICE))
    assert relative_error(out, x.double() @ weight.double()) < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_dtypes(dtype, batch):
    x, weight = random(batch, 48, dtype=dtype).float(), random(48, 32, seed=1, dtype=dtype)
    activation, kept = listed(x, torch.full((1, 48), 0.5, device=DEVICE))
    out, columns = torch.empty(batch, 32, device=DEVICE), Columns.side_by_side(32)
    gemv(activation, weight, columns, out, TILES["block a program"], Workspace(DEVICE))
    # Weights and activations are exact in their dtype, and sums are in float32.
    assert relative_error(out, kept[0] @ weight.double()) < 1e-5
    gemv(Activation(x=x.to(dtype)), weight, columns, out, TILES["block a program"], Workspace(DEVICE))
    assert relative_error(out, x.double() @ weight.double()) < 1e-5


def test_nothing_kept_adds_nothing():
    activation, _ = listed(random(1, 33), torch.full((1, 33), 1e9, device=DEVICE))
    out = torch.full((1, 17), 7.0, device=DEVICE)
    gemv(activation, random(33, 17), Columns.side_by_side(17), out, Tile(16, 4), Workspace(DEVICE))
    assert not out.any()


def test_a_broken_activation_shows_in_the_output():
    x = random(1, 33)
    x[0, 5] = float("nan")
    activation, _ = listed(x, torch.full((1, 33), 0.5, device=DEVICE))
    out = torch.empty(1, 17, device=DEVICE)
    gemv(activation, random(33, 17), Columns.side_by_side(17), out, Tile(16, 4), Workspace(DEVICE))
    assert out.isnan().all()


def test_the_residual_stream_grows_by_the_product():
    batch, tile = 3, Tile(32, 8, parts=2)
    x, weight, residual = random(batch, 33), random(33, 80, seed=1), random(batch, 80, seed=2)
    activation, kept = listed(x, torch.full((1, 33), 0.5, device=DEVICE))
    squares = torch.empty(batch, tiles_of(Columns.side_by_side(80), tile), device=DEVICE)
    bias, addend = random(80, seed=3), random(batch, 80, seed=4)
    exact = residual.double() + kept[0] @ weight.double() + (bias + addend).double()
    gemv_onto(activation, weight, residual, squares, tile, Workspace(DEVICE), bias, addend)
    assert relative_error(residual, exact) < 1e-5
    assert relative_error(squares.sum(1), exact.square().sum(1)) < 1e-5


@pytest.mark.slow
def test_partial_sums_add_up_and_counters_return_to_zero():
    x, weight, tile, columns = random(1, 48), random(48, 40, seed=1), Tile(32, 8), Columns.side_by_side(17, 23)
    activation, _ = listed(x, random(2, 48, seed=2).abs())
    workspace = Workspace(DEVICE)
    partials, out = torch.empty(3, 1, 40, device=DEVICE), torch.empty(1, 40, device=DEVICE)
    gemv_partials(activation, weight, columns, partials, tile)
    gemv(activation, weight, columns, out, tile, workspace)
    assert torch.equal((partials[0] + partials[1]) + partials[2], out)
    assert not workspace.counters(2).any()
    again = torch.empty_like(out)
    for _ in range(3):
        gemv(activation, weight, columns, again, tile, workspace)
        assert torch.equal(again, out)


def test_bad_input_ends_in_one_line():
    x, weight, out = random(1, 33), random(33, 17), torch.empty(1, 17, device=DEVICE)
    columns, workspace = Columns.side_by_side(17), Workspace(DEVICE)
    with pytest.raises(KernelError, match=r"cannot be multiplied by 33 channels"):
        gemv(Activation(x=x), weight[:20].contiguous(), columns, out, Tile(16, 4), workspace)
    with pytest.raises(KernelError, match="contiguous"):
        gemv(Activation(x=x), random(17, 33).T, columns, out, Tile(16, 4), workspace)
    with pytest.raises(KernelError, match="float64"):
        gemv(Activation(x=x), weight.double(), columns, out, Tile(16, 4), workspace)
    with pytest.raises(KernelError, match="x has its dtype, or float32"):
        gemv(Activation(x=x.half()), weight, columns, out, Tile(16, 4), workspace)
    with pytest.raises(KernelError, match="not both"):
        Tile(16, 4, group=2, parts=2)
    workspace.freeze()
    with pytest.raises(KernelError, match="workspace"):
        gemv(Activation(x=x), weight, columns, out, Tile(16, 4, share=8), workspace)

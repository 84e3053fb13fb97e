"""Gate and up in one launch, and the gated path, against float64."""

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.triton.channel_lists import ChannelLists
from wisparse.kernels.triton.compact import ListRules, compact
from wisparse.kernels.triton.gemv import Activation
from wisparse.kernels.triton.gemv_tiles import Tile, Workspace
from wisparse.kernels.triton.neurons import neurons, times_rows

from ..triton_cases import DEVICE, TOLERANCE, random, relative_error


def silu(x):
    return x * torch.sigmoid(x)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("batch", "tile"), [(1, Tile(32, 8, share=16)), (3, Tile(16, 8, group=4, share=48))])
def test_gate_and_up_have_their_own_lists(dtype, batch, tile):
    hidden, ffn = 33, 50
    x = random(batch, hidden, dtype=dtype).float()
    weight = random(hidden, 2 * ffn, seed=1, dtype=dtype, scale=0.3)
    thresholds, addend = random(2, hidden, seed=2).abs(), random(batch, 2 * ffn, seed=3)
    bias = random(2 * ffn, seed=5, dtype=dtype)
    lists = ChannelLists.empty(2, batch, hidden, 16, DEVICE)
    compact(x, ListRules(thresholds), lists)
    gate, up = ((x * (x.abs() >= t)).double() for t in thresholds)
    gate = gate @ weight[:, :ffn].double() + (bias + addend)[:, :ffn].double()
    up = up @ weight[:, ffn:].double() + (bias + addend)[:, ffn:].double()
    out = torch.empty(batch, ffn, device=DEVICE, dtype=dtype)
    workspace = Workspace(DEVICE)
    neurons(Activation(lists), weight, ffn, tile, workspace, x_out=out, bias=bias, addend=addend)
    assert relative_error(out, silu(gate) * up) < TOLERANCE[dtype]
    bounds, listed = random(ffn, seed=4).abs() * 0.2, ChannelLists.empty(1, batch, ffn, tile.columns, DEVICE)
    both = {"bias": bias, "addend": addend}
    neurons(Activation(lists), weight, ffn, tile, workspace, bounds=bounds, lists=listed, **both)
    assert torch.equal(listed.dense()[0], out.float() * (out.float().abs() >= bounds))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_gated_block_reads_listed_rows_only(batch):
    hidden, ffn, tile = 40, 50, Tile(16, 16, share=32)
    x, gate_weight = random(batch, hidden), random(hidden, ffn, seed=1)
    rows = random(ffn, hidden, seed=2)
    bounds, lists = random(ffn, seed=3).abs(), ChannelLists.empty(1, batch, ffn, tile.columns, DEVICE)
    neurons(Activation(x=x), gate_weight, ffn, tile, Workspace(DEVICE), bounds=bounds, lists=lists)
    gate = lists.dense()[0]
    exact = silu(x.double() @ gate_weight.double())
    assert torch.equal(gate == 0, exact.abs() < bounds.double())
    dropped_by_all = (gate == 0).all(0)
    rows[dropped_by_all] = float("nan")  # a read of these would show
    times_rows(lists, rows, x, Tile(16, 8))
    product = lists.dense()[0]
    kept = ~dropped_by_all
    assert (
        relative_error(product[:, kept], gate[:, kept].double() * (x.double() @ rows[kept].double().T)) < 1e-5
    )
    assert not product[:, dropped_by_all].any()


def test_bad_input_ends_in_one_line():
    x, weight, tile = random(1, 32), random(32, 64), Tile(16, 8)
    lists = ChannelLists.empty(1, 1, 32, 32, DEVICE)
    with pytest.raises(KernelError, match="make them equal"):
        neurons(Activation(x=x), weight, 32, tile, Workspace(DEVICE), bounds=x[0], lists=lists)
    with pytest.raises(KernelError, match="neither gate nor gate and up"):
        neurons(Activation(x=x), weight, 40, tile, Workspace(DEVICE), x_out=x)
    with pytest.raises(KernelError, match="do not fit a list"):
        times_rows(lists, random(31, 32), x, tile)

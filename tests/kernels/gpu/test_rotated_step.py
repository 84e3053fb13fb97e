"""A GPU's decode step in rotated bases, against the model with the same plan applied through hooks."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.triton.gemv import Activation, Columns, gemv
from wisparse.kernels.triton.gemv_tiles import Tile, Workspace

from ...conftest import make_tiny_model
from ..decoded_tokens import with_biases
from ..triton_cases import DEVICE, SMALL_TILES, random, relative_error
from .test_triton_step import ALL, both_decode, listing_themselves, make_plan, step_of

LIBRARY = replace(SMALL_TILES, library=frozenset({"qkv", "o", "gate_up", "down"}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "family", "batch"),
    [
        ("larosa", "qwen2", 1),
        ("larosa_adapter", "qwen2", 1),
        ("larosa_adapter", "llama", 3),
        ("larosa_each", "mistral", 2),
        ("teal_rotated", "qwen3", 1),
        ("wina_rotated", "llama", 2),
    ],
)
def test_top_k_and_thresholds_of_one_row_and_of_several(method, family, batch):
    model = make_tiny_model(family, blocks=2 if method == "larosa_adapter" else 1)
    expected, found = both_decode(model, make_plan(model, method, 0.3), batch)
    assert torch.allclose(found, expected, atol=1e-4)
    dense, _ = both_decode(model, None, batch)
    assert not torch.allclose(found, dense, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["larosa", "larosa_adapter"])
def test_dense_products_of_a_library_and_biases(method):
    """Dense q, k, v, gate and up read all of what was turned; o and down write with biases."""
    model = make_tiny_model("qwen2", blocks=2)
    plan = with_biases(make_plan(model, method, 0.3)).without(
        [f"{b}.{n}" for b in "01" for n in ("q", "k", "v")]
    )
    plan = plan.without(["1.gate", "1.up"])
    expected, found = both_decode(model, plan, 2, LIBRARY)
    assert torch.allclose(found, expected, atol=1e-4)
    launched = [launch.func.__name__ for launch in step_of(model, plan, 2, LIBRARY).launches]
    assert launched.count("library_product") == 3


@pytest.mark.slow
@pytest.mark.parametrize(("method", "gate"), [("rsparse", False), ("cats", True)])
def test_low_rank_paths_and_gates_behind_a_basis(method, gate):
    """No method makes such a plan, a user may."""
    model = make_tiny_model("llama", blocks=1)
    rules = make_plan(model, method)
    plan = replace(
        make_plan(model, "larosa_adapter", 0.3), rules=rules.rules, gate_thresholds=rules.gate_thresholds
    )
    assert bool(plan.gate_thresholds) == gate
    expected, found = both_decode(model, plan, 1)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
@pytest.mark.parametrize("method", ["larosa", "larosa_adapter", "teal_rotated"])
def test_products_that_list_their_channels_themselves_read_what_was_turned(method):
    model = make_tiny_model("qwen2", blocks=1).half()
    plan = make_plan(model, method, 0.3)
    (_, expected), (_, found) = (
        both_decode(model, plan, tiles=listing_themselves(names)) for names in ("", ALL)
    )
    assert torch.allclose(found, expected, atol=4e-3)


def test_a_basis_is_a_launch_of_its_own_behind_the_norm():
    model = make_tiny_model("llama", blocks=2).to(DEVICE)
    count = {
        name: len(step_of(model, make_plan(model, name, 0.3), 1).launches)
        for name in ("wina", "larosa", "larosa_adapter")
    }
    # Of top-k a norm goes with the lists; before a basis it is a launch of its own. An adapter is two.
    assert count["larosa"] - count["wina"] == 2 * 2 * 2
    assert count["larosa_adapter"] - count["wina"] == 2 * 2


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stream_in_float32_meets_weights_in_half_precision(batch, dtype):
    x, weight = random(batch, 70), random(70, 70, seed=1, dtype=dtype, scale=70**-0.5)
    out, rounded = torch.zeros(batch, 70, device=DEVICE), torch.zeros(batch, 70, device=DEVICE, dtype=dtype)
    tile = Tile(64, 16, share=64, stages=1)
    for to in (out, rounded):
        gemv(Activation(x=x), weight, Columns.side_by_side(70), to, tile, Workspace(DEVICE))
    exact = x.double() @ weight.double()
    assert relative_error(out, exact) < (1e-6 if batch == 1 else 1e-2)
    assert torch.equal(rounded, out.to(dtype)) or relative_error(rounded, exact) < 1e-2
    other = torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
    with pytest.raises(KernelError, match="x has its dtype, or float32"):
        gemv(Activation(x=x.to(other)), weight, Columns.side_by_side(70), out, tile, Workspace(DEVICE))

"""Neurons that signs predict or proxies choose, and thresholds within bounds, in a GPU's decode step."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.cuda.product import CUDATile
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.step import GPUDecodeStep
from wisparse.kernels.gpu.step_tiles import Chosen
from wisparse.kernels.model.decoder_weights import PROXIES, pack
from wisparse.kernels.plan.block_rules import block_rules
from wisparse.kernels.plan.proxies import ProxyRule
from wisparse.kernels.plan.routers import NeuronRouter
from wisparse.kernels.triton.group_choice import group_choice
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes

from ...conftest import make_tiny_model
from ..triton_cases import DEVICE, SMALL_TILES
from .test_triton_step import both_decode, listing_themselves, make_plan, step_of

CHOSEN, READ = 32, 40


@pytest.mark.slow
def test_rows_of_a_batch_have_bounds_of_their_own():
    model = make_tiny_model("llama", blocks=1)
    expected, found = both_decode(model, make_plan(model, "topk_guided"), batch=3)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
@pytest.mark.parametrize("names", ["", "down"])
def test_neurons_that_signs_predict(names):
    """Whether down lists the channels of what is not zero itself or not."""
    model = make_tiny_model("llama", blocks=1, activation="relu")
    plan = make_plan(model, "sparseinfer", 0.3)
    expected, found = both_decode(model.half(), plan, 1, listing_themselves(names))
    assert torch.allclose(found, expected.float(), atol=2e-2)
    step = step_of(model, plan, 1, listing_themselves(names))
    assert step.cuda_products == names.split()
    assert "cuda" in step.ran()["products"]
    with pytest.raises(KernelError, match="of one row, not of 2"):
        step_of(model, plan, 2)


def proxied(activation="silu", ffn=128):
    """A model whose first neurons and channels are far the largest, and a plan that keeps these.

    Which neurons are the highest is then nothing that rounding could decide.
    """
    model = make_tiny_model("llama", blocks=1, heads=(2, 2), sizes=(64, ffn), activation=activation)
    (block,) = model.model.layers
    block.post_attention_layernorm.weight[READ:] = 1e-3
    for linear in (block.mlp.gate_proj, block.mlp.up_proj):
        linear.weight[CHOSEN:] *= 1e-3
    rule = ProxyRule(neurons=ffn, channels=64, kept=CHOSEN, read=READ, group=64)
    return model.half().to(DEVICE), SparsityPlan(projection_shapes(model), proxies={0: rule})


def with_proxies(names):
    tile = CUDATile(warps=2, cluster=2, unroll=2)
    return replace(SMALL_TILES, cuda=Chosen(dict.fromkeys([PROXIES, *names.split()], tile)))


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
@pytest.mark.parametrize(
    ("names", "activation", "ffn"), [("", "silu", 128), ("down", "silu", 128), ("down", "relu", 72)]
)
def test_neurons_that_proxies_choose(names, activation, ffn):
    """Whether down lists the channels of what is not zero itself or not; and neurons that fill no group."""
    model, plan = proxied(activation, ffn)
    expected, found = both_decode(model, plan, 1, with_proxies(names))
    assert torch.allclose(found, expected.float(), atol=2e-2)
    step = step_of(model, plan, 1, with_proxies(names))
    assert step.cuda_products == [PROXIES, *names.split()]
    assert "cuda" in step.ran()["products"]
    assert "cuda" in step.ran()["selection"]


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
def test_what_proxies_leave_out_is_never_read():
    model, plan = proxied()
    step = step_of(model, plan, 1, with_proxies("down"))
    tokens = torch.tensor([5], device=step.weights.device)
    expected = step(tokens).clone()
    step.cache.length.sub_(1)
    (block,) = step.weights.blocks
    for rows in (block.gate_rows, block.up_rows, block.down):
        rows[CHOSEN:] = torch.nan
    assert torch.equal(step(tokens), expected)


@pytest.mark.usefixtures("cuda_kernels_run")
def test_what_no_kernel_takes_is_told():
    model, plan = proxied()
    with pytest.raises(KernelError, match="of one row, not of 2"):
        step_of(model, plan, 2, with_proxies(""))
    with pytest.raises(KernelError, match="proxies are multiplied in half precision, in groups of multiples"):
        step_of(model, plan, 1, replace(SMALL_TILES, cuda=Chosen({})))
    step = step_of(model, plan, 1, with_proxies(""))
    weights = pack(model, (), None, (0,))
    rules = block_rules(plan, weights.shape, weights.device, weights.dtype)
    with pytest.raises(KernelError, match="those with proxies"):
        GPUDecodeStep(weights, rules, step.cache, with_proxies(""))


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
@pytest.mark.parametrize(("names", "groups"), [("", 16), ("down", 1), ("down", 4)])
def test_neurons_that_routers_choose(names, groups):
    model = make_tiny_model("llama", blocks=2, heads=(2, 2), sizes=(64, 128))
    drawn = torch.randn(groups, 64, generator=torch.Generator().manual_seed(2))
    plan = replace(SparsityPlan(projection_shapes(model)), routers={0: NeuronRouter(drawn, 0.1)})
    expected, found = both_decode(model.half().to(DEVICE), plan, 1, listing_themselves(names))
    assert torch.allclose(found, expected.float(), atol=2e-2)
    step = step_of(model, plan, 1, listing_themselves(names))
    assert (step.ran()["selection"], "cuda" in step.ran()["products"]) == ("triton", True)
    with pytest.raises(KernelError, match="of one row, not of 2"):
        step_of(model, plan, 2)


@pytest.mark.usefixtures("cuda_kernels_run")
def test_what_routers_leave_out_is_never_read():
    model = make_tiny_model("llama", blocks=1, heads=(2, 2), sizes=(64, 128)).half().to(DEVICE)
    router = NeuronRouter(torch.zeros(4, 64), 0.0)  # logits of 0 choose none
    step = step_of(model, replace(SparsityPlan(projection_shapes(model)), routers={0: router}), 1)
    expected = step(torch.tensor([5], device=DEVICE)).clone()
    step.cache.length.sub_(1)
    (block,) = step.weights.blocks
    for rows in (block.gate_rows, block.up_rows, block.down):
        rows.fill_(torch.nan)
    assert torch.equal(step(torch.tensor([5], device=DEVICE)), expected)


def test_groups_choose_their_neurons():
    """Two groups of 700 neurons, in two programs: 1 above the threshold, at it not."""
    scores = torch.full((1, 1400), 7.0, device=DEVICE)
    group_choice(torch.tensor([[0.5, 0.5001]], device=DEVICE), 0.5, scores)
    assert scores[0].tolist() == [0.0] * 700 + [1.0] * 700
    with pytest.raises(KernelError, match="3 groups do not divide 1400 neurons"):
        group_choice(torch.zeros(1, 3, device=DEVICE), 0.5, scores)

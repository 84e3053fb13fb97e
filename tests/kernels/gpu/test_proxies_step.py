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
        step_of(model, plan, 1, SMALL_TILES)
    step = step_of(model, plan, 1, with_proxies(""))
    weights = pack(model, (), None, (0,))
    rules = block_rules(plan, weights.shape, weights.device, weights.dtype)
    with pytest.raises(KernelError, match="those with proxies"):
        GPUDecodeStep(weights, rules, step.cache, with_proxies(""))

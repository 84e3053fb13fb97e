"""The decode step on weights in 8 and 4 bits: against the step on the same values in half precision."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache
from wisparse.kernels.cuda.product import CUDATile
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.cuda_tiles import check_few_bits, check_groups
from wisparse.kernels.gpu.step import GPUDecodeStep
from wisparse.kernels.gpu.step_tiles import Chosen, Never
from wisparse.kernels.model.decoder import Decoder
from wisparse.kernels.model.decoder_weights import LM_HEAD, pack
from wisparse.kernels.model.static_cache import StaticCache
from wisparse.kernels.plan.block_rules import block_rules
from wisparse.kernels.plan.mechanism import Mechanism
from wisparse.kernels.plan.projection_rule import ProjectionRule
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes
from wisparse.method.quantisation.quantisers import Int4, Int8
from wisparse.method.quantised_model import quantised
from wisparse.method.running.apply import applied

from ...conftest import make_calibration, make_protocol, make_tiny_model
from ..triton_cases import DEVICE, SMALL_TILES

QUANTISERS = {
    "int8": Int8("int8", lm_head="same"),
    "int4": Int4("int4", lm_head="int8", group=64, symmetric=True),
    "int4 with zero points": Int4("int4", lm_head="none", group=64, symmetric=False),
}
PRODUCTS = ("qkv", "o", "gate_up", "down", LM_HEAD)
PROMPT, NEW = 6, 2


def setting(quantiser, kind):
    """A model in float32, its stored weights, and a plan that drops the same half of the channels of any token.

    How near |x| lies to a threshold is then nothing that rounding could decide.
    """
    model = make_tiny_model("qwen2", blocks=1, heads=(2, 2), sizes=(64, 128))
    rules, generator = {}, torch.Generator().manual_seed(5)
    for name, (_, inner) in projection_shapes(model).items():
        kept = torch.randperm(inner, generator=generator) < inner // 2
        thresholds = torch.where(kept, 0.0, torch.inf)
        weights = torch.where(kept, 1.0, 1e-30)
        rules[name] = {
            "thresholds": ProjectionRule(thresholds=thresholds),
            "bounds": ProjectionRule(thresholds=1e-36 / weights, bounds=(inner // 4, inner // 2)),
            "top-k": ProjectionRule(top_k=inner // 2, weights=weights),
        }.get(kind)
    plan = SparsityPlan(projection_shapes(model), rules) if kind else None
    return model.to(DEVICE), quantiser.weights(make_calibration(model)), plan


@torch.no_grad()
def decoded(model, weights, plan, tiles):
    """Logits (NEW, vocabulary) of tokens behind a prompt that the model reads."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 128, (PROMPT + NEW,), generator=generator).to(DEVICE)
    past = DynamicCache()
    model(input_ids=ids[None, :PROMPT], past_key_values=past)
    cache = StaticCache.for_model(model, weights.shape, 1, PROMPT + NEW)
    cache.fill(past, torch.zeros(1, dtype=torch.int64, device=DEVICE))
    step = GPUDecodeStep(weights, block_rules(plan, weights.shape, DEVICE, weights.dtype), cache, tiles)
    return torch.stack([step(token[None])[0].clone() for token in ids[PROMPT:]]), step


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
@pytest.mark.parametrize(
    ("name", "kind"), [*zip(QUANTISERS, ("thresholds", "top-k", None), strict=True), ("int8", "bounds")]
)
def test_logits_are_those_of_the_dequantised_weights(name, kind):
    """Logits are as near to those in float32 as those of a step in float16, which rounds the same."""
    model, found, plan = setting(QUANTISERS[name], kind)
    triton = replace(SMALL_TILES, cuda=Never())
    tiles = replace(SMALL_TILES, cuda=Chosen(dict.fromkeys(PRODUCTS, CUDATile(warps=2, cluster=2, unroll=2))))
    own = decoded(model, pack(model), plan, triton)[0]
    with quantised(model, found):
        exact = decoded(model, pack(model), plan, triton)[0]
    model = model.half()
    with quantised(model, found):
        few, step = decoded(model, pack(model, stored=found.weights), plan, tiles)
        half = decoded(model, pack(model), plan, triton)[0]
    errors = [(logits - exact).norm().item() for logits in (few, half, own)]
    assert 0 < errors[0] < 1.5 * errors[1] < 0.01 * exact.norm() < errors[2]
    assert step.ran()["lm_head"] == ("cuda" if QUANTISERS[name].lm_head != "none" else "torch")
    assert step.ran()["products"] == "cuda"


@torch.no_grad()
def hooked(model, plan, ids):
    """Logits (NEW, vocabulary) float32 of transformers under hooks, of tokens behind a dense prompt."""
    past = model(ids[None, :PROMPT], use_cache=True).past_key_values
    with applied(model, plan, make_protocol("decode_only")):
        found = [model(token[None, None], past_key_values=past).logits[0, -1] for token in ids[PROMPT:]]
    return torch.stack(found).float()


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the engine reads few bits on a GPU in CUDA C++")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", QUANTISERS)
def test_the_engine_is_as_near_to_exact_logits_as_hooks_are(name, dtype):
    """Exact: hooks in float32 on the dequantised values. Of hooks in half precision all linears round."""
    model, found, plan = setting(QUANTISERS[name], "thresholds")
    plan = replace(plan, quantisation=found.description)
    ids = torch.randint(1, 128, (PROMPT + 12,), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    with quantised(model, found):
        exact = hooked(model, plan, ids)
    model = model.to(dtype)
    with quantised(model, found):
        half = hooked(model, plan, ids)
        with DecodeEngine(model, plan, quantised=found, capacity=len(ids)) as engine:
            engine.prefill(ids[None, :PROMPT])
            few = torch.stack([engine.step(token[None])[0].float().clone() for token in ids[PROMPT:]])
            assert engine.ran()["products"] == "cuda"
    errors = [(logits - exact).norm().item() for logits in (few, half)]
    assert 0 < errors[0] < 1.2 * errors[1] < 0.1 * exact.norm()


def test_what_no_kernel_reads_is_refused_in_one_line(monkeypatch):
    model, found, plan = setting(QUANTISERS["int8"], "thresholds")
    model = model.half()
    weights = pack(model, stored=found.weights)
    cache = StaticCache.for_model(model, weights.shape, 1, 8)
    rules = block_rules(plan, weights.shape, weights.device, weights.dtype)
    with pytest.raises(KernelError, match=r"no kernel reads qkv of .* in int8 under this plan"):
        GPUDecodeStep(weights, rules, cache, replace(SMALL_TILES, cuda=Never()))
    for dtype, batch, mechanisms, runs, message in (
        (torch.bfloat16, 2, (), True, "for one row, not for 2"),
        (torch.float32, 1, (), True, "not in torch.float32"),
        (torch.bfloat16, 1, (), False, "compute capability 9.0 or newer"),
        (torch.bfloat16, 1, (Mechanism.LOW_RANK, Mechanism.TOP_K), True, "not execute low-rank paths on a GPU"),
    ):
        monkeypatch.setattr("wisparse.kernels.gpu.cuda_tiles.runs_cuda_products", lambda _, runs=runs: runs)
        with pytest.raises(KernelError, match=message):
            check_few_bits(dtype, DEVICE, batch, mechanisms)
    check_few_bits(torch.float16, DEVICE, 1, [Mechanism.THRESHOLD])


def test_groups_that_no_kernel_reads_are_refused_before_a_plan_is_made():
    shape = Decoder.of(make_tiny_model("llama", blocks=1, heads=(2, 2), sizes=(64, 192))).shape
    check_groups(shape, {"int4": 64, "int8": 0})
    with pytest.raises(KernelError, match=r"groups of 32 need .* qkv has 64, 64, 64: take another"):
        check_groups(shape, {"int4": 32})
    with pytest.raises(KernelError, match="in groups of 128 need projections of multiples of 128 outputs"):
        check_groups(shape, {"int4": 128})
    odd = Decoder.of(make_tiny_model("llama", blocks=1, heads=(2, 2), sizes=(64, 200))).shape
    with pytest.raises(KernelError, match=r"weights in 8 bits need .* multiples of 16 outputs"):
        check_groups(odd, {"int8": 0})

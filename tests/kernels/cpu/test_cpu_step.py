"""The decode step in C++: against the one in plain torch and hooks, on any threads and instruction set."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from wisparse.kernels.cpu.gemv import choose_backend
from wisparse.kernels.engine.backends import check_decodable
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.plan.mechanism import Mechanism
from wisparse.method.quantisation.quantisers import Int4, Int8
from wisparse.method.quantised_model import quantised

from ...conftest import make_calibration, make_method, make_tiny_model
from ..decoded_tokens import DecodedTokens, generated, prompts, typical_error
from .test_cpu_instruction_sets import compile_for

LONG = 100
"""Tokens before the ones that are decoded; with these they fill more than one split of attention's slots."""
KINDS = {
    "llama": ("teal_uniform", "rsparse"),
    "mistral": ("cats",),
    "qwen2": ("wina",),
    "qwen3": ("chess", "wisparse"),
}
CASES = [(family, method) for family, methods in KINDS.items() for method in methods]
QUANTISERS = {
    "int8": Int8("int8", lm_head="int8"),
    "int4": Int4("int4", lm_head="same", group=8, symmetric=False),
    "int4 in whole vectors": Int4("int4", lm_head="int8", group=64, symmetric=True),
}


def plan_for(model, method: str):
    quick = {"rsparse": ["method.search=false", "method.share=0.7"], "wina": ["method.greedy=false"]}
    return make_method(method, *quick.get(method, [])).plan(make_calibration(model), 0.4)


def logits(engine: DecodeEngine, batch: int, steps: int = 3) -> Tensor:
    """Logits (steps, batch, vocabulary) of tokens behind a prompt whose second row is padded."""
    ids = prompts(engine.model, batch, length=LONG)
    mask = torch.ones_like(ids)
    mask[1:2, :30] = 0
    engine.prefill(ids, mask)
    return torch.stack([engine.step(torch.arange(batch) + step).clone() for step in range(steps)])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), CASES)
def test_it_computes_what_plain_torch_does(compiled, family, method):
    model = make_tiny_model(family)
    plan = plan_for(model, method)
    for chosen, batch in ((None, 1), (plan, 1), (plan, 3)):
        found = []
        for backend in ("c++", "torch"):
            choose_backend(backend)
            with DecodeEngine(model, chosen, batch=batch, capacity=LONG + 8) as engine:
                assert engine.ran()["attention"] == backend
                found.append(logits(engine, batch))
        # Of logits around 10. A channel whose |x| lies at its threshold would show as more.
        assert torch.allclose(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "hidden"), [((5, 1), 100), ((9, 3), 576), ((2, 2), 64), ((12, 2), 96)])
@pytest.mark.parametrize("march", ["x86-64-v3", "native"])
def test_heads_of_any_number_and_size(compiled, monkeypatch, march, heads, hidden):
    """More heads to a group than attention takes at once, and heads that fill no whole vector."""
    model = make_tiny_model("llama", blocks=1, heads=heads, sizes=(hidden, 80))
    compile_for(march, monkeypatch)
    with DecodeEngine(model, batch=2, capacity=LONG + 8) as engine:
        found = logits(engine, 2)
    choose_backend("torch")
    with DecodeEngine(model, batch=2, capacity=LONG + 8) as engine:
        expected = logits(engine, 2)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_on_any_threads_and_machine_that_fuses(compiled, monkeypatch, name, dtype):
    model = make_tiny_model("qwen3")
    weights = QUANTISERS[name].weights(make_calibration(model)) if name else None

    def results() -> Tensor:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with quantised(model, weights), DecodeEngine(model, quantised=weights, capacity=8) as engine:
                past = torch.Generator().manual_seed(0)
                for cached in (engine.cache.keys, engine.cache.values):
                    cached.copy_(torch.randn(cached.shape, generator=past))
                engine.cache.length.fill_(5)
                found.append(torch.stack([engine.step(torch.tensor([token])).clone() for token in (1, 2)]))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
        return found[0]

    model = model.to(dtype)
    native = results()
    compile_for("x86-64-v3", monkeypatch)  # skips where "native" may not fuse
    assert torch.equal(native, results())


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "teal_uniform", "wina"])
@pytest.mark.parametrize("name", QUANTISERS)
def test_quantised_weights_continue_as_generate_does_with_dequantised_ones(implementation, name, method):
    model = make_tiny_model("llama", heads=(2, 2), sizes=(64, 128))
    weights = QUANTISERS[name].weights(make_calibration(model))
    with quantised(model, weights):
        plan = None if method is None else plan_for(model, method)
        input_ids = prompts(model, 2)
        with DecodeEngine(model, plan, quantised=weights, batch=2, capacity=40) as engine:
            found = engine.generate(input_ids, new_tokens=20)
        if plan is None:
            expected = model.generate(
                input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=20, eos_token_id=None,
                pad_token_id=0, do_sample=False,
            )  # fmt: skip
        else:
            expected = generated(model, plan, "decode_only", input_ids, 20)
    assert found.tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTISERS)
def test_quantised_weights_in_bfloat16_are_nearer_to_exact_ones_than_dequantised_ones(compiled, name):
    # Transformers rounds the dequantised weights to bfloat16, and every vector between them. The engine rounds
    # what goes into attention and what comes out, and reads the stored values as they are.
    own = make_tiny_model("llama", heads=(2, 2), sizes=(64, 128)).bfloat16().float()
    weights = QUANTISERS[name].weights(make_calibration(own))
    with quantised(own, weights):
        dequantised = deepcopy(own)
    decoded = DecodedTokens(lambda: deepcopy(dequantised).bfloat16(), None, tokens=64)
    decoded.exact_model = dequantised.double()
    decoded.engine = DecodeEngine(deepcopy(own).bfloat16(), quantised=weights, capacity=40)
    exact = decoded.exact()
    assert 0 < typical_error(decoded.of_the_engine(), exact) < typical_error(decoded.of_transformers(), exact)


def test_gated_blocks_of_quantised_weights_are_refused_before_a_plan_is_made():
    model = make_tiny_model("llama")
    with pytest.raises(KernelError, match="does not read neurons of quantised weights by their gate"):
        check_decodable(model, 1, 8, [Mechanism.GATE], {"int8": 0})


@pytest.mark.parametrize("mechanism", [Mechanism.FOLDED, Mechanism.ROTATION])
def test_other_bases_of_quantised_weights_are_refused_before_a_plan_is_made(mechanism):
    model = make_tiny_model("llama")
    check_decodable(model, 1, 8, [mechanism])
    with pytest.raises(KernelError, match="stored in the model's own bases, and this plan has others"):
        check_decodable(model, 1, 8, [mechanism], {"int8": 0})


def test_odd_outputs_in_4_bits_are_refused_before_a_plan_is_made():
    model = make_tiny_model("llama", sizes=(48, 81))
    check_decodable(model, 1, 8, (), {"int8": 0})
    with pytest.raises(KernelError, match="projections of 81, 81 outputs do not lie side by side; take 8 bits"):
        check_decodable(model, 1, 8, (), {"int4": 27, "int8": 0})


@pytest.mark.parametrize("token", [-1, 128])
def test_a_token_that_is_none_is_refused(compiled, token):
    with DecodeEngine(make_tiny_model("llama"), capacity=8) as engine:
        with pytest.raises(KernelError, match="tokens are 0 to 127, not"):
            engine.step(torch.tensor([token]))
        engine.cache.length.fill_(8)
        with pytest.raises(KernelError, match="8 slots, and all are filled"):
            engine.step(torch.tensor([1]))

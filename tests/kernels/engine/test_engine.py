"""The decode engine against transformers' own generate, with the same plan applied through hooks."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import networkx
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, AutoTokenizer
from wisparse.kernels.cpu.gemv import backend
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.engine.sampling import Multinomial
from wisparse.kernels.errors import KernelError
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import model_projections, projection_shapes
from wisparse.method.running.apply import applied

from ...conftest import ROOT, make_calibration, make_method, make_protocol, make_tiny_model
from ...method.heads.head_plans import with_heads
from ..decoded_tokens import DecodedTokens, generated, prompts, typical_error

KINDS = ("teal_uniform", "wina", "rsparse", "chess", "cats", "wisparse", "prox", "topk_guided")
"""Thresholds, top-k, a low-rank path, gated blocks with and without attention, thresholds by layer, neurons
that proxies choose, thresholds within bounds."""
EMBEDDED = ROOT / "repro" / "embedded" / "models"


def plan_for(model, method: str, sparsity: float = 0.4) -> SparsityPlan:
    quick = {"rsparse": ["method.search=false", "method.share=0.7"], "wina": ["method.greedy=false"]}
    return make_method(method, *quick.get(method, [])).plan(make_calibration(model), sparsity)


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_the_engine_continues_as_generate_does(tiny_model, method):
    plan = plan_for(tiny_model, method)
    input_ids = prompts(tiny_model, 1)
    expected = generated(tiny_model, plan, "half", input_ids, 20)
    engine = DecodeEngine(tiny_model, plan, capacity=40)
    with applied(tiny_model, plan, make_protocol("half")):
        found = engine.generate(input_ids, new_tokens=20)
    assert found.tolist() == expected.tolist()
    assert (
        found.tolist()
        != generated(tiny_model, SparsityPlan(projection_shapes(tiny_model)), "half", input_ids, 20).tolist()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("llama-mini", "wina"),
        ("llama-mini", "chess"),
        ("llama-mini", "prox"),
        ("mistral-mini", "teal_uniform"),
        ("qwen-mini", "teal_uniform"),
    ],
)
def test_embedded_models_continue_as_under_generate(name, method):
    model = (
        AutoModelForCausalLM.from_pretrained(EMBEDDED / name, dtype=torch.float32).eval().requires_grad_(False)
    )
    plan = plan_for(model, method, 0.5)
    text = Path(inspect.getsourcefile(networkx.Graph)).read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / name)
    input_ids = tokenizer(text, return_tensors="pt").input_ids[:, :300]  # beyond the sliding window
    expected = generated(model, plan, "decode_only", input_ids, 16)
    found = DecodeEngine(model, plan, capacity=400).generate(input_ids, new_tokens=16)
    assert found.tolist() == expected.tolist()


def test_rows_of_a_batch_are_padded_on_the_left(tiny_model):
    plan = plan_for(tiny_model, "teal_uniform")
    input_ids = prompts(tiny_model, 3)
    mask = torch.ones_like(input_ids)
    mask[0, :5] = mask[2, :9] = 0
    input_ids = input_ids.masked_fill(mask == 0, 0)
    expected = generated(tiny_model, plan, "decode_only", input_ids, 16, mask=mask)
    engine = DecodeEngine(tiny_model, plan, batch=3, capacity=40)
    assert engine.generate(input_ids, mask, new_tokens=16).tolist() == expected.tolist()


@pytest.mark.parametrize(("combined", "kept"), [("sum", None), ("maximum", None), ("sum", 1)])
def test_rows_of_a_batch_share_a_mask(llama, combined, kept):
    """The tokens of hooks where all rows stand for one batch, and others than with a mask of each row.

    kept: key-value groups that each row looks at; None: all.
    """
    plan = plan_for(llama, "wina")
    plan = replace(plan, rules={name: replace(rule, shared=combined) for name, rule in plan.rules.items()})
    plan = plan if kept is None else with_heads(llama, kept, plan)
    ids = prompts(llama, 3)
    policy = replace(make_protocol("decode_only"), rows_sharing=3)
    with DecodeEngine(llama, plan, batch=3, capacity=40) as engine:
        found = engine.generate(ids, new_tokens=16).tolist()
    assert found == generated(llama, plan, policy, ids, 16).tolist()
    assert found != generated(llama, plan, "decode_only", ids, 16).tolist()


def test_without_a_plan_the_engine_is_the_dense_model(tiny_model):
    input_ids = prompts(tiny_model, 2)
    expected = tiny_model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=16, eos_token_id=None,
        pad_token_id=0, do_sample=False,
    )  # fmt: skip
    assert DecodeEngine(tiny_model, batch=2, capacity=40).generate(input_ids, new_tokens=16).tolist() == (
        expected.tolist()
    )


def test_a_head_tied_to_the_embedding_continues_as_generate_does():
    config = make_tiny_model("qwen3").config
    config.tie_word_embeddings = True
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    plan, input_ids = plan_for(model, "teal_uniform"), prompts(model, 2)
    engine = DecodeEngine(model, plan, batch=2, capacity=40)
    assert engine.weights.lm_head.data_ptr() == engine.weights.embedding.data_ptr()
    expected = generated(model, plan, "decode_only", input_ids, 16)
    assert engine.generate(input_ids, new_tokens=16).tolist() == expected.tolist()


def test_heads_that_are_normalised_are_not_left_as_they_are():
    model = make_tiny_model("qwen3")
    logits = []
    for gain in (1.0, 2.0):
        for block in model.model.layers:
            block.self_attn.q_norm.weight.fill_(gain)
        with DecodeEngine(model, capacity=40) as engine:
            engine.prefill(prompts(model, 1))
            logits.append(engine.step(torch.tensor([5])).clone())
    assert not torch.allclose(*logits, atol=1e-2)


def test_a_stopped_row_is_filled_while_others_go_on(llama):
    input_ids = prompts(llama, 2)
    engine = DecodeEngine(llama, batch=2, capacity=40)
    free = engine.generate(input_ids, new_tokens=16)
    stop = int(free[0, 15])
    expected = llama.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=16, eos_token_id=stop,
        pad_token_id=0, do_sample=False,
    )  # fmt: skip
    found = engine.generate(input_ids, new_tokens=16, stop_tokens=[stop])
    assert found.tolist() == expected.tolist()
    assert not found[0, 16:].any()


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_sampling_draws_what_generate_draws_from_the_same_seed(llama, top_p):
    input_ids = prompts(llama, 2)
    torch.manual_seed(7)
    expected = llama.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=16, eos_token_id=None,
        pad_token_id=0, do_sample=True, temperature=0.8, top_k=0, top_p=top_p,
    )  # fmt: skip
    torch.manual_seed(7)
    engine = DecodeEngine(llama, batch=2, capacity=40)
    found = engine.generate(input_ids, new_tokens=16, sampler=Multinomial(0.8, top_p))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf, "1", None])
def test_a_sampler_of_numbers_that_are_none_is_one_line(wrong):
    """An infinite temperature makes every token as likely as any other."""
    with pytest.raises(KernelError, match=r"temperature .* is no number above 0"):
        Multinomial(temperature=wrong)
    with pytest.raises(KernelError, match=r"top_p .* is no number in"):
        Multinomial(top_p=wrong)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, **keywords) -> Tensor:
    """Attention that rounds to bfloat16 what comes in and what comes out, and nothing between."""
    exact = (part.bfloat16().double() for part in (q, k, v))
    return scaled_dot_product_attention(*exact, **keywords).bfloat16().to(q.dtype)


def decoded_tokens(sparse: bool) -> DecodedTokens:
    plan = plan_for(make_tiny_model("qwen2").bfloat16(), "teal_uniform") if sparse else None
    return DecodedTokens(lambda: make_tiny_model("qwen2").bfloat16(), plan)


@pytest.mark.parametrize("sparse", [False, True])
def test_bfloat16_logits_are_nearer_to_exact_ones_than_those_of_transformers(sparse):
    # The engine rounds to bfloat16 what goes into attention and what comes out, as transformers does. The rest
    # is float32, where transformers rounds every norm, projection, activation and sum of the residual stream:
    # 4 vectors of a block instead of about 14. Errors add up as squares, so its error is below that of
    # transformers, whatever the order of sums.
    decoded = decoded_tokens(sparse)
    exact = decoded.exact()
    assert 0 < typical_error(decoded.of_the_engine(), exact) < typical_error(decoded.of_transformers(), exact)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_bfloat16_step_rounds_to_bfloat16_in_attention_alone(sparse, monkeypatch):
    """Attention is exact between the roundings it makes on purpose; all else is as near as float32 sums are.

    The order of a float32 sum of n products changes it by at most n · 2^-24 of the sum of their magnitudes. How
    far that carries to the logits, the exact model says: each of its projections is changed by as much as that,
    up or down at random. One vector rounded to bfloat16, by up to 2^-9 of each value, is beyond it.
    """
    decoded = decoded_tokens(sparse)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", exact_attention)
    exact, engine = decoded.exact(), decoded.of_the_engine()
    generator = torch.Generator().manual_seed(6)

    def disturb(linear, inputs, out):
        magnitudes = inputs[0].abs() @ linear.weight.abs().T
        signs = torch.rand(out.shape, generator=generator).sub(0.5).sign()
        return out + (linear.in_features + 1) * 2.0**-24 * magnitudes * signs

    for module in decoded.exact_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(disturb)
    assert 0 < typical_error(engine, exact) < typical_error(decoded.exact(), exact)


def test_the_same_prompt_gives_the_same_bits_again(llama):
    plan = plan_for(llama, "teal_uniform")
    input_ids = prompts(llama, 2)
    engine = DecodeEngine(llama, plan, batch=2, capacity=40)
    logits = []
    for _ in range(3):
        engine.prefill(input_ids)
        logits.append(engine.step(torch.tensor([1, 2])).clone())
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("policy", ["half", "decode_only"])
def test_an_engine_reads_prompts_in_the_context_that_it_is_given(tiny_model, policy):
    plan, input_ids = plan_for(tiny_model, "teal_uniform"), prompts(tiny_model, 1)
    expected = generated(tiny_model, plan, policy, input_ids, 12)
    reading = partial(applied, tiny_model, plan, make_protocol(policy))
    with DecodeEngine(tiny_model, plan, capacity=40, reading_prompts=reading) as engine:
        assert engine.generate(input_ids, new_tokens=12).tolist() == expected.tolist()
        assert not any(linear._forward_pre_hooks for linear in model_projections(tiny_model).values())


def test_it_says_which_language_each_part_ran_in(llama):
    with DecodeEngine(llama, capacity=40) as engine:
        found = engine.ran()
    parts = ("attention", "norms", "lm_head", "products", "selection")
    assert found == dict.fromkeys(parts, backend())


def bad_engines(llama):
    other = plan_for(make_tiny_model("llama", blocks=1), "teal_uniform")
    return {
        "another model": lambda: DecodeEngine(llama, other, capacity=40),
        "drops nothing": lambda: DecodeEngine(llama, SparsityPlan(projection_shapes(llama)), capacity=40),
        "1 to 8 rows": lambda: DecodeEngine(llama, batch=9),
        "positions for 128": lambda: DecodeEngine(llama, capacity=4096),
        "not in torch.float64": lambda: DecodeEngine(make_tiny_model("llama").double()),
    }


@pytest.mark.parametrize(
    "message",
    ["another model", "drops nothing", "1 to 8 rows", "positions for 128", "not in torch.float64"],
)
def test_what_cannot_be_executed_says_so(llama, message):
    with pytest.raises(KernelError, match=message):
        bad_engines(llama)[message]()


def test_prompts_that_do_not_fit_say_so(llama):
    engine = DecodeEngine(llama, batch=2, capacity=16)
    with pytest.raises(KernelError, match="capacity=24"):
        engine.generate(prompts(llama, 2), new_tokens=12)
    with pytest.raises(KernelError, match="2 rows"):
        engine.generate(prompts(llama, 1), new_tokens=2)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, -1] = 0
    with pytest.raises(KernelError, match="left"):
        engine.generate(prompts(llama, 2), mask, new_tokens=2)

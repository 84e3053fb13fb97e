"""Plans in rotated bases, decoded by the engine: against hooks, on the CPU and on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import wisparse
from transformers import AutoModelForCausalLM
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes
from wisparse.method.quantisation.quantisers import Int8
from wisparse.method.quantised_model import quantised

from ...conftest import make_calibration, make_method, make_tiny_model
from ..decoded_tokens import DecodedTokens, generated, prompts, typical_error, with_biases
from ..triton_cases import DEVICE

METHODS = {
    "larosa": (),
    "larosa_adapter": (),
    "larosa_each": (),
    "teal_rotated": (),
    "wina_rotated": ("method.greedy=false",),
}
"""Top-k and thresholds; one basis a block with gains and without, in which case the stream is rotated; two."""
BASES = {"larosa_adapter": {"adapter"}}
"""Bases that a step multiplies by, by method; others have one at each site."""


def plan_for(model, method: str, sparsity: float = 0.3) -> SparsityPlan:
    return make_method(method, *METHODS[method]).plan(make_calibration(model), sparsity)


def continued(model, plan, ids, new_tokens: int = 16, **keywords) -> list[list[int]]:
    with DecodeEngine(model, plan, batch=len(ids), capacity=40, **keywords) as engine:
        return engine.generate(ids, new_tokens=new_tokens).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_those_of_hooks(tiny_model, method):
    plan, ids = plan_for(tiny_model, method), prompts(tiny_model, 3)
    before = {name: value.clone() for name, value in tiny_model.named_parameters()}
    found = continued(tiny_model, plan, ids)
    assert found == generated(tiny_model, plan, "decode_only", ids, 16).tolist()
    dense = SparsityPlan(projection_shapes(tiny_model))
    assert found != generated(tiny_model, dense, "decode_only", ids, 16).tolist()
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["larosa", "larosa_adapter"])
def test_one_row_without_a_compiler_and_with_one(implementation, llama, method):
    plan, ids = plan_for(llama, method), prompts(llama, 1)
    assert continued(llama, plan, ids) == generated(llama, plan, "decode_only", ids, 16).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_multiplies_by_as_much_as_the_plan_counts(llama, method):
    plan = plan_for(llama, method)
    with DecodeEngine(llama, plan, capacity=40) as engine:
        blocks = [vars(block) for block in engine.weights.blocks]
    names = {
        name for block in blocks for name in ("input_basis", "mlp_basis", "adapter") if block[name] is not None
    }
    assert names == BASES.get(method, {"input_basis", "mlp_basis"})
    read = sum(block[name].numel() for block in blocks for name in names)
    with wisparse.sparse(llama, plan) as session:
        llama(prompts(llama, 1))
    weights = sum(out * inner for out, inner in projection_shapes(llama).values())
    assert session.report()["rotation_share"] * weights == pytest.approx(read)


def mixed_bases(model, plan: SparsityPlan) -> SparsityPlan:
    """The stream in a basis in block 0 alone; in block 1 each site in its own, and no site in block 2."""
    other = plan.rotations["1.mlp_input"].flip(1).contiguous()
    kept = {name: basis for name, basis in plan.rotations.items() if name[0] in "01"}
    return replace(plan, rotations=kept | {"1.mlp_input": other})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["larosa", "larosa_adapter"])
def test_blocks_may_differ_and_sparse_tokens_have_biases(method):
    model = make_tiny_model("qwen2", blocks=3)
    plan, ids = with_biases(mixed_bases(model, plan_for(model, method))), prompts(model, 2)
    with DecodeEngine(model, plan, batch=2, capacity=40) as engine:
        adapters = [block.adapter is not None for block in engine.weights.blocks]
        found = engine.generate(ids, new_tokens=16).tolist()
    assert adapters == [method == "larosa_adapter", False, False]
    assert found == generated(model, plan, "decode_only", ids, 16).tolist()


@pytest.mark.parametrize("method", ["larosa", "larosa_adapter"])
def test_bits_are_the_same_whatever_the_number_of_threads(compiled, method):
    """One thread may be slow to take what was turned, while others go on to what is written next."""
    model = make_tiny_model("llama", blocks=3)
    before, logits = torch.get_num_threads(), []
    with DecodeEngine(model, mixed_bases(model, plan_for(model, method)), capacity=40) as engine:
        engine.prefill(prompts(model, 1))
        try:
            for threads in (1, *[2, 4] * 20):
                torch.set_num_threads(threads)
                logits.append(engine.step(torch.tensor([5])).clone())
                engine.cache.length.sub_(1)
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(logits[0], others) for others in logits[1:])


@pytest.mark.slow
def test_low_rank_paths_write_into_a_rotated_stream(llama):
    """R-Sparse's rules on the channels of La RoSA's adapter: no method makes such a plan, a user may."""
    low_rank = make_method("rsparse", "method.search=false", "method.share=0.7").plan(
        make_calibration(llama), 0.4
    )
    plan = replace(plan_for(llama, "larosa_adapter"), rules=low_rank.rules)
    ids = prompts(llama, 2)
    assert continued(llama, plan, ids) == generated(llama, plan, "decode_only", ids, 16).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["larosa", "larosa_adapter"])
def test_odd_sizes_and_a_tied_head(method):
    config = make_tiny_model("qwen3").config
    config.tie_word_embeddings = True
    config.hidden_size, config.intermediate_size, config.head_dim, config.vocab_size = 44, 52, 10, 131
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    plan, ids = plan_for(model, method), prompts(model, 1)
    assert continued(model, plan, ids) == generated(model, plan, "decode_only", ids, 16).tolist()
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.slow
@pytest.mark.parametrize("method", ["larosa", "larosa_adapter", "wina_rotated"])
def test_bfloat16_logits_are_nearer_to_exact_ones_than_those_of_hooks(method):
    # The engine rounds in attention alone, as without rotations; transformers rounds each vector of a block.
    plan = plan_for(make_tiny_model("qwen2").bfloat16().float(), method)
    decoded = DecodedTokens(lambda: make_tiny_model("qwen2").bfloat16(), plan)
    exact = decoded.exact()
    assert 0 < typical_error(decoded.of_the_engine(), exact) < typical_error(decoded.of_transformers(), exact)


@pytest.mark.slow
def test_the_library_reads_prompts_under_the_plan_and_reports_what_was_read(llama):
    plan, ids = plan_for(llama, "larosa_adapter"), prompts(llama, 1)
    expected = generated(llama, plan, "half", ids, 12).tolist()
    with wisparse.engine(llama, plan, tokens="half", capacity=40) as engine:
        assert engine.generate(ids, new_tokens=12, stop_tokens=()).tolist() == expected
        inside = engine.report()
    after = engine.report()
    assert inside == after
    with wisparse.sparse(llama, plan, tokens="decode_only") as session:
        session.prompt_lengths = torch.tensor([12])
        llama(torch.tensor(expected)[:, :-1], use_cache=False)
    assert after["bytes_per_token"] == pytest.approx(session.report()["bytes_per_token"])


def test_engines_of_one_plan_share_its_bases_and_others_are_refused(llama):
    plan, other, ids = plan_for(llama, "larosa"), plan_for(llama, "wina_rotated"), prompts(llama, 1)
    first = DecodeEngine(llama, plan, capacity=40)
    with DecodeEngine(llama, plan, capacity=40) as second:
        assert first.generate(ids, new_tokens=4).tolist() == second.generate(ids, new_tokens=4).tolist()
    for asked in (other, None):
        with pytest.raises(KernelError, match="other bases of its weights"):
            DecodeEngine(llama, asked, capacity=40)
    alone = first.generate(ids, new_tokens=4).tolist()
    first.close()
    assert continued(llama, plan, ids, 4) == alone
    assert not any(module._forward_hooks for module in llama.modules())


def test_what_fits_no_model_and_weights_in_few_bits_are_refused(llama):
    plan = plan_for(llama, "larosa")
    for name, basis in (("0.mlp_input", torch.eye(40)), ("0.o", torch.eye(48))):
        wrong = replace(plan, rotations=plan.rotations | {name: basis})
        with pytest.raises(KernelError, match=r"0.mlp_input: .* does not fit|0.o is no site behind a norm"):
            DecodeEngine(llama, wrong, capacity=40)
    weights = Int8("int8", lm_head="none").weights(make_calibration(llama))
    with quantised(llama, weights):
        plan = plan_for(llama, "larosa")
        with pytest.raises(KernelError, match="stored in the model's own bases, and this plan has others"):
            DecodeEngine(llama, plan, quantised=weights, capacity=40)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the engine's other step needs a GPU")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_on_a_gpu_are_those_of_hooks(family, method, batch):
    """Rows together, too: what they would read nearly whole is dense, as the engine says."""
    model = make_tiny_model(family)
    plan = plan_for(model, method)
    model, ids = model.to(DEVICE), prompts(model, batch).to(DEVICE)
    with DecodeEngine(model, plan, batch=batch, capacity=40) as engine:
        assert bool(engine.dense) == (batch > 1)
        found, executed = engine.generate(ids, new_tokens=16).tolist(), plan.without(engine.dense)
    assert found == generated(model, executed, "decode_only", ids, 16).tolist()

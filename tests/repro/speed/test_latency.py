"""Decode speed as a run measures it, and the table made from its records. Times are real, only their order of
magnitude is checked: the machine decides the rest."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.model.decoder_weights import unpack
from wisparse.method.errors import UserError
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes
from wisparse.repro.speed import latency as latency_module
from wisparse.repro.speed.compiled_decoder import CompiledDecoder
from wisparse.repro.speed.latency import DecodeLatency
from wisparse.repro.speed.transformers_decode import COMPILE_MODES, EAGER, TransformersDecode

from ...conftest import make_calibration, make_method, make_tiny_model


def latency(**settings) -> DecodeLatency:
    defaults = {"name": "decode", "batch": 1, "prompt": 5, "new_tokens": 8, "repeats": 2, "seed": 0}
    defaults |= {"baselines": (EAGER,), "realised_tolerance": None, "tune": True}
    return DecodeLatency(**(defaults | settings))


def planner(model, method: str = "teal_uniform"):
    calibration = make_calibration(model)
    return lambda sparsity: make_method(method).plan(calibration, sparsity)


@pytest.mark.slow
def test_a_plan_is_timed_beside_the_dense_engine_and_transformers(tiny_model):
    plan_at = planner(tiny_model)
    found = latency().measure(tiny_model, plan_at(0.5), plan_at)
    assert set(found["timings"]) == {"eager", "engine-dense", "engine-sparse"}
    assert set(found["speedups"]) == {"eager", "engine-dense"}
    sparse, dense = (found["timings"][f"engine-{kind}"] for kind in ("sparse", "dense"))
    assert found["speedups"]["engine-dense"] == pytest.approx(sparse["tok_s"] / dense["tok_s"])
    assert sparse["tok_s_lowest"] <= sparse["tok_s"] <= sparse["tok_s_highest"]
    assert 1.0 < found["byte_limit_speedup"] < 2.5
    traffic = found["traffic"]
    assert found["bandwidth_reached"] == pytest.approx(found["tok_s"] * traffic["bytes_per_token"])
    # The prompt's five tokens are dense, the last token is never read.
    assert (traffic["tokens"], traffic["sparse_tokens"]) == (12, 7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["larosa", "teal_rotated", "teal_folded"])
def test_a_plan_in_other_bases_is_timed_beside_the_dense_engine(llama, method):
    plan_at, before = planner(llama, method), llama.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    found = latency(baselines=()).measure(llama, plan_at(0.2), plan_at)
    assert set(found["timings"]) == {"engine-dense", "engine-sparse"}
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


@pytest.mark.slow
def test_the_record_says_what_ran_in_the_sparse_engine(llama, monkeypatch):
    plan_at = planner(llama)
    found = latency(baselines=()).measure(llama, plan_at(0.5), plan_at)
    assert found["kernels"]["attention"] in ("c++", "torch")  # one call of C++, or without a compiler torch
    assert found["kernels"]["products"] in ("c++", "torch")
    asked = []
    monkeypatch.setattr(DecodeEngine, "ran", lambda engine: asked.append([*engine.rules[0].rules]) or {})
    latency(baselines=()).measure(llama, plan_at(0.5), plan_at)
    assert asked == [["q", "k", "v", "o", "gate", "up", "down"]]


@pytest.mark.slow
def test_the_dense_method_is_the_engine_without_a_plan(llama):
    found = latency(baselines=()).measure(llama, SparsityPlan(projection_shapes(llama)), planner(llama))
    assert set(found["timings"]) == {"engine-dense"}
    assert found["speedups"] == {}
    assert found["byte_limit_speedup"] == 1.0


@pytest.mark.slow
def test_a_batch_reads_what_any_of_its_rows_keeps(llama):
    plan_at = planner(llama)
    one, four = (
        latency(baselines=(), batch=batch).measure(llama, plan_at(0.5), plan_at)["traffic"] for batch in (1, 4)
    )
    assert four["realised_sparsity"] < one["realised_sparsity"]
    assert four["sparse_tokens"] == one["sparse_tokens"]


@pytest.mark.slow
def test_the_realised_sparsity_can_be_asked_for(llama):
    plan_at = planner(llama)
    free = latency(baselines=(), new_tokens=64).measure(llama, plan_at(0.5), plan_at)
    tolerance = abs(free["traffic"]["realised_sparsity"] - 0.5) / 2
    matched = latency(baselines=(), new_tokens=64, realised_tolerance=tolerance).measure(
        llama, plan_at(0.5), plan_at
    )
    assert abs(matched["traffic"]["realised_sparsity"] - 0.5) <= tolerance
    assert matched["nominal_sparsity"] != 0.5
    with pytest.raises(UserError, match="realised_tolerance"):
        latency(baselines=(), realised_tolerance=0.0).measure(llama, plan_at(0.5), plan_at)


@pytest.mark.slow
def test_rows_of_a_batch_are_brought_to_the_sparsity_each_by_itself(llama):
    """What they leave out together cannot reach it, and is what the record says."""
    plan_at = planner(llama)
    found = latency(baselines=(), batch=4, new_tokens=64, realised_tolerance=0.02).measure(
        llama, plan_at(0.5), plan_at
    )
    assert found["nominal_sparsity"] == pytest.approx(0.5, abs=0.15)
    assert found["traffic"]["realised_sparsity"] < 0.4


@pytest.mark.slow
def test_the_model_is_left_as_transformers_wants_it(llama):
    ids = torch.arange(1, 9)[None]
    before = llama(ids).logits
    latency(baselines=()).measure(llama, (plan_at := planner(llama))(0.5), plan_at)
    linears = [module for module in llama.modules() if isinstance(module, torch.nn.Linear)]
    assert all(linear.weight.is_contiguous() for linear in linears)
    assert torch.equal(llama(ids).logits, before)


@pytest.mark.slow
def test_baselines_are_timed_once_for_a_model(llama, monkeypatch):
    plan_at = planner(llama)
    first = latency().measure(llama, plan_at(0.5), plan_at)
    monkeypatch.setattr(TransformersDecode, "step", None)  # would fail if it were timed again
    second = latency().measure(llama, plan_at(0.6), plan_at)
    assert first["timings"]["eager"] == second["timings"]["eager"]


@pytest.mark.slow
def test_what_is_measured_is_handed_out_before_every_baseline(llama, monkeypatch):
    """The engine first; a baseline that ends the process leaves what was timed before it."""
    monkeypatch.setattr(latency_module, "CompiledDecoder", partial(CompiledDecoder, compiled=False))
    plan_at, kept = planner(llama), []
    names = ("compiled-decoder", EAGER)
    found = latency(baselines=names).measure(llama, plan_at(0.5), plan_at, kept.append)
    assert [each["unmeasured"] for each in kept] == [[*names], [EAGER]]
    assert [set(each["timings"]) - {"engine-dense", "engine-sparse"} for each in kept] == [set(), {names[0]}]
    assert kept[0]["fastest_baseline"] is None
    assert kept[1]["fastest_baseline"] == "compiled-decoder"
    assert "unmeasured" not in found
    again = latency(baselines=names).measure(llama, plan_at(0.5), plan_at)
    assert {name: again["timings"][name] for name in names} == {name: found["timings"][name] for name in names}


@pytest.mark.slow
def test_transformers_with_a_compiled_step_decodes_the_same_tokens():
    model = make_tiny_model("llama")
    prompt = torch.arange(1, 6)[None]
    sequences = []
    for mode in (EAGER, "default"):
        decoder = TransformersDecode(model, mode, capacity=16)
        tokens = [decoder.prefill(prompt).argmax(-1)]
        for _ in range(6):
            tokens.append(decoder.step(tokens[-1]).argmax(-1))
        sequences.append(torch.cat(tokens).tolist())
    assert sequences[0] == sequences[1]


@pytest.mark.slow
def test_the_compact_decoder_is_timed_beside_transformers(llama, monkeypatch):
    """The engine continues as before on the joined weights that are left behind; not compiled, for time."""
    monkeypatch.setattr(latency_module, "CompiledDecoder", partial(CompiledDecoder, compiled=False))
    prompt = torch.arange(1, 6)[None]
    before = DecodeEngine(llama, capacity=16).generate(prompt, new_tokens=8)
    unpack(llama)
    plan_at = planner(llama)
    found = latency(baselines=(EAGER, "compiled-decoder")).measure(llama, plan_at(0.5), plan_at)
    assert set(found["timings"]) == {"eager", "compiled-decoder", "engine-dense", "engine-sparse"}
    assert set(found["speedups"]) == {"eager", "compiled-decoder", "engine-dense"}
    assert found["fastest_baseline"] in {"eager", "compiled-decoder"}
    assert torch.equal(DecodeEngine(llama, capacity=16).generate(prompt, new_tokens=8), before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_compiler_what_needs_one_is_left_out_with_a_line(monkeypatch, caplog, device):
    every = latency(baselines=None)
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setenv("CXX", sys.executable)
    assert every._baseline_names(device, False) == (EAGER, *COMPILE_MODES[device], "compiled-decoder")
    assert not caplog.records
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC")
    monkeypatch.delenv("CXX")
    assert every._baseline_names(device, False) == (EAGER,)
    assert "there is no C compiler: default" in caplog.text
    assert "compiled-decoder are not timed" in caplog.text


def test_a_baseline_that_there_is_not_is_refused():
    with pytest.raises(UserError, match="there is no fastest; take of compiled-decoder, compiled-decoder-int4"):
        latency(baselines=("fastest",))

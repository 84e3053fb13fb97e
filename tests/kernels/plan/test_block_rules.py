"""Which sites a batch computes densely, and that a step without their rules is the model with the others."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.plan.block_rules import dense_for_a_batch
from wisparse.kernels.plan.projection_rule import ProjectionRule
from wisparse.kernels.plan.proxies import ProxyRule
from wisparse.method.plan import SparsityPlan
from wisparse.method.provenance import PlanProvenance
from wisparse.method.running.apply import applied

from ...conftest import make_calibration, make_method, make_protocol, make_tiny_model
from ..decoded_tokens import prompts
from ..triton_cases import DEVICE

GPU = torch.device("cuda")  # only its name counts
SHAPES = {f"0.{name}": (10, 10) for name in ("q", "k", "v", "o", "gate", "up", "down")} | {"0.q": (40, 10)}


def thresholds():
    return ProjectionRule(thresholds=torch.ones(10))


def top_k(k, shared=None):
    return ProjectionRule(top_k=k, weights=torch.ones(10), shared=shared)


def dense(rules, batch, gates=None, **details):
    plan = SparsityPlan(SHAPES, rules, gates or {}, provenance=PlanProvenance(**details))
    return sorted(name.removeprefix("0.") for name in dense_for_a_batch(plan, batch, GPU))


def test_sites_whose_union_is_nearly_full_are_dense():
    """A batch of two reads 1 - (1 - k/10)² of a site: 0.51 at k = 3, 0.64 at k = 4."""
    assert dense({"0.o": top_k(3), "0.down": top_k(4)}, 2) == ["down"]
    assert dense({"0.o": top_k(3), "0.down": top_k(4)}, 3) == ["down", "o"]
    assert dense({"0.o": top_k(3), "0.down": top_k(4)}, 1) == []
    plan = SparsityPlan(SHAPES, {"0.o": top_k(9)})
    assert dense_for_a_batch(plan, 8, torch.device("cpu")) == dense_for_a_batch(None, 8, GPU) == frozenset()


def test_projections_weigh_by_their_columns():
    """q has 40 of 60 columns: at k = 2 it reads 0.36 of them, and with the dense k and v 0.57 of the site."""
    assert dense({"0.q": top_k(2)}, 2) == []
    assert dense({"0.q": top_k(3)}, 2) == ["k", "q", "v"]


def test_thresholds_are_as_sparse_as_the_method_made_them():
    rules = {"0.o": thresholds(), "0.down": thresholds()}
    assert dense(rules, 2, sparsity=0.5) == ["down", "o"]
    assert dense(rules, 2, sparsity=0.8) == []
    assert dense(rules, 2, sparsity=0.8, details={"sparsities": {"0.o": 0.6}}) == ["o"]
    assert dense(rules, 2) == ["down", "o"]  # where nothing is known, half


def test_a_shared_mask_pays_at_the_feed_forward_part_alone_and_up_to_eight_rows():
    """What it reads does not grow with the rows: half of down, and of q, k and v as much."""
    rules = {f"0.{name}": top_k(5, "sum") for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert dense(rules, 8) == dense(rules, 2) == ["k", "o", "q", "v"]
    assert dense(rules, 9) == sorted(name.removeprefix("0.") for name in SHAPES)
    assert dense(rules, 1) == []
    own = {name: replace(rule, shared=None) for name, rule in rules.items()}
    assert dense(own, 2) == dense(rules, 9)


def test_a_shared_mask_that_keeps_nearly_all_is_dense():
    """Gate at k = 3 beside a dense up reads 0.65 of the site, beside one at k = 7 half."""
    assert dense({"0.down": top_k(7, "sum")}, 2) == ["down"]
    assert dense({"0.gate": top_k(3, "sum")}, 2) == ["gate", "up"]
    assert dense({"0.gate": top_k(3, "sum"), "0.up": top_k(7, "sum")}, 8) == []


def test_neurons_of_a_gate_are_those_of_up_and_down():
    """Columns of a gate that is dense itself: up and down are what a batch reads of them."""
    gates = {0: torch.ones(10)}
    assert dense({}, 2, gates, sparsity=0.5) == ["down", "gate", "up"]
    assert dense({}, 2, gates, sparsity=0.9) == []


def test_neurons_that_proxies_choose_are_those_of_one_row():
    plan = SparsityPlan(SHAPES, proxies={0: ProxyRule(neurons=10, channels=10, kept=1, read=5, group=5)})
    assert dense_for_a_batch(plan, 2, GPU) == {"0.gate", "0.up", "0.down"}
    assert dense_for_a_batch(plan, 1, GPU) == frozenset()


@pytest.mark.skipif(DEVICE.type != "cuda", reason="on a CPU every plan is executed as it is")
def test_an_engine_on_a_gpu_says_what_is_dense_for_its_batch():
    model = make_tiny_model("llama").to(DEVICE)
    plan = make_method("teal_uniform").plan(make_calibration(model), 0.5)
    kept = replace(plan, rules={"0.o": plan.rules["0.o"]}, provenance=PlanProvenance(sparsity=0.9))
    ids = prompts(model, 3).to(DEVICE)
    for given, count in ((plan, 14), (kept, 0)):
        with DecodeEngine(model, given, batch=3, capacity=20) as engine:
            found = engine.generate(ids, new_tokens=6)
            assert len(engine.dense) == count
            assert ("dense for the batch" in engine.ran()) == (count > 0)
            executed = given.without(engine.dense)
        with applied(model, executed, make_protocol("decode_only")):
            expected = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, eos_token_id=None, pad_token_id=0,
                do_sample=False,
            )  # fmt: skip
        assert torch.equal(found, expected)

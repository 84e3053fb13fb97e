"""What a user has told torch to make new tensors of changes no number: it is for the user's own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.method.quantisation.quantisers import Int4, Int8
from wisparse.method.quantised_model import quantised
from wisparse.method.running.apply import applied

from ..conftest import ROOT, make_calibration, make_method, make_protocol, make_tiny_model

OTHERS = (torch.float64, torch.bfloat16)
IDS = torch.arange(3, 15)[None]
FLOATS = {"empty", "zeros", "ones", "full", "rand", "randn", "linspace", "eye"}
"""Functions of torch that make numbers of the default type, unless they are told another."""


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("other", OTHERS, ids=str)
@pytest.mark.parametrize(
    "method", ["teal", "wina", "chess", "rsparse", "topk_guided", "teal_folded", "larosa", "was", "sparseinfer"]
)
def test_plans_are_the_same_and_do_the_same(method, other):
    model, recipe = make_tiny_model("llama", activation="relu"), make_method(method, "search=minimal")
    expected = recipe.plan(make_calibration(model), 0.3)
    with default(other):
        found = recipe.plan(make_calibration(model), 0.3)
        assert torch.get_default_dtype() == other
    ours, theirs = found.tensors(), expected.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)
    assert found.provenance.details == expected.provenance.details
    with applied(model, expected, make_protocol("half")) as session:
        logits, report = model(IDS).logits, session.report()
    with default(other), applied(model, found, make_protocol("half")) as session:
        assert torch.equal(model(IDS).logits, logits)
        assert session.report() == report


@pytest.mark.parametrize(
    "around",
    [
        partial(torch.autocast, "cpu", torch.bfloat16),
        torch.inference_mode,
        torch.no_grad,
        partial(torch.device, "meta"),
    ],
)
@pytest.mark.parametrize("method", ["teal", "wisparse", "rsparse", "larosa", "equal_loss", "teal_folded"])
def test_plans_are_the_same_whatever_they_are_made_within(llama, method, around):
    """Autocast made thresholds of another type of model; inference mode had no gradients."""
    recipe, calibration = make_method(method), make_calibration(llama)
    expected = recipe.plan(calibration, 0.3).tensors()
    with around():
        plan = recipe.plan(calibration, 0.3)
    found = plan.tensors()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert found[name].is_inference() == tensor.is_inference()


def test_an_engine_within_autocast_is_refused(llama):
    """Its prompt was read in another type than its steps."""
    with (
        DecodeEngine(llama, capacity=32) as engine,
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(KernelError, match=r"autocast is on.*float32 alone"),
    ):
        engine.generate(IDS, new_tokens=3)


@pytest.mark.parametrize("other", OTHERS, ids=str)
@pytest.mark.parametrize("weights", ["own", "int8", "int4"])
@pytest.mark.parametrize("method", ["dense", "teal_uniform", "rsparse"])
def test_the_engine_decodes_the_same(llama, method, weights, other):
    quantisers = {"int8": Int8("int8", lm_head="int8"), "int4": Int4("int4", "none", group=8, symmetric=False)}
    quantiser = quantisers.get(weights)

    def decoded() -> list[torch.Tensor]:
        stored = quantiser and quantiser.weights(make_calibration(llama))
        with quantised(llama, stored):
            plan = make_method(method).plan(make_calibration(llama), 0.5)
            with DecodeEngine(
                llama, None if method == "dense" else plan, quantised=stored, capacity=40
            ) as engine:
                logits = [engine.prefill(IDS)]
                logits += [engine.step(torch.tensor([token])).clone() for token in (5, 9)]
                return [*logits, engine.generate(IDS, new_tokens=6)]

    expected = decoded()
    with default(other):
        found = decoded()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_kernels_say_what_their_tensors_are_of():
    """A compiled kernel takes bytes: it read float64 as float32, and decoded noise."""
    makers = {f"torch.{name}" for name in FLOATS}
    silent = [
        f"{path.relative_to(ROOT)}:{call.lineno} {ast.unparse(call)}"
        for path in (ROOT / "kernels").rglob("*.py")
        if "bench" not in path.parts  # programs of their own
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in makers
        if "dtype" not in {keyword.arg for keyword in call.keywords}
        and "device='meta'" not in ast.unparse(call)
    ]
    assert not silent, "\n".join(silent)

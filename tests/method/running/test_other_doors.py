"""What else is done with a model within a plan's context: stored, sent to a process, compiled, traced."""

import copy
import io
import pickle
from multiprocessing import get_context

import pytest
import torch
from wisparse.method.errors import UserError
from wisparse.method.running.apply import applied

from ...conftest import make_calibration, make_method, make_protocol, make_tiny_model

IDS = torch.arange(1, 9)[None]


@pytest.fixture
def llama():
    return make_tiny_model("llama")


def plan_of(model, method="teal_uniform", sparsity=0.5):
    return make_method(method).plan(make_calibration(model), sparsity)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


STORING = {
    "torch.save": lambda stored: torch.save(stored, io.BytesIO()),
    "pickle": pickle.dumps,
    "a process": lambda stored: get_context("spawn").Process(target=print, args=(stored,)).start(),
}


@pytest.mark.parametrize("store", STORING.values(), ids=STORING)
def test_a_model_under_a_plan_is_not_stored_whole(llama, store):
    """It ended in torch's "Can't pickle local object"."""
    with applied(llama, plan_of(llama), make_protocol("all")) as session:
        for stored in (llama, {"models": [llama.model]}, session):
            with pytest.raises(UserError, match=r"cannot be stored.*before or after that context"):
                store(stored)
        assert copy.deepcopy(session.report()) == session.report()
    assert torch.equal(logits(pickle.loads(pickle.dumps(llama))), logits(llama))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "inner"])
def test_what_was_compiled_around_a_model_sees_the_plan(llama, part):
    """A function that was compiled before the context was dense within it, without a word."""
    plans = [plan_of(llama), plan_of(llama, sparsity=0.7)]
    dense, expected = logits(llama), []
    for plan in plans:
        with applied(llama, plan, make_protocol("half")):
            expected.append(logits(llama))
    torch._dynamo.reset()
    inner = torch.compile(llama.model, backend="eager")

    def behind_inner(ids, use_cache):
        found = inner(ids, use_cache=use_cache)
        found.logits = llama.lm_head(found.last_hidden_state)
        return found

    compiled = torch.compile(llama, backend="eager") if part == "model" else behind_inner
    torch.testing.assert_close(logits(compiled), dense)
    for plan, sparse in zip(plans, expected, strict=True):
        with applied(llama, plan, make_protocol("half")) as session:
            torch.testing.assert_close(logits(compiled), sparse)
            assert session.report()["realised_sparsity"] > 0
        assert not torch.allclose(sparse, dense)
        torch.testing.assert_close(logits(compiled), dense)
    assert "forward" not in vars(llama.model)


def test_a_forward_of_the_users_own_is_kept(llama):
    calls, original = [], llama.model.forward

    def forward(*arguments, **keywords):
        calls.append(1)
        return original(*arguments, **keywords)

    llama.model.forward = forward
    with applied(llama, plan_of(llama), make_protocol("all")):
        before = len(calls)
        logits(llama)
        assert len(calls) == before + 1
    assert llama.model.forward is forward


def test_tracing_is_refused(llama):
    """A traced model drops the channels of the example's tokens, whatever tokens it is given."""
    with (
        applied(llama, plan_of(llama, "wina"), make_protocol("all")),
        pytest.raises(UserError, match=r"torch\.jit\.trace would write down"),
    ):
        torch.jit.trace(lambda ids: llama(ids, use_cache=False).logits, IDS)


def test_exporting_is_refused(llama):
    with (
        applied(llama, plan_of(llama, "wina"), make_protocol("all")),
        pytest.raises(UserError, match=r"torch\.export would write down"),
    ):
        torch.export.export(llama, (IDS,), {"use_cache": False})

"""What may befall a model whose linears compute with stored weights: it computes right, or says so."""

from __future__ import annotations

import copy
import gc
import io
import signal
from contextlib import ExitStack
from threading import Thread

import pytest
import torch
import wisparse
from torch import Tensor
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model import stored_linears
from wisparse.method.errors import UserError
from wisparse.method.projections import model_projections
from wisparse.method.quantised_model import quantised

from ...conftest import make_calibration, make_method, make_tiny_model
from ..triton_cases import DEVICE
from .test_stored_prompts import setting


def parameters(model) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def is_as_before(model, before: list[Tensor]) -> bool:
    return all(map(torch.equal, before, model.parameters())) and not stored_linears.is_taken(model)


def test_an_engine_that_is_interrupted_while_it_is_made_leaves_the_model_whole(monkeypatch):
    model, weights, ids = setting()
    with quantised(model, weights):
        before, expected = parameters(model), model(ids).logits
        makes, calls = stored_linears._makes, []

        def interrupted(*arguments):
            calls.append(arguments)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return makes(*arguments)

        monkeypatch.setattr(stored_linears, "_makes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            DecodeEngine(model, quantised=weights, capacity=40)
        assert is_as_before(model, before)
        assert torch.equal(model(ids).logits, expected)


def test_a_model_is_whole_however_often_the_end_of_its_engine_is_interrupted(monkeypatch):
    model, weights, ids = setting()
    with quantised(model, weights):
        before, expected = parameters(model), model(ids).logits
        engine = DecodeEngine(model, quantised=weights, capacity=40)
        makes = stored_linears._StoredForward._values

        def pressed(forward) -> Tensor:
            signal.raise_signal(signal.SIGINT)
            return makes(forward)

        monkeypatch.setattr(stored_linears._StoredForward, "_values", pressed)
        with pytest.raises(KeyboardInterrupt):
            engine.close()
        assert is_as_before(model, before)
        assert torch.equal(model(ids).logits, expected)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_engine_on_own_weights_does_not_read_a_prompt_with_others():
    """Prompts would be read on the weights of the quantisation, and tokens decoded on those before."""
    model, weights, ids = setting()
    with DecodeEngine(model, capacity=40) as engine:
        expected = engine.generate(ids, new_tokens=4)
        with quantised(model, weights), pytest.raises(KernelError, match="was replaced while an engine reads"):
            engine.generate(ids, new_tokens=4)
        assert torch.equal(engine.generate(ids, new_tokens=4), expected)
    with ExitStack() as engines:
        with quantised(model, weights):
            engine = engines.enter_context(DecodeEngine(model, capacity=40))
        with pytest.raises(KernelError, match="was replaced while an engine reads"):
            engine.prefill(ids)


def test_an_engine_that_nobody_has_any_more_leaves_the_model_whole():
    model, weights, ids = setting()
    with quantised(model, weights):
        before = parameters(model)
        engine = DecodeEngine(model, quantised=weights, capacity=40)
        engine.generate(ids, new_tokens=2)
        assert not is_as_before(model, before)
        del engine
        gc.collect()
        assert is_as_before(model, before)


def test_an_interrupted_generation_can_be_made_again_and_an_engine_closed_twice():
    model, weights, ids = setting()
    with quantised(model, weights):
        before = parameters(model)
        engine = DecodeEngine(model, quantised=weights, capacity=40)
        expected = engine.generate(ids, new_tokens=6)
        drawn = []

        def interrupted(logits: Tensor) -> Tensor:
            drawn.append(logits)
            if len(drawn) == 3:
                raise KeyboardInterrupt
            return logits.argmin(dim=-1)

        with pytest.raises(KeyboardInterrupt):
            engine.generate(ids, new_tokens=6, sampler=interrupted)
        assert torch.equal(engine.generate(ids, new_tokens=6), expected)
        engine.close()
        engine.close()
        assert is_as_before(model, before)


def test_weights_that_come_back_before_the_engine_ends_are_not_passed_over():
    """A model whose quantisation has ended has its own weights: what the stored ones give is none of it."""
    model, weights, ids = setting()
    expected = model(ids).logits
    with ExitStack() as engines:
        with quantised(model, weights):
            engine = engines.enter_context(DecodeEngine(model, quantised=weights, capacity=40))
        for call in (lambda: model(ids), lambda: engine.generate(ids, new_tokens=2)):
            with pytest.raises(KernelError, match=r"replaced .*while an engine reads"):
                call()
    assert torch.equal(model(ids).logits, expected)


def test_a_plan_in_rotated_bases_beside_an_engine_is_refused():
    """Its norms would be turned, and stored weights are not."""
    model, weights, ids = setting()
    with quantised(model, weights):
        plan = make_method("larosa").plan(make_calibration(model), 0.4)
        with wisparse.sparse(model, plan, tokens="all"):
            expected = model(ids).logits
        with (
            wisparse.engine(model, capacity=40),
            pytest.raises(UserError, match="an engine acts on this model in other bases of its weights"),
            wisparse.sparse(model, plan, tokens="all"),
        ):
            pass
        with wisparse.sparse(model, plan, tokens="all"):
            assert torch.equal(model(ids).logits, expected)


def test_no_plan_is_made_of_weights_that_are_not_there():
    model, weights, _ = setting()
    calibration = make_calibration(model)
    with quantised(model, weights), wisparse.engine(model, capacity=40):
        for make in (
            lambda: wisparse.plan(model, None, calibration.input_ids, method="wina"),
            lambda: make_method("wina").plan(calibration, 0.5),
        ):
            with pytest.raises(UserError, match="hold none to make a plan of; close the engine first"):
                make()


def test_a_copy_that_is_made_meanwhile_holds_weights_and_takes_others():
    model, weights, ids = setting()
    with quantised(model, weights):
        before = copy.deepcopy(model)
        with DecodeEngine(model, quantised=weights, capacity=40):
            other = copy.deepcopy(model)
    assert torch.equal(other(ids).logits, before(ids).logits)
    assert all(parameter.isfinite().all() for parameter in other.state_dict().values())
    with DecodeEngine(other, capacity=40) as found, DecodeEngine(before, capacity=40) as expected:
        assert torch.equal(found.generate(ids, new_tokens=4), expected.generate(ids, new_tokens=4))
    another = make_tiny_model("llama", heads=(2, 2), sizes=(64, 128), seed=3).to(DEVICE, model.dtype)
    other.load_state_dict(another.state_dict())
    assert torch.equal(other(ids).logits, another(ids).logits)


def test_a_model_without_weights_is_not_stored():
    model, weights, _ = setting()
    with (
        quantised(model, weights),
        DecodeEngine(model, quantised=weights, capacity=40),
        pytest.raises(KernelError, match="its linears hold none; save it before or after"),
    ):
        torch.save(model, io.BytesIO())


def test_threads_that_share_a_model_do_not_share_the_room_for_values():
    model, weights, ids = setting()
    with quantised(model, weights), DecodeEngine(model, quantised=weights, capacity=40):
        expected = model(ids).logits
        right: list[bool] = []

        def run() -> None:
            right.extend(torch.equal(model(ids).logits, expected) for _ in range(100))

        threads = [Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * 200


def test_gradients_of_inputs_pass_through_stored_weights():
    model, weights, ids = setting()

    def gradient() -> Tensor:
        states = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=states).logits.float().square().sum().backward()
        return states.grad

    with quantised(model, weights):
        expected = gradient()
        with DecodeEngine(model, quantised=weights, capacity=40):
            found = gradient()
    assert (found - expected).norm() <= 5e-2 * expected.norm()


def test_zeros_come_back_with_their_signs():
    model, weights, _ = setting()
    with quantised(model, weights):
        for linear in model_projections(model).values():
            linear.weight.data[:, 0] = 0.0
        exact = {name: linear.weight.data.T.clone() for name, linear in model_projections(model).items()}
        zeroed = {name: weights.anew(name, weight) for name, weight in exact.items()}
        for linear, stored in zip(model_projections(model).values(), zeroed.values(), strict=True):
            linear.weight.data = stored.dequantised().T.to(linear.weight.dtype).contiguous()
            linear.weight.data[:, 0] = -0.0
        stored_linears.take_linears(model, model_projections(model), zeroed, stored_linears.StoredProducts())
        stored_linears.give_back_linears(model)
        for linear in model_projections(model).values():
            assert linear.weight[:, 0].signbit().all()


def test_an_engine_that_is_closed_while_it_generates_says_so():
    model, weights, ids = setting()
    with quantised(model, weights):
        before = parameters(model)
        engine = DecodeEngine(model, quantised=weights, capacity=40)

        def closing(logits: Tensor) -> Tensor:
            engine.close()
            return logits.argmax(dim=-1)

        with pytest.raises(KernelError, match="this decode engine is closed"):
            engine.generate(ids, new_tokens=4, sampler=closing)
        assert is_as_before(model, before)

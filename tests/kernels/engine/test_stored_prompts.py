"""Prompts on weights in few bits: computed from the stored rows, which alone are held of these weights."""

from __future__ import annotations

import copy
import gc
from contextlib import ExitStack

import pytest
import torch
import wisparse
from torch import nn
from wisparse.kernels.cpu.gemv import all_times
from wisparse.kernels.engine.backends import MOST_ROWS
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.stored_linears import StoredProducts, give_back_linears, take_linears
from wisparse.kernels.quantised.stored import PIECE
from wisparse.method.projections import model_projections
from wisparse.method.quantisation.quantisers import Int4, Int8
from wisparse.method.quantised_model import quantised, quantised_linears

from ...conftest import make_calibration, make_tiny_model
from ..decoded_tokens import prompts
from ..triton_cases import DEVICE

QUANTISERS = {
    "int8": Int8("int8", lm_head="int8"),
    "int8 without the head": Int8("int8", lm_head="none"),
    "int4": Int4("int4", lm_head="same", group=64, symmetric=False),
}
DTYPES = (torch.float32, torch.bfloat16) if DEVICE.type == "cpu" else (torch.bfloat16, torch.float16)


def setting(name: str = "int8", dtype: torch.dtype = DTYPES[0], length: int = 12):
    """A model, its stored weights and a prompt of one row."""
    model = make_tiny_model("llama", heads=(2, 2), sizes=(64, 128)).to(DEVICE, dtype)
    return model, QUANTISERS[name].weights(make_calibration(model)), prompts(model, 1, length).to(DEVICE)


def bytes_held() -> int:
    """Bytes of all tensors that the process holds in main memory, each storage once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", QUANTISERS)
@pytest.mark.parametrize("length", [12, MOST_ROWS, MOST_ROWS + 1])
def test_a_prompt_has_the_logits_of_the_dequantised_model(length, name, dtype):
    """Their errors are of one size: the model rounds values to its dtype, and products of few rows do not."""
    model, weights, ids = setting(name, dtype, length)
    exact_model = setting(name, dtype, length)[0].double()
    with torch.no_grad(), quantised(exact_model, weights):
        exact = exact_model(ids).logits[:, -1]
    with quantised(model, weights):
        expected = model(ids).logits[:, -1]
        before = [parameter.data.clone() for parameter in model.parameters()]
        with DecodeEngine(model, quantised=weights, capacity=100) as engine:
            found = engine.prefill(ids)
            found_by_the_model = model(ids).logits[:, -1]
        assert all(map(torch.equal, before, model.parameters()))
        assert all(parameter.is_contiguous() for parameter in model.parameters())
        assert torch.equal(model(ids).logits[:, -1], expected)
    for logits in (found, found_by_the_model):
        assert (logits - exact).norm() <= 2 * (expected - exact).norm()
    assert (expected - exact).norm() <= (1e-5 if dtype is torch.float32 else 5e-2) * exact.norm()
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.skipif(DEVICE.type != "cpu", reason="`prompt_speed` counts the bytes of a GPU's tensors")
@pytest.mark.parametrize("name", QUANTISERS)
def test_an_engine_holds_the_stored_weights_alone(name):
    """What the linears held that stored values make is gone while it lives, but for room for one piece."""
    model, weights, ids = setting(name)
    linears = quantised_linears(model, "lm_head" in weights.weights)
    sizes = [linear.weight.nbytes for linear in linears.values()]
    scratch = max(sizes)  # the largest are a piece each
    stored = sum(weight.stored_bytes().total for weight in weights.weights.values())
    with quantised(model, weights):
        before = bytes_held()
        with DecodeEngine(model, quantised=weights, capacity=16) as engine:
            cache = engine.cache
            others = sum(one.nbytes for one in vars(cache).values() if isinstance(one, torch.Tensor))
            for _ in range(2):
                kept = bytes_held() - others - scratch - (before - sum(sizes))
                assert kept < 0.1 * stored  # the step's own vectors
                engine.prefill(ids)
        del engine, cache
        assert bytes_held() <= before


def test_a_linear_that_is_read_by_itself_meanwhile_shows_it():
    model, weights, _ = setting()
    with quantised(model, weights), DecodeEngine(model, quantised=weights, capacity=16):
        for linear in model_projections(model).values():
            assert linear.weight.isnan().all()
            assert linear.weight.untyped_storage().nbytes() == linear.weight.element_size()


def test_own_weights_that_no_stored_ones_make_are_kept_and_not_read():
    """The engine reads its prompt from the stored rows, whatever the model holds."""
    model, weights, ids = setting()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with quantised(model, weights), DecodeEngine(model, quantised=weights, capacity=40) as engine:
        expected = engine.generate(ids, new_tokens=4)
    with DecodeEngine(model, quantised=weights, capacity=40) as engine:
        assert torch.equal(engine.generate(ids, new_tokens=4), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_engines_on_the_same_stored_weights_share_them_and_end_in_any_order():
    model, weights, ids = setting()
    with quantised(model, weights):
        expected = model(ids).logits
        for order in ((0, 1), (1, 0)):
            engines = [DecodeEngine(model, quantised=weights, capacity=40) for _ in range(2)]
            qkv = [engine.weights.blocks[0].qkv.values.data_ptr() for engine in engines]
            assert qkv[0] == qkv[1]
            logits = [engine.prefill(ids) for engine in engines]
            assert torch.equal(*logits)
            engines[order[0]].close()
            assert torch.equal(engines[order[1]].prefill(ids), logits[0])
            engines[order[1]].close()
            assert torch.equal(model(ids).logits, expected)


def test_an_engine_on_other_weights_of_the_model_is_refused_meanwhile():
    model, weights, _ = setting()
    other = QUANTISERS["int8"].weights(make_calibration(model))
    with quantised(model, weights), DecodeEngine(model, quantised=weights, capacity=16):
        with pytest.raises(KernelError, match="its linears hold none; close that one first"):
            DecodeEngine(model, capacity=16)
        with pytest.raises(KernelError, match="reads other stored weights of this model already"):
            DecodeEngine(model, quantised=other, capacity=16)
        for linear in model_projections(model).values():
            assert linear.weight.untyped_storage().nbytes() == linear.weight.element_size()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_weights_that_come_back_meanwhile_stay():
    """The context of the quantisation ends before the engine: the model has its own, and keeps them."""
    model, weights, ids = setting()
    expected = model(ids).logits
    with ExitStack() as engines:
        with quantised(model, weights):
            engines.enter_context(DecodeEngine(model, quantised=weights, capacity=16))
        own = [linear.weight.data_ptr() for linear in model_projections(model).values()]
    assert [linear.weight.data_ptr() for linear in model_projections(model).values()] == own
    assert torch.equal(model(ids).logits, expected)


def test_a_copy_that_is_made_meanwhile_computes_the_same():
    model, weights, ids = setting()
    with quantised(model, weights):
        expected = model(ids).logits
        with DecodeEngine(model, quantised=weights, capacity=16):
            other = copy.deepcopy(model)
        assert torch.equal(other(ids).logits, expected)
        assert isinstance(other.model.layers[0].mlp.down_proj, nn.Linear)


def test_the_report_of_an_engine_reads_the_stored_rows():
    model, weights, ids = setting()
    with quantised(model, weights), wisparse.engine(model, capacity=40) as engine:
        engine.generate(ids, new_tokens=4)
        assert engine.report()["bytes_per_token"] > 0


@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU no product reads several rows from few bits")
def test_few_rows_are_multiplied_and_for_many_values_are_made(monkeypatch, compiled):
    model, weights, _ = setting()
    multiplied = []

    def counted(x, weight):
        multiplied.append(len(x))
        return all_times(x, weight)

    monkeypatch.setattr("wisparse.kernels.cpu.gemv.all_times", counted)
    with quantised(model, weights), DecodeEngine(model, quantised=weights, capacity=100) as engine:
        engine.prefill(prompts(model, 1, MOST_ROWS))
        linears = quantised_linears(model, True)
        assert multiplied == [MOST_ROWS] * (len(linears) - 1) + [1]  # the head computes the last token alone
        multiplied.clear()
        engine.prefill(prompts(model, 1, MOST_ROWS + 1))
        assert multiplied == [1]


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_large_weights_are_dequantised_some_columns_at_a_time(name):
    weight = torch.randn(PIECE["cpu"] // 100, 320, generator=torch.Generator().manual_seed(0))
    stored = QUANTISERS[name].anew("0.q", weight)
    pieces = [(columns.start, columns.stop) for columns, _ in stored.pieces()]
    assert pieces == ([(0, 100), (100, 200), (200, 300), (300, 320)] if name == "int8" else
                      [(first, first + 64) for first in range(0, 320, 64)])  # fmt: skip
    whole = stored.dequantised()
    assert (whole - weight).abs().max() < 0.5
    rows = torch.empty(weight.shape, dtype=torch.bfloat16)
    for columns, piece in stored.pieces():
        piece.dequantise_into(rows[:, columns])
    assert torch.equal(rows, whole.bfloat16())
    model = nn.ModuleDict({"q": nn.Linear(*weight.shape)})
    take_linears(model, model, {"q": stored}, StoredProducts())
    x = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(1))
    found = model["q"](x)
    give_back_linears(model)
    assert torch.allclose(found, x @ whole + model["q"].bias, atol=1e-3)
    assert not torch.allclose(model["q"](x), found, atol=1.0)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU no product reads several rows from few bits")
@pytest.mark.parametrize("name", QUANTISERS)
def test_few_rows_of_any_form_are_what_a_linear_makes_of_them(name, compiled):
    """None at all, rows that lie apart or are not finite; of another dtype, torch says what it says of any."""
    model, weights, _ = setting(name, torch.float32)
    linear = model.model.layers[0].mlp.down_proj
    many = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
    forms = [torch.empty(0, 128), torch.empty(2, 0, 128), many.T, many.T.reshape(2, 3, 128), many[:, 0]]
    forms += [many[:, :1].T.expand(5, 128), torch.randn(5, 256)[:, ::2], torch.ones(5, 1).expand(5, 128)]
    for value in (torch.inf, torch.nan, 1e30):
        forms.append(many.T.clone())
        forms[-1][1, 3] = value
    with torch.no_grad(), quantised(model, weights):
        expected = [linear(form) for form in forms]
        with DecodeEngine(model, quantised=weights, capacity=16):
            for form, wanted in zip(forms, expected, strict=True):
                torch.testing.assert_close(linear(form), wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
            with pytest.raises(RuntimeError, match="the same dtype"):
                linear(many.T.half())
            with torch.autocast("cpu", torch.bfloat16):
                assert linear(many.T).dtype is torch.bfloat16

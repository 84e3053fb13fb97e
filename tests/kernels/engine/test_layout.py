"""How the model's weights lie within an engine's context and after it."""

from __future__ import annotations

import pytest
import torch
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError

from ..decoded_tokens import prompts
from .test_engine import bad_engines, plan_for


def test_a_second_engine_shares_the_weights_of_the_first(llama):
    first, second = DecodeEngine(llama, capacity=8), DecodeEngine(llama, capacity=8)
    mine, others = first.weights.blocks[0], second.weights.blocks[0]
    assert (
        mine.qkv.data_ptr() == others.qkv.data_ptr() == llama.model.layers[0].self_attn.q_proj.weight.data_ptr()
    )
    assert mine.down.data_ptr() == others.down.data_ptr()


def layout(model) -> list[tuple[tuple[int, ...], int]]:
    return [(weight.stride(), weight.untyped_storage().nbytes()) for weight in model.parameters()]


@pytest.mark.parametrize("method", [None, "teal_uniform", "chess"])
def test_after_its_context_the_model_is_whole_and_the_engine_closed(tiny_model, method):
    plan = None if method is None else plan_for(tiny_model, method)
    before, logits = layout(tiny_model), tiny_model(prompts(tiny_model, 1)).logits
    with DecodeEngine(tiny_model, plan, capacity=40) as engine:
        engine.generate(prompts(tiny_model, 1), new_tokens=4)
        assert layout(tiny_model) != before
    assert layout(tiny_model) == before
    assert torch.equal(tiny_model(prompts(tiny_model, 1)).logits, logits)
    for use in (lambda: engine.generate(prompts(tiny_model, 1), new_tokens=4), engine.ran):
        with pytest.raises(KernelError, match="closed"):
            use()
    engine.close()


def test_after_an_engine_that_cannot_be_made_the_model_is_whole(llama):
    before = layout(llama)
    for message, make in bad_engines(llama).items():
        with pytest.raises(KernelError, match=message):
            make()
    assert layout(llama) == before

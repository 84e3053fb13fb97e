"""Attention in float16 and fused norms beside transformers' own: values, gradients, where they stand back."""

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from wisparse.method.running.fused_norms import fused_norms
from wisparse.method.running.half_attention import HALF, coarse_passes, half_attention

from ...conftest import make_calibration, make_tiny_model


class Shared(nn.Module):
    is_causal, num_key_value_groups = True, 3


def drawn(key_heads=2):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, 40, 8), (2, key_heads, 40, 8), (2, key_heads, 40, 8)
    return [3.0 * torch.randn(shape, generator=generator) for shape in shapes]


def test_values_and_gradients_have_the_digits_of_float16_whatever_their_scale():
    gradient = 1e-9 * torch.randn(2, 40, 6, 8, generator=torch.Generator().manual_seed(1))
    found = []
    for attention in (half_attention, sdpa_attention_forward):
        leaves = [x.requires_grad_() for x in drawn()]
        value, _ = attention(Shared(), *leaves, None, scaling=0.3)
        found.append([value.detach(), *torch.autograd.grad(value, leaves, gradient)])
    for half, single in zip(*found, strict=True):
        assert half.dtype == torch.float32
        assert 0 < (half - single).norm() < 3e-3 * single.norm()


def test_without_gradients_it_is_the_same():
    with torch.enable_grad():
        expected = half_attention(Shared(), *drawn(), None, scaling=0.3)[0]
    with torch.inference_mode():
        assert torch.equal(half_attention(Shared(), *drawn(), None, scaling=0.3)[0], expected)


@pytest.mark.parametrize("how", ["masked", "float64", "not causal"])
def test_what_it_is_not_made_for_is_as_it_was(how):
    given = [x.double() for x in drawn()] if how == "float64" else drawn()
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool) if how == "masked" else None
    keywords = {"is_causal": False} if how == "not causal" else {}
    expected = sdpa_attention_forward(Shared(), *given, mask, scaling=0.3, **keywords)[0]
    assert torch.equal(half_attention(Shared(), *given, mask, scaling=0.3, **keywords)[0], expected)


def test_a_model_computes_with_it_and_on_a_cpu_is_left_alone():
    model = make_tiny_model("llama")
    ids = make_calibration(model).input_ids
    before, expected = model.config._attn_implementation, model(ids).logits
    with coarse_passes(model):
        assert model.config._attn_implementation == before
    model.config._attn_implementation = HALF
    assert 0 < (model(ids).logits - expected).norm() < 3e-3 * expected.norm()


def test_norms_of_torch_give_the_same_and_those_of_a_users_own_stay():
    model = make_tiny_model("llama")
    ids, norms = make_calibration(model).input_ids, [model.model.layers[0].input_layernorm, model.model.norm]
    norms[0].weight.data.uniform_(0.5, 2.0)
    own = norms[1].forward
    norms[1].forward = own
    expected = model(ids).logits
    with fused_norms(model):
        assert norms[1].forward is own
        assert norms[0].forward.func.__module__.endswith("fused_norms")
        assert torch.allclose(model(ids).logits, expected, atol=1e-4)
    assert "forward" not in vars(norms[0])
    with pytest.raises(ZeroDivisionError), fused_norms(model):
        raise ZeroDivisionError
    assert "forward" not in vars(norms[0])

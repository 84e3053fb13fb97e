"""What the decode engine would leave out of a model is refused, and what does nothing is not."""

import sys
from functools import wraps

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, LlamaForSequenceClassification, LlamaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.decoder import Decoder

from ...conftest import make_tiny_model

IDS = torch.arange(5)[None]


class Doubled(nn.Linear):
    """A linear layer whose forward is its own."""

    def forward(self, x):
        return super().forward(2 * x)


class DoubledEmbedding(nn.Embedding):
    """An embedding that scales what it looks up."""

    def forward(self, ids):
        return 2 * super().forward(ids)


def head_bias(model):
    model.lm_head.bias = nn.Parameter(torch.ones(model.lm_head.out_features))


def parameter_beside(model):
    model.model.scale = nn.Parameter(torch.ones(1))


def subclass(model):
    model.model.layers[1].mlp.down_proj.__class__ = Doubled


def embedding(model):
    model.model.embed_tokens = DoubledEmbedding(128, 48)


def norm(model):
    model.model.norm = type("Norm", (type(model.model.norm),), {})(48)


def block_hook(model):
    model.model.layers[1].register_forward_hook(lambda _, __, output: output * 2)


def model_hook(model):
    model.register_forward_pre_hook(lambda _, __: None)


def forward(model):
    model.model.layers[0].mlp.forward = lambda x: x


def activation(model):
    model.model.layers[1].mlp.act_fn = nn.GELU()


def scaling(model):
    model.model.layers[1].self_attn.scaling *= 4


def epsilon(model):
    model.model.layers[1].input_layernorm.variance_epsilon = 0.3


def blocks(model):
    del model.model.layers[1]


def types(model):
    model.model.layers[1].bfloat16()


def negated(forward):
    """What a user puts in the place of the model's forward."""

    def negative(*arguments, **keywords):
        output = forward(*arguments, **keywords)
        output.logits = -output.logits
        return output

    return negative


def own_forward(model):
    model.forward = negated(model.forward)


def own_class(model):
    usual = type(model)
    model.__class__ = type("Mine", (usual,), {"forward": negated(usual.forward)})


def norms_with(make):
    def change(model):
        for block in model.model.layers:
            norm = make(len(block.input_layernorm.weight))
            norm.weight = block.input_layernorm.weight
            block.input_layernorm = norm

    return change


def own_attention(model):
    def half(*arguments, **keywords):
        output, weights = sdpa_attention_forward(*arguments, **keywords)
        return output / 2, weights

    AttentionInterface.register("half", half)
    model.config._attn_implementation = "half"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (own_forward, "the model has a forward of its own"),
        (own_class, "the model is a Mine"),
        (norms_with(lambda size: nn.LayerNorm(size, bias=False)), "input_layernorm is a LayerNorm"),
        (norms_with(lambda size: nn.RMSNorm(size, eps=0.5)), "input_layernorm is a RMSNorm"),
        (norms_with(GemmaRMSNorm), "input_layernorm is a GemmaRMSNorm"),
        (own_attention, "attention is computed by 'half'"),
        (head_bias, "the model has lm_head.bias"),
        (parameter_beside, "the model has model.scale"),
        (subclass, r"layers\.1\.mlp\.down_proj is a Doubled"),
        (embedding, "embed_tokens is a DoubledEmbedding"),
        (norm, "model.norm is a Norm"),
        (block_hook, r"layers\.1 has a forward hook"),
        (model_hook, "the model has a forward hook"),
        (forward, r"layers\.0\.mlp has a forward of its own"),
        (activation, r"layers\.1\.mlp\.act_fn is a GELU"),
        (scaling, r"layers\.1\.self_attn scales by"),
        (blocks, "the model has 1 blocks, and config.json 2"),
        (types, "linear layers are in bfloat16 and float32"),
        (epsilon, r"layers\.1\.input_layernorm has the epsilon 0\.3"),
    ],
)
def test_what_kernels_would_leave_out_is_refused(tiny_model, change, message):
    change(tiny_model)
    strides = [parameter.stride() for parameter in tiny_model.parameters()]
    with pytest.raises(KernelError, match=message):
        DecodeEngine(tiny_model, capacity=8)
    assert strides == [parameter.stride() for parameter in tiny_model.parameters()]


def replacement(original):
    def replaced(*arguments, **keywords):
        return original(*arguments, **keywords)

    return wraps(original)(replaced)  # it even has the name of what it replaces


@pytest.mark.parametrize("what", ["forward", "apply_rotary_pos_emb"])
def test_code_that_was_put_in_the_place_of_a_familys_is_refused(monkeypatch, tiny_model, what):
    """Research code does so, for all models at once: the engine decoded without it."""
    attention = type(tiny_model.model.layers[0].self_attn)
    owner = attention if what == "forward" else sys.modules[attention.__module__]
    monkeypatch.setattr(owner, what, replacement(getattr(owner, what)))
    with pytest.raises(KernelError, match=r"self_attn has a forward of its own|apply_rotary_pos_emb of"):
        DecodeEngine(tiny_model, capacity=8)
    monkeypatch.undo()
    DecodeEngine(tiny_model, capacity=8)


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification, None])
def test_a_model_without_blocks_and_head_in_their_places_is_one_line(llama, kind):
    wrapped = nn.Module() if kind is None else kind(llama.config)
    wrapped.config = llama.config
    if kind is None:
        wrapped.model = llama  # as adapters are wrapped around it
    with pytest.raises(KernelError, match=r"is no Llama model.*AutoModelForCausalLM.*merge_and_unload"):
        Decoder.of(wrapped)


def test_a_model_that_was_asked_for_its_hidden_states_still_decodes():
    model = make_tiny_model("llama")
    model(IDS, output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in model.modules())
    assert DecodeEngine(model, capacity=8).generate(IDS, new_tokens=2).shape == (1, 7)

"""What the decode engine would leave out of a model is refused, and what does nothing is not."""

import pytest
import torch
from torch import nn
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
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


def test_a_model_that_was_asked_for_its_hidden_states_still_decodes():
    model = make_tiny_model("llama")
    model(IDS, output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in model.modules())
    assert DecodeEngine(model, capacity=8).generate(IDS, new_tokens=2).shape == (1, 7)

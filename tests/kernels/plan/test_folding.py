"""Bases folded into a decoder's weights: the same function, other channels, and the weights back afterwards."""

import pytest
import torch
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.plan.bases import FoldedBases, Rotation, SiteBases
from wisparse.kernels.plan.folding import bases_of, folded
from wisparse.kernels.plan.rotating import rotated
from wisparse.method.projections import decoder_of, model_projections, projection_shapes

from ...conftest import make_tiny_model
from ..decoded_tokens import prompts


def drawn_bases(model, seed: int = 0) -> FoldedBases:
    generator, shape = torch.Generator().manual_seed(seed), decoder_of(model).shape

    def orthogonal(*sizes: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(*sizes, sizes[-1], generator=generator).double())[0].float()

    values = {block: orthogonal(shape.kv_heads, shape.head_dim) for block in range(shape.blocks)}
    return FoldedBases(orthogonal(shape.hidden), values)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("parts", ["both", "stream", "values"])
def test_the_model_computes_the_same_and_has_its_weights_back(family, parts):
    model = make_tiny_model(family)
    whole = drawn_bases(model)
    bases = {"both": whole, "stream": FoldedBases(whole.stream), "values": FoldedBases(None, whole.values)}[
        parts
    ]
    input_ids, before = prompts(model, 2), {name: value.clone() for name, value in model.named_parameters()}
    expected = model(input_ids).logits
    with folded(model, bases):
        assert bases_of(model) is bases
        changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert torch.allclose(model(input_ids).logits, expected, atol=2e-4)
    assert {name.split(".")[-2] for name in changed} == {
        "both": set(STREAM_PARTS) | {"v_proj"},
        "stream": set(STREAM_PARTS),
        "values": {"v_proj", "o_proj"},
    }[parts]
    assert bases_of(model) is None
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


STREAM_PARTS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    "embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip


def test_projections_read_the_stream_in_the_basis(tiny_model):
    bases, seen = drawn_bases(tiny_model), []
    query = model_projections(tiny_model)["1.q"]
    norm = decoder_of(tiny_model).blocks[1].input_layernorm
    handle = query.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    input_ids = prompts(tiny_model, 1)
    tiny_model(input_ids)
    gains = norm.weight.clone()
    with folded(tiny_model, bases):
        tiny_model(input_ids)
    handle.remove()
    own, turned = seen
    assert torch.allclose(turned, (own / gains) @ bases.stream, atol=1e-4)


def test_a_tied_embedding_is_tied_again(tiny_model):
    tiny_model.lm_head.weight = tiny_model.model.embed_tokens.weight
    with folded(tiny_model, drawn_bases(tiny_model)):
        assert tiny_model.lm_head.weight is not tiny_model.model.embed_tokens.weight
    assert tiny_model.lm_head.weight is tiny_model.model.embed_tokens.weight


def test_other_bases_are_refused_and_the_same_are_shared(tiny_model):
    bases = drawn_bases(tiny_model)
    own = tiny_model.lm_head.weight
    first, second = folded(tiny_model, bases), folded(tiny_model, bases)
    first.__enter__()
    second.__enter__()
    for other in (drawn_bases(tiny_model, 1), None):
        with pytest.raises(KernelError, match="other bases"), folded(tiny_model, other):
            pass
    first.__exit__(None, None, None)
    assert tiny_model.lm_head.weight is not own
    second.__exit__(None, None, None)
    assert tiny_model.lm_head.weight is own
    with DecodeEngine(tiny_model, capacity=8), pytest.raises(KernelError, match="other bases"):
        folded(tiny_model, bases).__enter__()


@pytest.mark.parametrize(
    ("bases", "said"),
    [
        (FoldedBases(torch.ones(48, 48)), "not orthogonal"),
        (FoldedBases(torch.eye(40)), "does not fit 48 channels"),
        (FoldedBases(None, {0: torch.eye(12)[None]}), "for 24 channels"),
        (FoldedBases(None, {0: torch.ones(2, 12, 12)}), "not orthogonal"),
        (FoldedBases(torch.eye(48), {1: torch.eye(12).repeat(2, 1, 1)}), None),
    ],
)
def test_what_fits_no_model_is_found(bases, said):
    found = bases.misfit(projection_shapes(make_tiny_model("llama")))
    assert found is said if said is None else said in found


class OnePlusGain(torch.nn.Module):
    """A norm as Gemma's: its gains are 1 more than its weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = torch.nn.Parameter(torch.full((size,), 0.5)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)


def _with_own_norm(model, make, path: str):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, make(model.config.hidden_size))
    return model


OWN_PARTS = {
    "has input_layernorm.bias": lambda model: _with_own_norm(
        model, torch.nn.LayerNorm, "model.layers.1.input_layernorm"
    ),
    "is a OnePlusGain whose": lambda model: _with_own_norm(
        model, OnePlusGain, "model.layers.0.input_layernorm"
    ),
    "model.norm is a LayerNorm": lambda model: _with_own_norm(
        model, lambda size: torch.nn.LayerNorm(size, bias=False), "model.norm"
    ),
    "has a forward hook": lambda model: model.model.layers[0].register_forward_hook(lambda *_: None),
    "has adapter.weight": lambda model: model.model.layers[0].add_module(
        "adapter", torch.nn.Linear(4, 4, False)
    ),
}


@pytest.mark.parametrize("part", OWN_PARTS)
def test_a_stream_that_would_pass_through_something_else_is_not_turned(part):
    model = make_tiny_model("llama")
    OWN_PARTS[part](model)
    with pytest.raises(KernelError, match=part), folded(model, drawn_bases(model)):
        pass
    assert bases_of(model) is None


def test_values_are_turned_beside_a_norm_of_its_own():
    model = _with_own_norm(make_tiny_model("llama"), OnePlusGain, "model.norm")
    input_ids = prompts(model, 2)
    expected = model(input_ids).logits
    with folded(model, FoldedBases(None, drawn_bases(model).values)):
        assert torch.allclose(model(input_ids).logits, expected, atol=2e-4)


def test_a_site_behind_a_norm_of_its_own_is_not_rotated():
    model = _with_own_norm(make_tiny_model("llama"), OnePlusGain, "model.layers.1.input_layernorm")
    rotations = SiteBases({"1.attention_input": Rotation(drawn_bases(model).stream)})
    with pytest.raises(KernelError, match="a OnePlusGain"), rotated(model, rotations):
        pass

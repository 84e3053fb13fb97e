"""Bases folded into a decoder's weights: the same function, other channels, and the weights back afterwards."""

import pytest
import torch
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.plan.bases import FoldedBases
from wisparse.kernels.plan.folding import bases_of, folded
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

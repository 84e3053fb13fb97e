"""A decoder's anatomy: its parts against the model's own, and that one file alone knows them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.decoder import FAMILIES, SITES, Decoder, Family, products_of
from wisparse.kernels.model.decoder_weights import pack, unpack
from wisparse.kernels.model.executable import check_executable
from wisparse.method.running.apply import applied

from ...conftest import ROOT, make_calibration, make_method, make_protocol, make_tiny_model

ANATOMY = re.compile(r"\bmodel\.model\b|\.model\.layers|config\.model_type|self_attn|_layernorm\b|_proj\b")


def test_one_file_alone_knows_where_a_models_parts_are():
    sources = [
        path
        for folder in ("baselines", "kernels", "library", "method", "repro")
        for path in (ROOT / folder).rglob("*.py")
    ]
    knowing = [str(path.relative_to(ROOT)) for path in sources if ANATOMY.search(path.read_text("utf-8"))]
    assert knowing == ["kernels/model/decoder.py"]


def test_its_shape_is_that_of_the_weights(tiny_model):
    decoder = Decoder.of(tiny_model)
    found = {projection.key: tuple(projection.linear.weight.shape) for projection in decoder.projections()}
    assert decoder.shape.shapes() == found
    assert decoder.shape.head_dim == decoder.blocks[0].self_attn.head_dim
    assert decoder.shape.vocabulary == decoder.lm_head.out_features == decoder.embedding.num_embeddings
    linears = [p for p in decoder.projections() if p.block == 0]
    for product, site in zip(products_of(decoder.shape), SITES, strict=True):
        reading = [projection.linear for projection in linears if projection.site == site]
        assert product.widths == tuple(linear.out_features for linear in reading)
        assert {product.inner} == {linear.in_features for linear in reading}


def test_windows_are_those_that_attention_has(tiny_model):
    config = tiny_model.config
    expected = getattr(config, "sliding_window", None)
    assert (expected is not None) == (config.model_type == "mistral")
    assert set(Decoder.of(tiny_model).shape.windows) == {expected}


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"sliding_window": 8}, "sliding_window=8, which Llama models do not know"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "which Llama models ignore"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "which Mistral models ignore"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "all blocks are sliding_attention"),
        ("qwen2", {"sliding_window": 1}, "sliding_window=1; a window has 2 tokens or more"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0; a window has 2 tokens or more"),
    ],
)
def test_windows_by_which_a_cache_forgets_other_tokens_than_the_blocks_are_refused(family, settings, message):
    model = make_tiny_model(family)
    for name, value in settings.items():
        setattr(model.config, name, value)
    for use in (Decoder.of, lambda model: DecodeEngine(model, capacity=8)):
        with pytest.raises(KernelError, match=message):
            use(model)


def test_a_window_by_block_that_says_what_the_blocks_do_is_taken():
    model = make_tiny_model("mistral")
    model.config.layer_types = ["sliding_attention"] * 2
    assert Decoder.of(model).shape.windows == (16, 16)


def test_a_family_that_is_not_known_is_refused():
    model = nn.Module()
    model.config = type("Config", (), {"model_type": "gpt2"})
    with pytest.raises(KernelError, match="'gpt2' is not supported; supported are llama"):
        Decoder.of(model)


def test_a_block_with_a_parameter_that_kernels_would_skip_is_refused(tiny_model):
    before = [projection.linear.weight for projection in Decoder.of(tiny_model).projections()]
    strides = [weight.stride() for weight in before]
    gate = tiny_model.model.layers[1].mlp.gate_proj
    gate.bias = nn.Parameter(torch.ones(gate.out_features))
    with pytest.raises(KernelError, match=r"block 1 has mlp\.gate_proj\.bias, unlike other"):
        pack(tiny_model)
    assert [weight.stride() for weight in before] == strides


def test_a_family_says_what_its_blocks_have(tiny_model):
    family = FAMILIES[tiny_model.config.model_type]
    attention = tiny_model.model.layers[0].self_attn
    assert family.qkv_bias == (attention.q_proj.bias is not None)
    assert family.query_key_norm == hasattr(attention, "q_norm")
    check_executable(Decoder.of(tiny_model))


def test_after_unpacking_weights_lie_as_before(tiny_model):
    other = make_tiny_model(tiny_model.config.model_type)
    pack(tiny_model, gated_blocks=[1])
    unpack(tiny_model)
    for mine, theirs in zip(tiny_model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


def test_a_family_more_is_one_entry(monkeypatch):
    """Plan, hooks and engine on a model of a family that nothing but its entry knows."""
    model = make_tiny_model("llama")
    model.config.model_type = "newcomer"
    with pytest.raises(KernelError, match="'newcomer' is not supported"):
        Decoder.of(model)
    monkeypatch.setitem(FAMILIES, "newcomer", Family("newcomer", "Newcomer"))
    plan = make_method("teal").plan(make_calibration(model), 0.5)
    prompt = torch.randint(1, 128, (1, 12), generator=torch.Generator().manual_seed(4))
    with applied(model, plan, make_protocol("decode_only")) as session:
        expected = model.generate(prompt, max_new_tokens=12, eos_token_id=None, pad_token_id=0, do_sample=False)
        assert session.report()["realised_sparsity"] > 0.3
    with DecodeEngine(model, plan, capacity=40) as engine:
        assert engine.generate(prompt, new_tokens=12).tolist() == expected.tolist()

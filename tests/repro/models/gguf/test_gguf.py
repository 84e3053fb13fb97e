"""GGUF files: each family comes over whole and exactly."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers.integrations.gguf.dequant import dequantize
from wisparse.method.errors import UserError
from wisparse.repro.models.checkpoint import find_checkpoint

from ..tiny_gguf import TEMPLATE, VOCABULARY, dequantised, write
from .tiny_models import FAMILIES, loaded, logits, settings, tiny

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
REAL = os.environ.get("WISPARSE_SMOLLM2_GGUF", "")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_comes_over_exactly(family, tmp_path):
    model = tiny(family)
    found = loaded(write(tmp_path / "tiny.gguf", model))
    assert found.checkpoint.family == family
    for name in ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"):
        assert getattr(found.model.config, name) == getattr(model.config, name)
    assert torch.equal(logits(found.model), logits(model))


def test_tied_embeddings_stay_tied(tmp_path):
    model = tiny("qwen3", tie_word_embeddings=True)
    found = loaded(write(tmp_path / "tiny.gguf", model)).model
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert torch.equal(logits(found), logits(model))


@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F16"])
def test_every_type_is_dequantised_to_its_values(quantisation, tmp_path):
    model = tiny("mistral")
    path = write(tmp_path / "tiny.gguf", model, quantisation)
    # llama.cpp's order of rows does not matter to rounding, which is of 32 weights in a row.
    assert torch.equal(logits(loaded(path).model), logits(dequantised(model, quantisation)))
    origin = find_checkpoint(settings(path)).origin
    assert origin.quantisation == quantisation
    assert dict(origin.types) == {quantisation: 16, "F32": 5}


@pytest.mark.parametrize("quantisation", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_k_quants_agree_with_transformers_own_arithmetic(quantisation, tmp_path):
    model = tiny("qwen2", hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    kind = gguf.GGMLQuantizationType[quantisation]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (256, 256 // block, size), dtype=np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,)}
    for start in halves[quantisation]:  # scales of a block, which random bits could make infinite
        blocks[..., start : start + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    name = "blk.0.ffn_down.weight"
    raw = blocks.reshape(256, -1)
    path = write(tmp_path / "tiny.gguf", model, changed_tensors={name: None}, raw=(name, raw, kind))
    weight = loaded(path).model.model.layers[0].mlp.down_proj.weight
    expected = dequantize(torch.from_numpy(raw.reshape(-1, size).copy()), int(kind)).reshape(256, 256)
    assert weight.std() > 0
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)


def _divisors(head_dim: int, theta: float) -> np.ndarray:
    """Llama 3's, wave by wave."""
    found = []
    for index in range(head_dim // 2):
        wave = 2 * math.pi * theta ** (2 * index / head_dim)
        if wave < 8192 / 4:
            found.append(1.0)
        elif wave > 8192:
            found.append(8.0)
        else:
            share = (8192 / wave - 1) / 3
            found.append(1 / ((1 - share) / 8 + share))
    return np.array(found, dtype=np.float32)


def test_frequencies_of_llama_3_become_its_rope_parameters(tmp_path):
    model = tiny("llama", rope_parameters=LLAMA3)
    path = write(tmp_path / "a.gguf", model, changed_tensors={"rope_freqs.weight": _divisors(32, 500000.0)})
    found = loaded(path).model
    assert found.config.rope_parameters == LLAMA3
    assert torch.equal(logits(found), logits(model))
    other = {"rope_freqs.weight": _divisors(32, 500000.0) * np.linspace(1, 2, 16, dtype=np.float32)}
    with pytest.raises(UserError, match="not those of Llama 3"):
        loaded(write(tmp_path / "b.gguf", model, changed_tensors=other))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_rotary_embeddings_come_over(kind, tmp_path):
    scaling = {"rope_type": kind, "rope_theta": 12345.0, "factor": 4.0}
    keys = {"rope.scaling.type": kind, "rope.scaling.factor": 4.0}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = keys["rope.scaling.original_context_length"] = 32
    model = tiny("qwen2", rope_parameters=scaling)
    found = loaded(write(tmp_path / "tiny.gguf", model, changed_keys=keys)).model
    assert torch.equal(logits(found), logits(model))
    assert not torch.equal(logits(found), logits(tiny("qwen2")))


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}, 4.0),
        ({"rope.scale_linear": 2.0}, 2.0),
        ({"rope.scaling.factor": 1.0}, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
    ],
)
def test_a_factor_whose_kind_is_not_named_is_linear_as_llama_cpp_takes_it(keys, factor, tmp_path):
    scaled = {"rope_type": "linear", "factor": factor} if factor else {"rope_type": "default"}
    model = tiny("llama", rope_parameters={"rope_theta": 12345.0, **scaled})
    read = loaded(write(tmp_path / "tiny.gguf", model, changed_keys=keys)).model
    assert torch.equal(logits(read), logits(model))
    assert read.config.rope_parameters.get("factor") == factor


def test_a_mistral_is_known_by_its_window(tmp_path):
    model = tiny("mistral", sliding_window=8)
    found = loaded(write(tmp_path / "tiny.gguf", model, changed_keys={"attention.sliding_window": 8})).model
    assert torch.equal(logits(found), logits(model))
    assert not torch.equal(logits(found), logits(tiny("mistral")))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_the_window_of_a_qwen_is_compared_with_the_context(family, tmp_path):
    model = tiny(family)
    context = model.config.max_position_embeddings
    whole = write(tmp_path / "whole.gguf", model, changed_keys={"attention.sliding_window": context})
    assert torch.equal(logits(loaded(whole).model), logits(model))
    part = write(tmp_path / "part.gguf", model, changed_keys={"attention.sliding_window": context - 1})
    with pytest.raises(
        UserError, match=f"a sliding window of {context - 1} in a context of {context} is not supported"
    ):
        find_checkpoint(settings(part))


def test_the_tokenizer_is_the_files(tmp_path):
    found = loaded(write(tmp_path / "tiny.gguf", tiny("llama")))
    tokenizer = found.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("in the a<|turn|>").input_ids) == [
        "<|begin|>",
        *("i", "n", "Ġthe", "Ġ", "a", "<|turn|>"),
    ]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False) == "the<|turn|>"
    assert tokenizer.chat_template == TEMPLATE


PIECES = ["▁", "t", "h", "e", "he", "▁t", "▁the"]
SENTENCEPIECE = {
    "model": "llama",
    "pre": None,
    "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES],
    "scores": [0.0] * 259 + [-float(index) for index in (10, 11, 12, 13, 1, 2, 0)],
    "token_type": [2, 3, 3, *([6] * 256), *([1] * len(PIECES))],
    "merges": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
    "add_bos_token": None,
}
"""A vocabulary as Llama 2's and Mistral's: pieces with scores, and bytes for what they do not spell."""


def test_a_sentencepiece_vocabulary_comes_over(tmp_path):
    model = tiny("llama", vocab_size=len(SENTENCEPIECE["tokens"]))
    tokenizer = loaded(write(tmp_path / "a.gguf", model, changed_tokenizer=SENTENCEPIECE)).tokenizer
    ids = tokenizer("the é</s>").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁the", "▁", "<0xC3>", "<0xA9>", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "the é"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    without = SENTENCEPIECE | {"add_bos_token": False, "add_eos_token": True}
    tokenizer = loaded(write(tmp_path / "b.gguf", model, changed_tokenizer=without)).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("the").input_ids) == ["▁the", "</s>"]
    unspaced = SENTENCEPIECE | {"add_space_prefix": False}
    with pytest.raises(UserError, match="SentencePiece without a space"):
        loaded(write(tmp_path / "c.gguf", model, changed_tokenizer=unspaced))


def test_whole_words_come_before_merges_in_llama_3(tmp_path):
    """A word of the vocabulary that no merge makes is that token, as in the tokenizer of its makers."""
    tokens = [*VOCABULARY, "thin"]
    model = tiny("llama", vocab_size=len(tokens))
    words = {"tokens": tokens, "token_type": [3] * 3 + [1] * (len(tokens) - 3), "add_bos_token": None}
    for pre, expected in (("llama-bpe", ["<|begin|>", "thin"]), ("gpt-2", ["th", "i", "n"])):
        path = write(tmp_path / f"{pre}.gguf", model, changed_tokenizer=words | {"pre": pre})
        tokenizer = loaded(path).tokenizer
        assert tokenizer.convert_ids_to_tokens(tokenizer("thin").input_ids) == expected


def test_a_turns_end_ends_a_text(tmp_path):
    path = write(tmp_path / "a.gguf", tiny("llama"), changed_tokenizer={"eot_token_id": 2})
    assert loaded(path).model.generation_config.eos_token_id == [0, 2]


def test_spaces_before_a_digit_stay_together_in_smollm(tmp_path):
    read = loaded(write(tmp_path / "tiny.gguf", tiny("llama"))).tokenizer.tokenize
    assert read("=   42") == ["=", "ĠĠĠ", "4", "2"]
    gpt2 = {"pre": "gpt-2", "add_bos_token": False}
    read = loaded(write(tmp_path / "other.gguf", tiny("llama"), changed_tokenizer=gpt2)).tokenizer
    assert read.convert_ids_to_tokens(read("=   42").input_ids) == ["=", "ĠĠ", "Ġ", "4", "2"]


def test_a_conversion_is_done_once_and_known_by_the_files_content(tmp_path, capsys):
    path = write(tmp_path / "tiny.gguf", tiny("llama"), "Q8_0")
    first = find_checkpoint(settings(path))
    assert "dequantised once" in capsys.readouterr().err
    copy = tmp_path / "models" / "copy.gguf"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    again = find_checkpoint(settings(copy.parent, source="folder"))
    assert capsys.readouterr().err == ""
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)
    assert (first.name, again.name, again.origin.file) == ("tiny", "models", "copy.gguf")
    assert again.fingerprint == again.origin.sha256
    assert json.loads((first.folder / "config.json").read_text()).get("quantization_config") is None
    assert not list((tmp_path / "cache" / "gguf").glob("*.unfinished"))


@pytest.mark.skipif(not REAL, reason="WISPARSE_SMOLLM2_GGUF names no file: the real SmolLM2 is not read")
def test_the_real_smollm2_knows_the_capital_of_france():
    found = loaded(Path(REAL))
    assert found.model.config.num_hidden_layers == 30
    ids = found.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in found.tokenizer.decode(found.model.generate(ids, max_new_tokens=4, do_sample=False)[0])

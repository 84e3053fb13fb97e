"""Small checkpoints of every family, drawn at random: what config.json may say, with random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ..conftest import FAMILIES

DTYPES = ("float32", "bfloat16", "float16")
TOKENS = 258
"""Entries of the tokenizer: 256 bytes, and what begins and ends a text."""
POSITIONS = 96


@dataclass(frozen=True)
class DrawnCheckpoint:
    """A configuration and a seed of weights; its repr is what a test of it needs."""

    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    seed: int = 0

    def model(self) -> PreTrainedModel:
        """The model, whose activations can be sparsified; what transformers refuses raises here."""
        configuration = FAMILIES[self.family](**self.settings)
        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_config(configuration, dtype=getattr(torch, self.dtype)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
                elif name.endswith("_proj.weight"):
                    parameter.mul_(torch.empty(parameter.shape[1]).log_normal_(0.0, 0.4))
        return model.requires_grad_(False)

    def save(self, folder: Path) -> PreTrainedModel:
        """Write the checkpoint as its makers would, rotary settings as they were drawn; returns the model."""
        model = self.model()
        model.save_pretrained(folder)
        path = folder / "config.json"
        stored = {key: value for key, value in json.loads(path.read_text()).items() if key != "rope_parameters"}
        path.write_text(json.dumps(stored | self.settings))
        byte_tokenizer().save_pretrained(folder)
        return model


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte: any text can be read, and the vocabulary stays small."""
    names = {0: "<s>", 1: "</s>"}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: place for place, name in enumerate([*names.values(), *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@st.composite
def rotary(draw: st.DrawFn) -> dict[str, Any]:
    """Rotary settings, in today's spelling or in that of the checkpoints of before."""
    kind = draw(st.sampled_from(("default", "default", "linear", "dynamic", "llama3", "yarn")))
    theta = draw(st.sampled_from((500000.0, 10000.0, 100.0)))
    scaling: dict[str, Any] = {"rope_type": kind}
    if kind != "default":
        scaling["factor"] = draw(st.sampled_from((1.0, 2.0, 3.5)))
    if kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = draw(st.sampled_from((16, 48)))
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from((2.0, 4.0)))}
    if kind == "yarn":
        optional = {"attention_factor": 0.8, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}
        chosen = draw(st.sets(st.sampled_from(sorted(optional))))
        scaling |= {key: optional[key] for key in sorted(chosen)}
    if draw(st.booleans()):
        return {"rope_parameters": scaling | {"rope_theta": theta}}
    old = {("type" if key == "rope_type" else key): value for key, value in scaling.items()}
    return {"rope_theta": theta, "rope_scaling": None if kind == "default" else old}


@st.composite
def windows(draw: st.DrawFn, family: str, blocks: int) -> dict[str, Any]:
    """Which blocks see a window of tokens, as the family's configurations say it."""
    window = draw(st.sampled_from((None, 1, 3, 8, 20)))
    kinds = st.lists(st.sampled_from(("full_attention", "sliding_attention")), min_size=blocks, max_size=blocks)
    if family in ("llama", "mistral"):
        # Llamas have no window, and neither family chooses it by block: rarely a configuration says so.
        stray = draw(st.integers(0, 7)) == 0
        own = {"sliding_window": window} if family == "mistral" or stray else {}
        return own | ({"layer_types": draw(kinds)} if stray and draw(st.booleans()) else {})
    if window is not None and draw(st.booleans()):
        return {"use_sliding_window": True, "sliding_window": window, "layer_types": draw(kinds)}
    return {
        "use_sliding_window": draw(st.booleans()),
        "sliding_window": window,
        "max_window_layers": draw(st.integers(0, blocks)),
    }


@st.composite
def checkpoints(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> DrawnCheckpoint:
    """Odd sizes, grouped heads, tied or not, biases, rotary scalings, windows, heads of any width."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    blocks = draw(st.integers(1, 3))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    heads = kv_heads * group
    head_dim = draw(st.sampled_from((2, 4, 6, 8, 10, 16)))
    settings: dict[str, Any] = {
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * head_dim,
        "intermediate_size": draw(st.integers(3, 50)),
        "vocab_size": TOKENS + draw(st.integers(0, 20)),
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": draw(st.sampled_from((0.1, 0.3))),
        "rms_norm_eps": draw(st.sampled_from((1e-5, 1e-6, 1e-2))),
    }
    if draw(st.booleans()):  # heads of another width than hidden states have channels for them
        settings["head_dim"] = draw(st.sampled_from((2, 4, 8, 12, 5)))
        settings["hidden_size"] = heads * draw(st.integers(2, 9))
    if draw(st.integers(0, 15)) == 0:  # rarely what does not fit together
        settings |= draw(st.sampled_from(({"num_key_value_heads": heads + 1}, {"num_hidden_layers": 0})))
    if family in ("llama", "qwen3"):
        settings["attention_bias"] = draw(st.sampled_from((False, False, True)))
    if family == "llama":
        settings["mlp_bias"] = draw(st.sampled_from((False, False, False, True)))
    if draw(st.integers(0, 7)) == 0:
        settings["hidden_act"] = draw(st.sampled_from(("gelu", "relu", "swish", "silu")))
    settings |= draw(rotary()) | draw(windows(family, blocks))
    return DrawnCheckpoint(family, settings, draw(st.sampled_from(dtypes)), draw(st.integers(0, 99)))

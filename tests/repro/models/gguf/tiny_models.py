"""Random models of each family, and what becomes of the files that they are written to."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from wisparse.repro.models.checkpoint import find_checkpoint, load_model

from ..tiny_gguf import VOCABULARY

FAMILIES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def tiny(family: str, **changes: object):
    """A random model whose sizes tell q from k, heads from hidden states, and one family from another."""
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 12345.0},
        "initializer_range": 0.3,
    }
    if family == "mistral":
        settings["sliding_window"] = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](**settings | changes), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_()
    return model.requires_grad_(False)


def settings(path: Path, **changes: object) -> dict[str, object]:
    base = {"name": None, "source": "gguf", "path": str(path), "device": "cpu", "dtype": "float32"}
    return base | changes


def loaded(path: Path, **changes: object):
    return load_model(find_checkpoint(settings(path, **changes)))


def logits(model) -> torch.Tensor:
    ids = torch.randint(model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    return model(ids).logits

"""The three embedded models: architecture and training recipe of each."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

VOCABULARY = 8192
BEGIN_OF_TEXT = "<|bos|>"


@dataclass(frozen=True)
class Recipe:
    """One embedded model and how it is trained; batches are `batch` sequences of `length` tokens."""

    architecture: PretrainedConfig
    optimizer: str  # "muon" (matrices inside blocks; the rest AdamW) or "adamw"
    training_tokens: int
    learning_rate: float
    batch: int
    length: int = 512
    weight_decay: float = 0.1
    warmup_steps: int = 200
    decay_share: float = 0.5  # the last part of training, over which the rate falls to zero
    seed: int = 0


# Shared by all: tied embeddings keep the files small, and generation starts from BEGIN_OF_TEXT.
_COMMON = {
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}

RECIPES: dict[str, Recipe] = {
    "llama-mini": Recipe(
        LlamaConfig(
            hidden_size=320,
            intermediate_size=896,
            num_hidden_layers=8,
            num_attention_heads=10,
            num_key_value_heads=2,
            **_COMMON,
        ),
        optimizer="muon",
        training_tokens=600_000_000,
        learning_rate=4e-3,
        batch=256,
    ),
    "mistral-mini": Recipe(
        MistralConfig(
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            sliding_window=256,
            **_COMMON,
        ),
        optimizer="adamw",
        training_tokens=420_000_000,
        learning_rate=4e-3,
        batch=128,
    ),
    "qwen-mini": Recipe(
        Qwen2Config(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=10,
            num_attention_heads=8,
            num_key_value_heads=2,
            **_COMMON,
        ),
        optimizer="adamw",
        training_tokens=420_000_000,
        learning_rate=4e-3,
        batch=128,
    ),
}

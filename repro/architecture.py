"""What a model costs that follows from its architecture in conf/model, without its weights."""

from __future__ import annotations

from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from .configuration import CONFIGURATION, register_resolvers


@cache
def architecture(model: str) -> dict[str, Any]:
    """`architecture` of a choice of conf/model, its defaults merged in."""
    register_resolvers()
    with initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=[f"model={model}"]).model.architecture)


def decode_tflops(model: str, tokens: int, sparsity: float) -> float:
    """TFLOPs of `tokens` tokens: two for each weight multiplied; the block linears at `sparsity` (a share),
    lm_head dense, attention and the embedding left out, as WiSparse, arXiv 2602.14452, counts them.
    """
    sizes = architecture(model)
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head = sizes.get("head_dim", hidden // heads)
    attention = 2 * hidden * head * (heads + sizes["num_key_value_heads"])
    blocks = sizes["num_hidden_layers"] * (attention + 3 * hidden * sizes["intermediate_size"])
    return 2 * tokens * ((1 - sparsity) * blocks + sizes["vocab_size"] * hidden) / 1e12

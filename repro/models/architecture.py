"""Costs that follow from a model's architecture in conf/model or its folder, without its weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra import compose
from omegaconf import OmegaConf

from ...kernels.bench.parts.model_shapes import MODEL_SHAPES
from ...kernels.model.decoder import shape_from
from ..configuration import composing

PAPER_MODELS = tuple(MODEL_SHAPES)
"""Models of conf/models_of_the_paper.yaml, in its order."""


@cache
def architecture(model: str) -> dict[str, Any]:
    """`architecture` of a choice of conf/model, its defaults merged in; an embedded model's config.json."""
    with composing():
        chosen = compose("config", overrides=[f"model={model}"]).model
    if "architecture" in chosen:
        return OmegaConf.to_container(chosen.architecture)
    return json.loads((Path(chosen.path) / "config.json").read_text(encoding="utf-8"))


def projection_sizes(model: str) -> dict[str, int]:
    """Weights of each projection of a block, by its name."""
    shape = shape_from(SimpleNamespace(**architecture(model)))
    return {name: out * inner for name, (out, inner) in shape.projection_shapes().items()}


def decode_tflops(model: str, tokens: int, sparsity: float) -> float:
    """TFLOPs of `tokens` tokens: two for each weight multiplied; the block linears at `sparsity` (a share),
    lm_head dense, attention and the embedding left out, as WiSparse, arXiv 2602.14452, counts them.
    """
    sizes = architecture(model)
    blocks = sizes["num_hidden_layers"] * sum(projection_sizes(model).values())
    return 2 * tokens * ((1 - sparsity) * blocks + sizes["vocab_size"] * sizes["hidden_size"]) / 1e12

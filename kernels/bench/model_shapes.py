"""Sizes of the papers' models, whose speed is measured with random weights; from their configurations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import yaml

from ..model.decoder import DecoderShape, shape_from

CONFIGURATION = Path(__file__).resolve().parents[2] / "conf"


def shape_of(model: str) -> DecoderShape:
    """Sizes that `architecture` of a model's own file in conf/model states."""
    text = (CONFIGURATION / "model" / f"{model}.yaml").read_text(encoding="utf-8")
    return shape_from(SimpleNamespace(**yaml.safe_load(text)["architecture"]))


def _models() -> list[str]:
    return yaml.safe_load((CONFIGURATION / "models_of_the_paper.yaml").read_text(encoding="utf-8"))


MODEL_SHAPES = {model: shape_of(model) for model in _models()}
"""Sizes by the names that the models have everywhere."""

"""Sizes of the papers' models, whose speed is measured with random weights; from their configurations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from ..errors import KernelError
from ..model.decoder import DecoderShape, Family, family_of, shape_from

CONFIGURATION = Path(__file__).resolve().parents[2] / "conf"


def shape_of(model: str) -> DecoderShape:
    """Sizes that `architecture` of a model's own file in conf/model states.

    Raises KernelError for a file that is not there, or that states none.
    """
    return shape_from(SimpleNamespace(**architecture_of(model)))


def family_named(model: str) -> Family:
    """The family of the same model."""
    return family_of(architecture_of(model)["model_type"])


def architecture_of(model: str) -> dict[str, Any]:
    """Values of config.json in the model's own file. Raises KernelError as `shape_of` does."""
    path = CONFIGURATION / "model" / f"{model}.yaml"
    found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not (architecture := found.get("architecture")):
        files = sorted(path.parent.glob("*.yaml"))
        known = [one.stem for one in files if "\narchitecture:" in one.read_text(encoding="utf-8")]
        raise KernelError(f"no sizes of a model '{model}'; take of {', '.join(known)}")
    return architecture


def _models() -> list[str]:
    return yaml.safe_load((CONFIGURATION / "models_of_the_paper.yaml").read_text(encoding="utf-8"))


MODEL_SHAPES = {model: shape_of(model) for model in _models()}
"""Sizes by the names that the models have everywhere."""

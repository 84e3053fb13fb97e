"""Sizes of the papers' models, whose speed is measured with random weights; from their configurations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from ...errors import KernelError
from ...model.decoder import DecoderShape, Family, family_of, shape_from

CONFIGURATION = Path(__file__).resolve().parents[3] / "conf"


def shape_of(model: str, blocks: int | None = None) -> DecoderShape:
    """Sizes that `architecture` of a model's own file in conf/model states, or of its first blocks alone.

    Raises KernelError for a file that is not there, or that states none, and for more blocks than it has.
    """
    shape = shape_from(SimpleNamespace(**architecture_of(model)))
    if (kept := blocks or shape.blocks) > shape.blocks:
        raise KernelError(f"--blocks {blocks}: {model} has {shape.blocks}")
    return replace(shape, blocks=kept, windows=shape.windows[:kept])


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

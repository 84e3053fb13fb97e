"""Cards of trained models: what a training of this project recorded, beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...method.errors import UserError

CARD = "training.json"
SHARED = ("recipe", "tokens_seen", "text")
"""Parts in which models that are compared must be alike."""


def read_cards(folder: Path, models: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Cards of those models that have one below a folder, a folder each."""
    paths = {model: folder / model / CARD for model in models}
    return {
        model: json.loads(path.read_text(encoding="utf-8")) for model, path in paths.items() if path.is_file()
    }


def check_trained_alike(cards: dict[str, dict[str, Any]]) -> None:
    """Raises UserError where a model is of another recipe, or of other tokens or text, than the first."""
    (first, expected), *others = cards.items()
    for model, card in others:
        if differing := [part for part in SHARED if _lasting(card[part]) != _lasting(expected[part])]:
            raise UserError(f"{model} is of another {differing[0]} than {first} and not comparable")


def _lasting(part: Any) -> Any:
    """A part of a card without what differs from one run of the same to another."""
    return {k: v for k, v in part.items() if not k.endswith("seconds")} if isinstance(part, dict) else part

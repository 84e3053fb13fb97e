"""Names of the embedded models."""

from __future__ import annotations

import json
from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""Folder with a folder of each embedded model."""
FOLDERS = tuple(MODELS.iterdir())
EMBEDDED = frozenset(path.name for path in FOLDERS)
"""Names of the embedded models; measurements on them decide no printed claim."""


def from_scratch() -> list[str]:
    """Embedded models that were not trained on from another: each has an architecture of its own."""
    cards = {path.name: path / "training.json" for path in FOLDERS}
    return sorted(
        name
        for name, card in cards.items()
        if not card.is_file() or "starts_from" not in json.loads(card.read_text(encoding="utf-8"))
    )

"""Cards of trained models: what a training of this project recorded, beside each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...method.errors import UserError

CARD = "training.json"
SHARED = ("recipe", "tokens_seen", "text")
"""Parts in which models that are compared must be alike."""


def read_cards(folder: Path, models: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Cards of those models that have one below a folder, a folder each.

    Raises UserError for one that cannot be read, that lacks what tables show, or that holds other values there.
    """
    paths = {model: folder / model / CARD for model in models}
    return {model: _read(path) for model, path in paths.items() if path.is_file()}


def _read(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); train the model anew") from error
    if not isinstance(card, dict):
        raise UserError(f"{path} is not a JSON object; train the model anew")
    if lacking := sorted({*VALUES, "recipe", "text"} - card.keys()):
        raise UserError(f"{path} lacks {', '.join(lacking)}; train the model anew")
    for name, (holds, expected) in (VALUES | MORE).items():
        if name in card and not holds(card[name]):
            raise UserError(f"{path}: {name} is {card[name]!r}, not {expected}; train the model anew")
    return card


def _is_perplexity(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_shares(value: Any) -> bool:
    numbers = isinstance(value, list) and value and all(type(share) in (int, float) for share in value)
    return bool(numbers) and all(0.0 <= share <= 1.0 for share in value)


VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tokens_seen": (_is_count, "a number of tokens"),
    "held_out_perplexity": (_is_perplexity, "a perplexity"),
    "device": (lambda value: isinstance(value, str), "the name of a device"),
}
"""What every card says, with what it may be."""
MORE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "held_out_perplexity_tokens": (_is_count, "a number of tokens"),
    "zeros_by_block": (_are_shares, "shares from 0 to 1"),
}
"""What some of them say besides."""


def check_trained_alike(cards: dict[str, dict[str, Any]]) -> None:
    """Raises UserError where a model is of another recipe, or of other tokens or text, than the first."""
    (first, expected), *others = cards.items()
    for model, card in others:
        if differing := [part for part in SHARED if _lasting(card[part]) != _lasting(expected[part])]:
            raise UserError(f"{model} is of another {differing[0]} than {first} and not comparable")


def _lasting(part: Any) -> Any:
    """A part of a card without what differs from one run of the same to another."""
    return {k: v for k, v in part.items() if not k.endswith("seconds")} if isinstance(part, dict) else part

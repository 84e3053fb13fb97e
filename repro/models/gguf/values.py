"""Kinds of values that a GGUF file's keys have: each value that is read is held to its kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....method.errors import UserError


@dataclass(frozen=True)
class Kind:
    """What a value is to be."""

    title: str
    """Its name, behind "is not"."""
    holds: Callable[[Any], bool]

    def check(self, file: Path, key: str, value: Any) -> Any:
        """The value; raises UserError where it is not of this kind."""
        if not self.holds(value):
            raise UserError(f"{file}: {key} is {str(value)[:60]!r}, not {self.title}; take another file")
        return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


COUNT = Kind("a positive whole number", lambda value: _is_whole(value) and value > 0)
INDEX = Kind("a whole number of 0 or more", lambda value: _is_whole(value) and value >= 0)
POSITIVE = Kind(
    "a positive number",
    lambda value: (_is_whole(value) or isinstance(value, float)) and math.isfinite(value) and value > 0,
)
TEXT = Kind("a text", lambda value: isinstance(value, str))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))

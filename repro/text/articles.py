"""Documents of a text that is stored line by line, and which of them stay out of calibration text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from ...method.errors import UserError

HEADING = re.compile(r"= [^=].* =")
"""The first line of an article in WikiText."""

Document = TypeVar("Document")


def articles(lines: Iterable[str]) -> list[str]:
    """Lines joined into articles, from one first-level heading to the next, without blank ones."""
    found: list[list[str]] = [[]]
    for line in lines:
        stripped = line.strip()
        if HEADING.fullmatch(stripped) and found[-1]:
            found.append([])
        if stripped:
            found[-1].append(stripped)
    return ["\n".join(article) for article in found if article]


def apart(documents: Sequence[Document], every: int) -> list[Document]:
    """The first of each `every` documents: those that settings are chosen on."""
    return list(documents[::every])


def without_apart(documents: Sequence[Document], every: int | None) -> list[Document]:
    """The documents that `apart` leaves for calibration, all where `every` is None.

    Raises UserError where none would be left.
    """
    if every is None:
        return list(documents)
    if every < 2:
        raise UserError(f"calibration: apart_every={every} leaves no document to calibrate on; give 2 or more")
    return [document for index, document in enumerate(documents) if index % every]

"""The embedded suite: tasks on Python code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..embedded.items import EMBEDDED
from ..text.item_set import ItemSet
from .installed_suite import InstalledTextSuite


@dataclass(frozen=True)
class EmbeddedSuite(InstalledTextSuite):
    """Tasks and held-out texts made from the installed sympy and networkx."""

    name: ClassVar[str] = "embedded"
    item_set: ClassVar[ItemSet] = EMBEDDED

    tasks: Sequence[str] = EMBEDDED.tasks

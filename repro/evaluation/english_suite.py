"""The English suite: tasks on the prose of installed packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..english.items import ENGLISH
from ..text.item_set import ItemSet
from .installed_suite import InstalledTextSuite


@dataclass(frozen=True)
class EnglishSuite(InstalledTextSuite):
    """Tasks and held-out texts made from prose of installed packages; see repro/english/README.md."""

    name: ClassVar[str] = "english"
    item_set: ClassVar[ItemSet] = ENGLISH

    tasks: Sequence[str] = ENGLISH.tasks

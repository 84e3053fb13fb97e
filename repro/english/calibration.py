"""Calibration text of natural English: prose of packages that no evaluation item is made from.

`python -m wisparse.repro.english.calibration --write-manifest` renews the manifest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from ..text.calibration_text import ShuffledTexts
from ..text.item_set import TEXT, Item, ItemSet
from ..text.overlap import apart_from
from .documents import CALIBRATED, Document, calibration_documents
from .items import ENGLISH


def whole_prose(document: Document, _generator: random.Random) -> Iterator[Item]:
    """All prose of a file as one text."""
    yield {"text": "\n\n".join(document.paragraphs), "source": document.path}


CALIBRATION = ItemSet(
    name="the English calibration text",
    manifest=Path(__file__).with_name("calibration_manifest.json"),
    task_folder=ENGLISH.task_folder,
    builders={TEXT: whole_prose},
    files=calibration_documents,
    packages=tuple(CALIBRATED),
    items_a_task={TEXT: None},
)


@dataclass(frozen=True)
class EnglishText(ShuffledTexts):
    """Prose of the calibration packages, file by file."""

    source: ClassVar[str] = "the prose of the calibration packages"

    def files(self) -> list[Path]:
        """The manifest that the text is checked against."""
        return [CALIBRATION.manifest]

    def texts(self) -> tuple[str, ...]:
        """The prose of each file; raises UserError when the packages are not the expected ones."""
        return calibration_texts()


@lru_cache(maxsize=1)
def calibration_texts() -> tuple[str, ...]:
    """The prose of each file, but for files that share a run of words with an evaluation item."""
    return tuple(apart_from((item["text"] for item in CALIBRATION.load(TEXT)), ENGLISH.texts()))


if __name__ == "__main__":
    CALIBRATION.main()

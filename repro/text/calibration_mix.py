"""Calibration text from public data sets: one, or a mix with so many sequences of each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...method.errors import UserError
from ...method.tokens import in_turn, pack
from .articles import articles, without_apart
from .data_sets import DataSource, load_split, read_files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextSource:
    """One data set of a mix: where it is, how a row becomes text, and how many sequences it gives."""

    hub: str
    folder: str
    split: str
    sequences: int
    template: str
    """Text of a row, its columns in braces."""
    config: str | None = None
    file: str | None = None
    """One file of JSON lines in the hub's repository instead of everything."""
    rows: int | None = None
    """Rows read from the beginning of that file; None: all."""
    lines: bool = False
    """Rows are lines; a document is the lines from one first-level heading to the next."""
    apart_every: int | None = None
    """One document of so many, the first, stays out, for settings to be chosen on; None: all are there."""

    @property
    def data(self) -> DataSource:
        """Where its rows are."""
        return DataSource(self.hub, self.config, self.folder, self.file, self.rows)

    def documents(self, root: str | None, generator: random.Random) -> Iterator[str]:
        """All documents in random order."""
        rows = load_split(self.data, self.split, root)
        if self.lines:
            documents = without_apart(articles(self._text(row) for row in rows), self.apart_every)
            generator.shuffle(documents)
            yield from documents
        else:
            indices = without_apart(list(range(len(rows))), self.apart_every)
            yield from (self._text(rows[index]) for index in generator.sample(indices, len(indices)))

    def _text(self, row: dict[str, Any]) -> str:
        try:
            return self.template.format_map(row)
        except KeyError as error:
            raise UserError(
                f"calibration: the rows of {self.hub} have no column {error}; they have {', '.join(row)}"
            ) from error


@dataclass(frozen=True)
class MixedText:
    """Sequences of `length` tokens from several data sets, their rows in turn so that any beginning is a mix.

    `seed` decides which documents are taken; sequences are packed within each source, never across.
    """

    name: str
    sources: Mapping[str, TextSource]
    length: int
    batch_size: int
    seed: int
    data_root: str | None = None

    def __post_init__(self) -> None:
        if not self.sources or any(source.sequences < 1 for source in self.sources.values()):
            raise UserError("calibration.sources needs a source, and each at least 1 sequence")
        if self.data_root is not None:
            self.files()

    def files(self) -> list[Path]:
        """The files of the mirror that are read; data of the hub are fetched, and there are none."""
        return read_files([(source.data, source.split) for source in self.sources.values()], self.data_root)

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences, length) token ids; raises UserError when a source is missing or too short."""
        packed = []
        for name, source in self.sources.items():
            documents = source.documents(self.data_root, random.Random(f"{self.seed}:{name}"))
            packed.append(
                pack(documents, tokenizer, source.sequences, self.length, f"calibration.sources.{name}")
            )
        return in_turn(packed)

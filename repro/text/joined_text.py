"""Calibration text out of several others, such as prose of packages and a public data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...method.errors import UserError
from ...method.tokens import in_turn

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class Text(Protocol):
    """Any calibration text that reads files."""

    def files(self) -> list[Path]:
        """Files that its sequences depend on."""
        ...

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences, length) token ids."""
        ...


@dataclass(frozen=True)
class JoinedText:
    """All sequences of several texts in turn, so that any share of them has its part of each."""

    name: str
    texts: Mapping[str, Text]
    sequences: int
    """Sequences of each text; the texts' own settings take this number."""
    length: int
    batch_size: int

    def __post_init__(self) -> None:
        if len(self.texts) < 2:
            raise UserError("calibration.texts needs at least two texts; name one alone with calibration=NAME")

    def files(self) -> list[Path]:
        """Files of all texts."""
        return [path for text in self.texts.values() for path in text.files()]

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences of all texts, length) token ids; raises UserError for what a text raises it for."""
        return in_turn([text.input_ids(tokenizer) for text in self.texts.values()])

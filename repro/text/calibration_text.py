"""Calibration text that a cell can be given: a file, or random tokens."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from ...method.errors import UserError
from ...method.tokens import begin_tokens, pack

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RandomTokens:
    """No text at all: every token of the vocabulary is as likely as any other."""

    name: str
    sequences: int
    length: int
    batch_size: int
    seed: int

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences, length) token ids, the first of each row as in `pack`."""
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(len(tokenizer), (self.sequences, self.length), generator=generator)
        for begin in begin_tokens(tokenizer):
            ids[:, 0] = begin
        return ids


@dataclass(frozen=True)
class ShuffledTexts(ABC):
    """Several texts in an order shuffled by `seed`."""

    name: str
    sequences: int
    length: int
    batch_size: int
    seed: int

    source: ClassVar[str]
    """What messages call them."""

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """The texts, always in the same order. Raises UserError when they are not the expected ones."""

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences, length) token ids; raises UserError as `texts`, and where they are too short."""
        texts = list(self.texts())
        random.Random(self.seed).shuffle(texts)
        return pack(texts, tokenizer, self.sequences, self.length, self.source)


@dataclass(frozen=True)
class FileText:
    """Any UTF-8 text file, from its beginning."""

    name: str
    path: str | None
    sequences: int
    length: int
    batch_size: int

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("calibration=file needs calibration.path=FILE, a UTF-8 text")
        self._text()

    def _text(self) -> str:
        return read_text("calibration.path", str(self.path))

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences, length) token ids; raises UserError when the text is too short."""
        return pack([self._text()], tokenizer, self.sequences, self.length, str(self.path))


def read_text(setting: str, path: str) -> str:
    """Text of the UTF-8 file that a setting names. Raises UserError for what is none."""
    if not path:
        raise UserError(f"{setting}= names no file; give a UTF-8 text")
    file = Path(path).expanduser()
    if file.is_char_device() or file.is_block_device():  # such as /dev/zero, which has no end
        raise UserError(f"{setting}={path} is a device and no text; give a file")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{setting}={path} cannot be read as UTF-8 text ({error})") from error
    if "\0" in text:
        raise UserError(f"{setting}={path} is no text: it holds NUL characters")
    return text

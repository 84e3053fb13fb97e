"""Calibration text: what it is made of, and how it becomes sequences of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...method.errors import UserError

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
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(len(tokenizer), (self.sequences, self.length), generator=generator)
        if tokenizer.bos_token_id is not None:
            ids[:, 0] = tokenizer.bos_token_id
        return ids


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
        try:
            return Path(self.path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"calibration.path={self.path} cannot be read as UTF-8 text ({error})") from error

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences, length) token ids; raises UserError when the text is too short."""
        return pack([self._text()], tokenizer, self.sequences, self.length, str(self.path))


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequences: int, length: int, source: str
) -> Tensor:
    """Texts as (sequences, length) token ids: each row and each text begins with the begin-of-text token.

    Tokenizers without one (Qwen2.5) get none. Raises UserError when the texts hold too few tokens.
    """
    import torch

    if sequences < 1 or length < 2:
        raise UserError("calibration.sequences must be at least 1 and calibration.length at least 2")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = length - len(begin)
    stream: list[int] = []
    for text in texts:
        if stream:
            stream.extend(begin)
        stream.extend(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if len(stream) >= sequences * room:
            break
    else:
        raise UserError(
            f"{source} has {len(stream)} tokens, too few for {sequences} sequences of {length}; "
            "give a longer text or lower calibration.sequences"
        )
    return torch.tensor([begin + stream[row * room : (row + 1) * room] for row in range(sequences)])
